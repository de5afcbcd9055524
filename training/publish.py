"""Finished run -> folder in the zoo's layout -> bundled with the package: weights, row of zoo.toml, history.

python -m sslzoo_training publish RUN --id byol-resnet18quarter-cifar10 --data-name cifar10
python -m sslzoo_training publish --upstream byol-resnet50-imagenet org/name     # others' weights, to the Hub
"""

import csv
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

import sslzoo
from sslzoo import hub, weights, zoo
from sslzoo.card import render_card, trained_on
from sslzoo.encoder import load
from sslzoo.publish import publish as push

from .checkpoint import CHECKPOINT, LOG, read_log
from .method import find_method
from .recipe import list_recipes, make_plan

SPLITS = {"train", "training", "images", "data", "unlabelled", "unlabeled"}
OTHERS = "# ---- "  # begins the part of zoo.toml that others have trained
UNWRITTEN = {"id", "variant", "upstream"}
CHECKOUT = Path(sslzoo.__file__).parents[1]


class PublishError(ValueError):
    """A run cannot be published; the message says what it lacks."""


def data_name(data: Path) -> str:
    """A name for a data set from its path: the last part that is not just a split. cifar10/train -> cifar10."""
    parts = [part for part in data.absolute().parts if part.lower() not in SPLITS]
    return Path(parts[-1]).stem.lower()


def write_run(
    folder: Path,
    encoder: nn.Module,
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    data: Path,
    facts: Mapping[str, Any],
) -> None:
    """Write config.json, model.safetensors and README.md of a finished run.

    Args:
        folder: The run.
        encoder: The network to publish, in timm's key names.
        config: Its config.json, as `sslzoo.create` made it.
        recipe: All settings, as `Plan.to_dict` gives them.
        data: Where the images came from.
        facts: What really ran: images, steps, seconds, device, processes, torch, commit.
    """
    name = data_name(data)
    full = trained_config(config, recipe, name, facts)
    weights.write_folder(folder, full, encoder.state_dict(), render_card(zoo_id(recipe, name), full))


def zoo_id(recipe: Mapping[str, Any], data: str) -> str:
    """method-arch-data of a run.

    Args:
        recipe: All settings, as `Plan.to_dict` gives them.
        data: Name of the data set.
    """
    return f"{_published_as(recipe)}-{recipe['arch']}-{data}"


def _published_as(recipe: Mapping[str, Any]) -> str:
    return find_method(recipe["method"]).published_as(recipe)


def trained_config(
    config: Mapping[str, Any], recipe: Mapping[str, Any], data: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The config.json of a pretrained encoder: that of the network, and all about its training.

    Args:
        config: As `sslzoo.create` made it.
        recipe: All settings, as `Plan.to_dict` gives them.
        data: Name of the data set.
        facts: What really ran.
    """
    method = _published_as(recipe)
    block = {
        "schema": weights.SCHEMA,
        "method": method,
        "dataset": data,
        "recipe": dict(recipe),
        "command": command(recipe),
        "paper": asdict(find_method(recipe["method"]).PAPER),
        "metrics": {},
        "source": "trained",
        "run": dict(facts),
        **{key: value for key, value in config["sslzoo"].items() if key == "input"},  # what the network sees
    }
    return {**config, "pretrained_cfg": {**config["pretrained_cfg"], "tag": f"{method}_{data}"}, "sslzoo": block}


def command(recipe: Mapping[str, Any]) -> str:
    """The shortest command that gives these settings, DATA and RUN left open.

    Args:
        recipe: All settings, as `Plan.to_dict` gives them.
    """
    changes = {name: _changes(recipe, name) for name in list_recipes(recipe["method"])}
    name = min(changes, key=lambda name: len(changes[name]))
    words = [f"{key}={_toml(value)}" for key, value in changes[name].items() if key != "seed"]
    return shlex.join(
        ["sslzoo", "pretrain", recipe["method"], *words, "--recipe", name, "--seed", str(recipe["seed"])]
    ) + " --data DATA --out RUN"  # fmt: skip


def _changes(recipe: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What must be set beside the recipe of this name to get these settings."""
    plain = make_plan(recipe["method"], name, {}).to_dict()
    changes = {key: recipe[key] for key in plain if key in recipe and key != "views" and recipe[key] != plain[key]}
    plan = make_plan(recipe["method"], name, changes).to_dict()
    if plan["views"] != recipe["views"]:
        method = find_method(recipe["method"])
        papers = [asdict(replace(view, size=recipe["image_size"])) for view in method.VIEWS]
        changes["views"] = [
            {k: v for k, v in view.items() if v != (list(old[k]) if isinstance(old[k], tuple) else old[k])}
            for view, old in zip(recipe["views"], papers, strict=True)
        ]
    return changes


def _sizes(recipe: Mapping[str, Any]) -> str:
    """At which sizes it was trained, in words; recipes from before there were two have no `early_size`."""
    if not recipe.get("early_size"):
        return f"{recipe['image_size']} pixels"
    late = 1 - recipe["early_part"]
    return f"{recipe['early_size']} pixels, the last {late:.0%} of the steps at {recipe['image_size']}"


def _toml(value: Any) -> str:
    """A value as `key=value` takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def publish(
    run: Path,
    id_: str,
    *,
    data: str,
    licence: str = "apache-2.0",
    hardware: str | None = None,
    summary: str | None = None,
    root: Path = CHECKOUT,
) -> zoo.ModelInfo:
    """Bundle a finished run with the package, in the source tree of a checkout.

    Writes sslzoo/bundled/ID/ (weights in float16), the row of sslzoo/zoo.toml and training/history/ID.csv.

    Args:
        run: Folder of the run.
        id_: Its id in the zoo: method-arch-data.
        data: Name of the data set.
        licence: SPDX identifier, of the weights.
        hardware: What it was trained on, in words; by default what the run recorded.
        summary: One sentence about it; by default one from its settings.
        root: The checkout.

    Raises:
        PublishError: No checkout, an unfinished run, or an id that says something else than the run.
        sslzoo.weights.WeightsError: The run's files are damaged.
    """
    recipe, facts = _finished(run)
    if id_ != (wanted := zoo_id(recipe, data)):
        raise PublishError(f"the id of this run is {wanted}, got {id_}: an id is method-arch-data.")
    table = root / "sslzoo" / "zoo.toml"
    if not (root / "pyproject.toml").is_file() or not table.is_file():
        raise PublishError(
            f"{root} is no checkout of sslzoo: publishing writes into its source tree. Run it in a clone."
        )
    encoder = load(run)
    folder = root / "sslzoo" / "bundled" / id_
    config = trained_config(encoder.config, recipe, data, facts)
    weights.write_folder(folder, config, encoder.model.state_dict(), half=True)
    method, paper = _published_as(recipe), find_method(recipe["method"]).PAPER
    info = zoo.ModelInfo(
        id=id_,
        method=method,
        arch=recipe["arch"],
        data=data,
        licence=licence,
        num_features=encoder.num_features,
        params=sum(parameter.numel() for parameter in encoder.parameters()),
        input_size=encoder.input_size,
        sha256=weights.sha256(folder / weights.WEIGHTS),
        bytes=(folder / weights.WEIGHTS).stat().st_size,
        source="bundled",
        epochs=recipe["epochs"],
        hardware=hardware or _hardware(facts),
        paper=str(paper),
        paper_url=paper.url,
        summary=summary
        or f"{recipe['arch']} pretrained by {method} on {trained_on(recipe, data)}, "
        f"{recipe['epochs']} epochs at {_sizes(recipe)}.",
    )
    _write_history(run, root / "training" / "history" / f"{id_}.csv")
    _write_table(table, info)
    return info


def publish_upstream(id_: str, repo_id: str, *, private: bool = False, dry_run: bool = False) -> hub.Push:
    """Push an encoder of others, converted, with their licence and names in its card.

    Args:
        id_: Its id in the zoo, such as "byol-resnet50-imagenet".
        repo_id: "org/name" on the Hugging Face Hub; made if it is not there.
        private: Make it private.
        dry_run: Only compare.

    Raises:
        PublishError: It was trained by this project.
        sslzoo.hub.HubError: It cannot be pushed; says why and what to do.
        sslzoo.downloads.DownloadError: It is not on this machine and cannot be downloaded.
    """
    info = zoo.info(id_)
    if info.upstream is None:
        raise PublishError(f"{info.id} was trained by this project. Publish it with: sslzoo publish --zoo ORG")
    folder = weights.locate(info.id)
    card = render_card(info.id, weights.read_config(folder), info=info, repository=repo_id)
    return push(folder, repo_id, card=card, private=private, dry_run=dry_run)


def _finished(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and facts of a finished run."""
    if not (run / weights.CONFIG).is_file() and (run / CHECKPOINT).is_file():
        raise PublishError(f"{run} is not finished: go on with the same command and --resume.")
    block = weights.read_config(weights.locate(run)).get("sslzoo") or {}
    if not block.get("run") or not (run / LOG).is_file():
        raise PublishError(f"{run} is no folder of a finished run: its config.json or {LOG} does not say how it ran.")
    return block["recipe"], block["run"]


def _hardware(facts: Mapping[str, Any]) -> str:
    return f"{facts['processes']} × {facts['device']}" if facts["processes"] > 1 else str(facts["device"])


def _write_history(run: Path, path: Path) -> None:
    """Summary of a run's log: first line, looks at the features (once an epoch, as a rule), warnings, last line."""
    steps: dict[int, dict[str, Any]] = {}
    for line in read_log(run):
        steps.setdefault(line["step"], {}).update(line)
    rows = list(steps.values())
    kept = [row for i, row in enumerate(rows) if i in (0, len(rows) - 1) or "epoch" in row or "warning" in row]
    columns = list(dict.fromkeys(["step", "epoch", *(key for row in kept for key in row)]))
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in kept)


def _write_table(path: Path, info: zoo.ModelInfo) -> None:
    """Add a model to zoo.toml, behind those of this project, or replace its table; every other line stays as it is."""
    # a run has neither a variant nor files of others
    values = {field.name: getattr(info, field.name) for field in fields(info) if field.name not in UNWRITTEN}
    header = f'[models."{info.id}"]'
    new = [header, *(f"{k} = {_toml(list(v) if isinstance(v, tuple) else v)}" for k, v in values.items())]
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if header in lines:
        start = lines.index(header)
        end = start + 1
        while end < len(lines) and lines[end].strip() and not lines[end].startswith("["):
            end += 1
        lines[start:end] = new
    else:
        lines.append("")
        end = next((i for i, line in enumerate(lines) if line.startswith(OTHERS)), len(lines))
        lines[end:end] = [*new, ""]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("\n".join(lines).rstrip("\n") + "\n", encoding="utf-8")
    try:
        zoo.read_table.__wrapped__(partial)  # its cache would never see that the file changes
    except zoo.ZooTableError:
        partial.unlink()
        raise
    partial.replace(path)
    zoo.read_table.cache_clear()
