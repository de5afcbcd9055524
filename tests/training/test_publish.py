import csv
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import sslzoo
from sslzoo import hub, weights, zoo
from sslzoo.conversion import expected, make_config
from sslzoo_training.__main__ import app
from sslzoo_training.checkpoint import Log
from sslzoo_training.method import find_method, list_methods
from sslzoo_training.publish import PublishError, command, data_name, publish, write_run
from sslzoo_training.recipe import list_recipes, make_plan, parse_overrides

ID = "byol-resnet18quarter-cifar10"
FACTS = {"images": 50, "steps": 40, "seconds": 90, "device": "CPU", "processes": 1, "torch": "2.15", "commit": "abc"}


@pytest.fixture
def run(tmp_path):
    """A finished run, as the loop leaves it."""
    folder = tmp_path / "run"
    recipe = make_plan("byol", "cifar10_cpu", {"epochs": 2}).to_dict()
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=64)
    write_run(folder, encoder.model, encoder.config, recipe, Path("some/cifar10/train"), FACTS)
    log = Log(folder, 0)
    for step in range(10, 50, 10):
        log.write({"step": step, "loss": 4 / step, "lr": 0.1})
        if step % 20 == 0:
            log.write({"step": step, "encoder_rank": float(step), "epoch": step / 20})
    return folder


@pytest.fixture
def root(tmp_path):
    """A checkout with nothing in its zoo."""
    root = tmp_path / "checkout"
    (root / "sslzoo").mkdir(parents=True)
    (root / "training").mkdir()
    (root / "pyproject.toml").write_text("")
    (root / "sslzoo" / "zoo.toml").write_text("# The zoo.\n\n[aliases]  # short names\n\n[models]\n")
    return root


def test_a_run_says_how_it_came_about_and_how_to_repeat_it(run):
    config = weights.read_config(run)
    block = config["sslzoo"]
    assert (block["method"], block["dataset"], block["run"]) == ("byol", "cifar10", FACTS)
    assert block["command"] == "sslzoo pretrain byol epochs=2 --recipe cifar10_cpu --seed 0 --data DATA --out RUN"
    assert config["pretrained_cfg"]["tag"] == "byol_cifar10"
    assert "Apache" not in (run / "README.md").read_text()


def _plan_of(line):
    words = shlex.split(line)
    assert words[:2] == ["sslzoo", "pretrain"]
    options = dict(pairwise(words))
    settings = [word for word in words if "=" in word]
    return make_plan(words[2], options["--recipe"], parse_overrides([*settings, f"seed={options['--seed']}"]))


@pytest.mark.parametrize(
    ("method", "recipe"), [(method, name) for method in list_methods() for name in list_recipes(method)]
)
def test_the_command_gives_the_same_plan_again(method, recipe):
    count = len(find_method(method).VIEWS)
    changed = {"seed": 3, "image_size": 48, "lr": 0.07, "optimizer": "lars"}
    views = [{"scale": [0.3, 0.9], "interpolation": "bilinear", "flip": 0.25}, *[{"pad": 2}] * (count - 1)]
    for overrides in ({}, changed, changed | {"views": views}):
        plan = make_plan(method, recipe, overrides)
        assert _plan_of(command(plan.to_dict())) == plan


def test_bundled_weights_are_listed_checked_and_give_the_runs_features(run, root, monkeypatch):
    info = publish(run, ID, data="cifar10", root=root)
    monkeypatch.setattr(zoo, "TABLE", root / "sslzoo" / "zoo.toml")
    monkeypatch.setattr(weights, "BUNDLED", root / "sslzoo" / "bundled")
    assert sslzoo.info(ID) == info
    assert info.params == sum(p.numel() for p in sslzoo.load(run).parameters())
    assert (info.epochs, info.hardware, info.licence, info.input_size) == (2, "CPU", "apache-2.0", (3, 64, 64))
    assert info.paper.endswith("Grill et al. 2020")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        half, full = sslzoo.load(ID)(images), sslzoo.load(run)(images)
    assert torch.allclose(half, full, rtol=0.02, atol=0.02 * float(full.abs().mean()))
    assert info.bytes < 0.6 * (run / "model.safetensors").stat().st_size
    assert weights.read_config(root / "sslzoo/bundled" / ID)["sslzoo"]["run"] == FACTS


def test_the_table_keeps_every_other_line(run, root):
    table = root / "sslzoo" / "zoo.toml"
    before = table.read_text()
    publish(run, ID, data="cifar10", root=root, summary="One.")
    once = table.read_text()
    assert once.startswith(before.rstrip("\n"))
    table.write_text(once + "\n# the end\n")
    publish(run, ID, data="cifar10", root=root, summary='Say "two".', hardware="1 × H100")
    again = table.read_text()
    changed = once.replace('"One."', r'"Say \"two\"."').replace('hardware = "CPU"', 'hardware = "1 × H100"')
    assert again == f"{changed}\n# the end\n"
    assert zoo.read_table(table).models[-1].summary == 'Say "two".'


def test_a_new_model_comes_before_those_of_others(run, root):
    table = root / "sslzoo" / "zoo.toml"
    table.write_text(table.read_text().rstrip("\n") + "\n\n# ---- Others\n# and their models\n")
    publish(run, ID, data="cifar10", root=root)
    text = table.read_text()
    assert text.index("[models]") < text.index(ID) < text.index("\n\n# ---- Others\n# and their models\n")
    assert text.endswith("their models\n")
    assert "\n\n\n" not in text


def test_the_history_has_both_ends_and_every_look(run, root):
    publish(run, ID, data="cifar10", root=root)
    with (root / "training" / "history" / f"{ID}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["step"], r["epoch"], r["loss"], r["encoder_rank"]) for r in rows] == [
        ("10", "", "0.4", ""),
        ("20", "1", "0.2", "20"),
        ("40", "2", "0.1", "40"),
    ]


def test_what_cannot_be_published_is_refused_and_nothing_is_written(run, root, tmp_path):
    with pytest.raises(PublishError, match=f"the id of this run is {ID}"):
        publish(run, "byol-resnet50-cifar10", data="cifar10", root=root)
    with pytest.raises(PublishError, match="no checkout"):
        publish(run, ID, data="cifar10", root=tmp_path)
    random = tmp_path / "random"
    sslzoo.create("resnet18quarter", seed=0).save_pretrained(random)
    with pytest.raises(PublishError, match="no folder of a finished run"):
        publish(random, ID, data="cifar10", root=root)
    (run / "config.json").unlink()
    (run / "checkpoint.pt").touch()
    with pytest.raises(PublishError, match="not finished: go on with"):
        publish(run, ID, data="cifar10", root=root)
    assert not (root / "sslzoo" / "bundled").exists()
    assert not zoo.read_table(root / "sslzoo" / "zoo.toml").models


def test_the_command_line_reports_what_is_wrong(run):
    result = CliRunner().invoke(app, ["publish", str(run), "--id", "byol-x-y", "--data-name", "cifar10"])
    assert result.exit_code == 1
    assert f"the id of this run is {ID}, got byol-x-y" in result.output


@pytest.mark.parametrize("method", list_methods())
def test_every_method_names_its_paper(method):
    paper = find_method(method).PAPER
    assert paper.url.startswith("https://")
    assert str(paper).startswith(f"{paper.title}. ")
    assert str(paper).endswith(str(paper.year))


def test_papers_are_cited_as_usual():
    cited = {method: str(find_method(method).PAPER).partition(". ")[2] for method in ("byol", "simsiam", "rotation")}
    assert cited == {"byol": "Grill et al. 2020", "simsiam": "Chen & He 2021", "rotation": "Gidaris et al. 2018"}


@pytest.mark.parametrize(
    ("path", "name"), [("a/cifar10/train", "cifar10"), ("a/Photos", "photos"), ("a/x.npz", "x"), ("a/b/images", "b")]
)
def test_data_is_named_by_its_folder(path, name):
    assert data_name(Path(path)) == name


def test_an_encoder_of_others_is_pushed_with_its_licence(monkeypatch, tmp_path):
    folder = tmp_path / "sela-resnet18-imagenet"
    info = zoo.info("sela-resnet18-imagenet")
    config = make_config(info)
    state = expected(config)
    weights.write_folder(folder, config, {name: torch.zeros(t.shape, dtype=t.dtype) for name, t in state.items()})
    monkeypatch.setattr(weights, "locate", lambda name, **options: folder)
    pushed = {}

    def push_folder(staged, repo_id, *, private, dry_run):
        pushed.update(card=(staged / "README.md").read_text(), repo_id=repo_id, private=private, dry_run=dry_run)
        return hub.Push(repo_id, (hub.File("README.md", 1, "new"),), "https://hub.example/commit")

    monkeypatch.setattr(hub, "push_folder", push_folder)
    words = ["publish", "--upstream", info.id, "org/sela", "--private"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert (pushed["repo_id"], pushed["private"], pushed["dry_run"]) == ("org/sela", True, False)
    assert "license: mit" in pushed["card"]
    assert "The weights are by Yuki M. Asano, github.com/yukimasano/self-label" in pushed["card"]
    assert 'timm.create_model("hf-hub:org/sela"' in pushed["card"]
    ours = CliRunner().invoke(app, ["publish", "--upstream", ID, "org/x"])
    assert "was trained by this project" in ours.output
    assert CliRunner().invoke(app, ["publish", "run"]).exit_code == 2
