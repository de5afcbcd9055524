"""The table of the zoo: reading, filtering, printing, suggesting."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sslzoo import measured, zoo

IDS = (
    "byol-resnet18quarter-cifar10",
    "simsiam-resnet18quarter-cifar10",
    "byol-resnet50-cifar10",
    "sela-resnet50-imagenet",
)


LICENCES = {IDS[3]: {"licence": "CC-BY-NC-4.0"}}


@pytest.fixture
def table(use_zoo: Callable[..., Path]) -> Path:
    return use_zoo({id_: LICENCES.get(id_, {}) for id_ in IDS}, {"byol-resnet50": "byol-resnet50-cifar10"})


def test_the_shipped_table_reads_and_its_files_are_where_it_says() -> None:
    for model in zoo.list_models():
        assert model.id == "-".join(filter(None, (model.method, model.arch, model.data, model.variant)))
        if model.upstream is not None:
            continue
        assert model.source == "bundled"
        assert (zoo.TABLE.parent / "bundled" / model.id / "model.safetensors").stat().st_size == model.bytes


def test_list_models_is_a_sequence(table: Path) -> None:
    models = zoo.list_models()
    assert [model.id for model in models] == list(IDS)
    assert len(models) == 4
    assert models[1].method == "simsiam"
    assert models[-1].id == IDS[-1]
    assert isinstance(models[:2], zoo.ModelTable)
    assert [model.id for model in models[:2]] == list(IDS[:2])
    assert models[0] in models
    assert models[0].input_size == (3, 64, 64)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"method": "byol"}, {IDS[0], IDS[2]}),
        ({"method": "BYOL", "arch": "ResNet50"}, {IDS[2]}),
        ({"data": "imagenet"}, {IDS[3]}),
        ({"licence": "cc-by-nc-4.0"}, {IDS[3]}),
        ({"method": "byol", "data": "imagenet"}, set()),
    ],
)
def test_filters(table: Path, filters: dict[str, str], expected: set[str]) -> None:
    assert {model.id for model in zoo.list_models(**filters)} == expected


def test_unknown_filter_value_names_the_values(table: Path) -> None:
    with pytest.raises(ValueError, match=r"No model has method='moco'. There are: byol, sela, simsiam\."):
        zoo.list_models(method="moco")


def test_table_in_a_terminal(table: Path) -> None:
    lines = str(zoo.list_models()).splitlines()
    assert lines[0].split() == [
        "id", "method", "arch", "data", "features", "params", "size", "licence", "published", "measured",
    ]  # fmt: skip
    assert lines[1].split() == [
        IDS[0],
        "byol",
        "resnet18quarter",
        "cifar10",
        "128",
        "0.70",
        "M",
        "1.5",
        "MB",
        "apache-2.0",
    ]
    assert len(lines) == 5
    assert len({line.index("M ") for line in lines[1:]}) == 1  # columns stand under each other
    assert repr(zoo.list_models()) == str(zoo.list_models())


def test_table_in_a_notebook_is_escaped(use_zoo: Callable[..., Path]) -> None:
    use_zoo({id_: {"licence": "<script>"} for id_ in IDS})
    html = zoo.list_models()._repr_html_()
    assert html.count("<tr>") == 5
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_empty_table(use_zoo: Callable[..., Path]) -> None:
    use_zoo({}).write_text("")
    assert len(zoo.list_models()) == 0
    assert str(zoo.list_models()) == "no models"
    assert "no models" in zoo.list_models()._repr_html_()
    with pytest.raises(zoo.UnknownModelError, match="the zoo has no models"):
        zoo.info("byol")


def test_info_by_id_and_alias(table: Path) -> None:
    assert zoo.info("byol-resnet50-cifar10").arch == "resnet50"
    assert zoo.info("byol-resnet50") == zoo.info("byol-resnet50-cifar10")
    assert zoo.resolve_alias("byol-resnet50") == "byol-resnet50-cifar10"
    assert zoo.resolve_alias("anything") == "anything"
    assert "licence       apache-2.0" in str(zoo.info("byol-resnet50"))


@pytest.mark.parametrize(
    ("asked", "suggested", "not_suggested"),
    [
        ("byol", {IDS[0], IDS[2], "byol-resnet50"}, {IDS[1], IDS[3]}),
        ("boyl", {IDS[0], IDS[2]}, {IDS[3]}),
        ("BYOL-ResNet50-CIFAR10", {IDS[2]}, set()),
        ("byol_resnet18quarter_cifar10", {IDS[0]}, {IDS[3]}),
        ("imagenet", {IDS[3]}, {IDS[0]}),
        ("xyzzy", set(), set(IDS)),
    ],
)
def test_unknown_id_names_the_nearest(table: Path, asked: str, suggested: set[str], not_suggested: set[str]) -> None:
    with pytest.raises(zoo.UnknownModelError) as caught:
        zoo.info(asked)
    message = str(caught.value)
    assert repr(asked) in message
    assert all(repr(id_) in message for id_ in suggested), message
    assert not any(repr(id_) in message for id_ in not_suggested), message
    assert "shows all 4" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 30", "epochs = 30\nepoch = 3", "unknown 'epoch'. Known: arch, "),
        ("epochs = 30\n", "", "missing epochs"),
        ("epochs = 30", 'epochs = "30"', "epochs must be an integer, got '30'"),
        ('hardware = "2 CPU cores"', "hardware = 2", "hardware must be text, got 2"),
        ("input_size = [3, 64, 64]", "input_size = 64", r"input_size must be \[channels, height, width\], got 64"),
        ("[aliases]", "[alias]", "unknown 'alias'"),
        ("[aliases]", '[aliases]\nshort = "gone-resnet50-cifar10"', "alias 'short' points to 'gone-resnet50-cifar10'"),
        ("[aliases]", f'[aliases]\n{IDS[1]} = "{IDS[0]}"', "is also the id of a model"),
        ("[aliases]", "[aliases", "is not TOML"),
    ],
)
def test_a_wrong_table_is_refused(use_zoo: Callable[..., Path], old: str, new: str, message: str) -> None:
    path = use_zoo({id_: {} for id_ in IDS[:2]})
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(zoo.ZooTableError, match=message):
        zoo.read_table(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("accuracy = 74.4", 'accuracy = "74.4"', r"upstream: accuracy must be a number such as 0\.5, got '74\.4'"),
        ("mean = [0.485,", 'mean = ["red",', "mean must be numbers"),
        ("crop_pct = 0.875", "crop_pct = 0.875\ncrop = 1", "upstream: unknown 'crop'"),
        ('{ family = "byol", ', "{ ", "upstream, files: missing family"),
        ("files = [", "files = []\nfile = [", "unknown 'file'"),
        ('source = "upstream"', 'source = "bundled"', 'source = "upstream" and a table upstream belong together'),
    ],
)
def test_a_wrong_table_of_others_files_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "zoo.toml"
    text = zoo.TABLE.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(zoo.ZooTableError, match=message):
        zoo.read_table(path)


def test_info_of_others_weights_says_where_they_are_and_whose_figure_it_is() -> None:
    lines = str(zoo.info("byol-resnet50-imagenet")).splitlines()
    assert "accuracy         74.4 % (published)" in lines
    assert lines[-1].endswith("deepmind-byol/checkpoints/pretrain_res50x1.pkl (596 MB)")
    assert zoo.info("byol-resnet18quarter-cifar10").published == ""


def test_what_others_publish_and_what_was_measured_here_stand_apart(
    use_zoo: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_zoo({IDS[0]: {"sha256": "ab"}, IDS[1]: {"sha256": "cd"}})
    results = tmp_path / "results.csv"
    rows = [
        (IDS[0], "linear", "cifar10", 0.9, 0, "ab"),
        (IDS[0], "linear", "cifar10", 0.5, 0, "ab"),  # measured anew
        (IDS[0], "linear", "cifar10", 0.6, 1, "ab"),
        (IDS[0], "linear", "mnist", 0.95, 0, "ab"),
        (IDS[0], "knn", "cifar10", 0.4, 0, "ab"),
        (IDS[1], "linear", "cifar10", 0.7, 0, "of weights before"),
    ]
    lines = [f"{m},{protocol},{data},top1,{value},{seed},{sha}" for m, protocol, data, value, seed, sha in rows]
    results.write_text("\n".join(["model,protocol,data,metric,value,seed,sha256", *lines, ""]))
    monkeypatch.setattr(measured, "results", lambda: results)
    assert [(model.published, model.measured) for model in zoo.list_models()] == [("", "55.0 %"), ("", "")]
    assert str(zoo.list_models()).splitlines()[1].split()[-3:] == ["apache-2.0", "55.0", "%"]
    assert "measured      55.0 % (linear probe on cifar10, here)" in str(zoo.info(IDS[0]))
    monkeypatch.setattr(measured, "results", lambda: None)  # without the package that has them
    assert zoo.info(IDS[0]).measured == ""


def test_the_measured_figures_of_the_shipped_table_are_found() -> None:
    assert zoo.info("byol-resnet18quarter-cifar10").measured.endswith(" %")
    assert (zoo.info("byol-resnet50-imagenet").published, zoo.info("byol-resnet50-imagenet").measured) == ("74.4 %", "")


def test_the_table_is_read_once(table: Path) -> None:
    first = zoo.read_table(table)
    table.unlink()
    assert zoo.read_table(table) is first


def test_import_and_list_need_no_torch() -> None:
    code = (
        "import sys, sslzoo\n"
        "str(sslzoo.list_models()), sslzoo.ModelInfo, dir(sslzoo)\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
