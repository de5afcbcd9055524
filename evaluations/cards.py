"""Write hub_cards/ and the results table of the README anew, from zoo.toml, bundled configs and results.csv.

python -m sslzoo_evaluations cards
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sslzoo import weights, zoo
from sslzoo.card import render_card, results_table
from sslzoo.conversion import make_config

from . import detection, low_shot, segmentation
from .results import PACKAGED, PIXELS, SEES_LIGHTNESS, TOP_PIXELS, Result, latest, read

CHECKOUT = Path(__file__).parents[1]
FROZEN = ("linear", "knn")  # protocols that cards and the README's first table show
MARKS = "<!-- {}:begin -->", "<!-- {}:end -->"  # of a table in the README


class CardsError(ValueError):
    """Cards cannot be rendered; the message says what is missing."""


def main(argv: list[str]) -> int:
    """`python -m sslzoo_evaluations cards`."""
    argparse.ArgumentParser(
        prog="python -m sslzoo_evaluations cards", description=(__doc__ or "").partition("\n")[0]
    ).parse_args(argv)
    stale = stale_files(CHECKOUT)
    for path, text in stale.items():
        if text is None:
            path.unlink()
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        print(f"{'removed' if text is None else 'wrote'} {path.relative_to(CHECKOUT)}")
    return 0


def stale_files(root: Path) -> dict[Path, str | None]:
    """Files of a checkout that are not as zoo and results have it, with the text they should have; None for none.

    Raises:
        CardsError: No checkout, or a README without the marks of its table.
    """
    if not (root / "pyproject.toml").is_file():
        raise CardsError(f"{root} is no checkout of sslzoo; cards are written into its source tree. Run it in a clone.")
    wanted: dict[Path, str | None] = dict.fromkeys((root / "hub_cards").glob("*.md"))
    wanted |= _rendered(root)
    return {
        path: text
        for path, text in wanted.items()
        if text is None or not path.is_file() or path.read_text(encoding="utf-8") != text
    }


def _rendered(root: Path) -> dict[Path, str]:
    models = zoo.read_table(root / "sslzoo" / "zoo.toml").models
    rows = current(latest(read(root / "evaluations" / "results.csv")), models)
    frozen = [row for row in rows if row.protocol in FROZEN]
    texts = {}
    for info in models:
        bundled = root / "sslzoo" / "bundled" / info.id
        config = make_config(info) if info.upstream else weights.read_config(bundled)
        texts[root / "hub_cards" / f"{info.id}.md"] = _card(info, config, frozen)
    readme = root / "README.md"
    text = _with_table(readme.read_text(encoding="utf-8"), "results", results_table([asdict(row) for row in frozen]))
    networks = {info.id: f"random:{info.arch}@{info.input_size[1]}" for info in models}
    text = _with_table(text, "low-shot", low_shot.table(rows, networks))
    text = _with_table(text, "segmentation", segmentation.table(rows))
    texts[readme] = _with_table(text, "detection", detection.table(rows))
    return texts


def zoo_cards(org: str) -> dict[str, str]:
    """Cards for the repositories ORG/ID of what this project has trained, by id, with the results of the package.

    Args:
        org: User or organization on the Hugging Face Hub.
    """
    models = [info for info in zoo.list_models() if info.upstream is None]
    rows = [row for row in current(latest(read(PACKAGED)), models) if row.protocol in FROZEN]
    configs = {info.id: weights.read_config(weights.locate(info.id)) for info in models}
    return {info.id: _card(info, configs[info.id], rows, f"{org}/{info.id}") for info in models}


def _card(info: zoo.ModelInfo, config: Mapping[str, Any], rows: Sequence[Result], repository: str | None = None) -> str:
    return render_card(info.id, config, [asdict(row) for row in beside(info, rows)], info, repository=repository)


def current(results: Sequence[Result], models: Sequence[zoo.ModelInfo]) -> list[Result]:
    """Results of the zoo's models as they are now, and of baselines: not of other weights, nor of unpublished runs."""
    digests = {model.id: model.sha256 for model in models}
    return [
        row
        for row in results
        if row.model in (PIXELS, TOP_PIXELS) or row.model.startswith("random:") or digests.get(row.model) == row.sha256
    ]


def beside(info: zoo.ModelInfo, results: Sequence[Result]) -> list[Result]:
    """Results of one model and, on the same data, of its network with random weights and of raw pixels."""
    data = {row.data for row in results if row.model == info.id}
    kind = SEES_LIGHTNESS if info.input_size[0] == 1 else ""
    compared = {info.id, f"random:{info.arch}{kind}@{info.input_size[1]}", PIXELS}
    if info.arch.startswith("tophalf_"):
        compared.add(TOP_PIXELS)
    return [row for row in results if row.model in compared and row.data in data]


def _with_table(readme: str, name: str, table: str) -> str:
    begin, end = (mark.format(name) for mark in MARKS)
    before, found, rest = readme.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise CardsError(f"README.md needs the lines {begin} and {end}, between which a table of results belongs.")
    return f"{before}{begin}\n{table}\n{end}{after}"
