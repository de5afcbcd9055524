import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import sslzoo
from sslzoo import weights, zoo
from sslzoo.zoo import TABLE
from sslzoo_evaluations import cards
from sslzoo_evaluations.__main__ import main
from sslzoo_evaluations.cards import CardsError, stale_files
from sslzoo_evaluations.results import Result, append

ID = "byol-resnet18quarter-cifar10"
DIGEST = "ab" * 32
ROW = Result(ID, "linear", "cifar10", "top1", 0.6, 0, 100, 50, DIGEST, "", "1a2b3c4", "2026-01-31")
TABLES = ("results", "low-shot", "segmentation", "detection")
MODEL = {"sha256": DIGEST, "summary": "S."}


def test_cards_and_readme_of_this_checkout_are_fresh():
    checkout = Path(__file__).parents[2]  # not `cards.CHECKOUT`: the package may be installed elsewhere
    stale = [str(path.relative_to(checkout)) for path in stale_files(checkout)]
    assert not stale, f"stale: {', '.join(stale)}. Run: python -m sslzoo_evaluations cards"


@pytest.fixture
def root(tmp_path, zoo_toml):
    """A checkout with one model, its result, and baselines."""
    for name in ("sslzoo", "evaluations", "hub_cards"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "sslzoo" / "zoo.toml").write_text(zoo_toml({ID: MODEL}))
    marks = [f"<!-- {name}:{end} -->" for name in TABLES for end in ("begin", "end")]
    (tmp_path / "README.md").write_text("\n".join(["before", *marks, "after", ""]))
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=64)
    recipe = {"arch": "resnet18quarter", "epochs": 30, "batch_size": 128, "seed": 0, "image_size": 64}
    encoder.config["sslzoo"] |= {"method": "byol", "dataset": "cifar10", "recipe": recipe}
    weights.write_folder(tmp_path / "sslzoo" / "bundled" / ID, encoder.config, {})
    file = tmp_path / "evaluations" / "results.csv"
    append(ROW, file)
    append(replace(ROW, model="pixels", value=0.4, sha256=""), file)
    append(replace(ROW, model="random:resnet18quarter@64", value=0.3, sha256="cd"), file)
    append(replace(ROW, model="random:resnet18quarter@32", value=0.2, sha256="ef"), file)
    append(replace(ROW, seed=1, value=0.99, sha256="other weights"), file)
    append(replace(ROW, model=f"run:{ID}", value=0.98), file)
    return tmp_path


@pytest.fixture
def write(root, monkeypatch):
    monkeypatch.setattr(cards, "CHECKOUT", root)
    return lambda: main(["cards"])


def test_writing_makes_everything_fresh(root, write, capsys):
    (root / "hub_cards" / "gone-from-zoo.md").touch()
    assert write() == 0
    assert set(capsys.readouterr().out.splitlines()) == {
        "removed hub_cards/gone-from-zoo.md", f"wrote hub_cards/{ID}.md", "wrote README.md",
    }  # fmt: skip
    assert stale_files(root) == {}


def test_tables_show_current_weights_only(root, write):
    write()
    readme, card = (root / "README.md").read_text(), (root / "hub_cards" / f"{ID}.md").read_text()
    assert readme.startswith("before\n<!-- results:begin -->\n| top-1")
    empty = "".join(f"<!-- {name}:begin -->\n\n<!-- {name}:end -->\n" for name in TABLES[1:])
    assert readme.endswith(f"<!-- results:end -->\n{empty}after\n")
    for text in (readme, card):
        assert text.index("60.0 %") < text.index("40.0 %") < text.index("30.0 %")
        assert "99.0 %" not in text  # measured on weights that the zoo no longer has
        assert "98.0 %" not in text
    assert "(resnet18quarter, 32 px)" in readme
    assert "(resnet18quarter, 32 px)" not in card  # another input size than the model's


@pytest.mark.parametrize("change", ["result", "table", "card"])
def test_any_change_makes_files_stale(root, write, zoo_toml, change):
    write()
    if change == "result":
        append(replace(ROW, value=0.61), root / "evaluations" / "results.csv")
    elif change == "table":
        (root / "sslzoo" / "other.toml").write_text(zoo_toml({ID: {**MODEL, "summary": "T."}}))
        (root / "sslzoo" / "zoo.toml").unlink()
        shutil.move(root / "sslzoo" / "other.toml", root / "sslzoo" / "zoo.toml")
        cards.zoo.read_table.cache_clear()
    else:
        (root / "hub_cards" / f"{ID}.md").write_text("edited")
    assert Path(root / "hub_cards" / f"{ID}.md") in stale_files(root)


def test_a_readme_without_marks_is_an_error(root, write, capsys):
    (root / "README.md").write_text("nothing")
    assert write() == 1
    assert "<!-- results:begin -->" in capsys.readouterr().err
    with pytest.raises(CardsError, match="no checkout"):
        stale_files(TABLE.parent)


def test_a_network_of_half_an_image_stands_beside_the_pixels_of_that_half():
    encoder = sslzoo.create("tophalf_mlp", seed=0)
    row = zoo.ModelInfo(
        "nwj-tophalf_mlp-mnist", "nwj", "tophalf_mlp", "mnist", "apache-2.0", 100, 238_300, encoder.input_size, DIGEST,
        1, "bundled", 45, "CPU", "P", "https://x.org/1", "S.",
    )  # fmt: skip
    names = [row.id, "random:tophalf_mlp@28", "random:tophalf_conv@28", "pixels", "pixels:tophalf"]
    results = [replace(ROW, model=name, data="mnist", sha256=DIGEST) for name in names]
    kept = cards.beside(row, cards.current([*results, ROW], [row]))
    assert [result.model for result in kept] == [names[0], names[1], names[3], names[4]]
