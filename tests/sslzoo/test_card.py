import re

import pytest
from huggingface_hub import ModelCard, constants
from PIL import Image
from sklearn.datasets import load_sample_images

import sslzoo
from sslzoo import weights
from sslzoo.card import render_card, results_table
from sslzoo.zoo import ModelInfo

NAME = "byol-resnet18quarter-cifar10"
SHA = "0123456789abcdef0123456789abcdef01234567"


def config_of(encoder, arch):
    block = {
        "schema": 1,
        "method": "byol",
        "dataset": "cifar10",
        "recipe": {"arch": arch, "image_size": 64, "epochs": 30, "batch_size": 128, "seed": 7},
        "command": "sslzoo pretrain byol --recipe r --seed 7 --data DATA --out RUN",
        "paper": {"title": "A Title", "authors": "Grill, Jean and others", "year": 2020, "url": "https://x.org/1"},
        "run": {"images": 50000, "steps": 11700, "seconds": 5400, "device": "CPU", "processes": 2, "commit": "abc1234"},
    }
    return {**encoder.config, "sslzoo": block}


@pytest.fixture(scope="module")
def encoder():
    return sslzoo.create("resnet18quarter", seed=0, image_size=64)


@pytest.fixture(scope="module")
def config(encoder):
    return config_of(encoder, "resnet18quarter")


@pytest.fixture(scope="module")
def info():
    return ModelInfo(
        NAME, "byol", "resnet18quarter", "cifar10", "apache-2.0", 128, 701720, (3, 64, 64), "ab", 1, "bundled", 30,
        "2 CPU cores", "A Title. Grill et al. 2020", "https://x.org/1", "A thin encoder.",
    )  # fmt: skip


def row(model, protocol, value, seed=0, data="cifar10", settings="views=4 weight_decay=1e-05"):
    return {
        "model": model, "protocol": protocol, "data": data, "metric": "top1", "value": value, "seed": seed,
        "settings": settings, "n_train": 50000, "n_test": 10000, "commit": "1a2b3c4", "date": "2026-01-31",
    }  # fmt: skip


ROWS = [
    row("pixels", "linear", 0.4),
    row("random:resnet18quarter@64", "linear", 0.3, seed=0),
    row("random:resnet18quarter@64", "linear", 0.32, seed=1),
    row(NAME, "linear", 0.7512),
    row(NAME, "knn", 0.7),
    row("pixels", "knn", 0.35),
]


def test_the_table_goes_from_best_to_worst_and_averages_seeds():
    assert results_table(ROWS).splitlines() == [
        "| top-1 accuracy on CIFAR-10, test | linear probe | kNN |",
        "| --- | ---: | ---: |",
        f"| `{NAME}` | 75.1 % | 70.0 % |",
        "| raw pixels | 40.0 % | 35.0 % |",
        "| random weights (resnet18quarter, 64 px) | 31.0 % (30.0 %–32.0 %, 2 seeds) | – |",
    ]


def test_each_data_set_has_its_table():
    digits = [row("pixels", "knn", 0.9, data="digits"), row("pixels:tophalf", "knn", 0.8, data="digits")]
    tables = results_table([*ROWS, *digits]).split("\n\n")
    assert len(tables) == 2
    assert tables[1].splitlines() == [
        "| top-1 accuracy on digits, test | kNN |",
        "| --- | ---: |",
        "| raw pixels | 90.0 % |",
        "| raw pixels of the top half | 80.0 % |",
    ]


def test_the_front_matter_is_what_the_hub_reads(config, info):
    data = ModelCard(render_card(NAME, config, ROWS, info)).data  # raises for a model-index that lacks something
    assert data.library_name == "timm"
    assert data.license == "apache-2.0"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert data.pipeline_tag == "image-feature-extraction"
    assert {"timm", "transformers", "sslzoo", "byol"} <= set(data.tags)
    found = {(r.task_name, r.metric_value, r.dataset_split) for r in data.eval_results}
    assert found == {("linear probe on frozen features", 0.7512, "test"), ("kNN on frozen features", 0.7, "test")}


def test_a_zoo_card_tells_what_ran(config, info):
    text = render_card(NAME, config, ROWS, info)
    for part in (
        "A thin encoder.", "0.70 M parameters", "50 000 images", "11 700 steps of 128 images", "| seed | 7 |",
        "1.5 hours", "2 CPU cores", "sslzoo pretrain byol --recipe r --seed 7", "commit 1a2b3c4", "no licence",
        "50 000 training and 10 000 test images", "Weights: apache-2.0", "@misc{grill2020byol,", "title = {A Title}",
        "30 epochs are few",
    ):  # fmt: skip
        assert part in text, part
    assert "None" not in re.sub("```.*?```", "", text, flags=re.DOTALL)


def test_a_card_tells_that_the_views_were_smaller_at_first(config, info):
    config["sslzoo"]["recipe"] |= {"early_size": 0, "early_part": 0.0}
    assert "| views of 64 pixels |" in render_card(NAME, config, ROWS, info)
    config["sslzoo"]["recipe"] |= {"early_size": 32, "early_part": 0.92}
    assert "views of 64 pixels, before that of 32, for 92% of the steps" in render_card(NAME, config, ROWS, info)


def test_a_card_tells_whether_the_probe_saw_crops(config, info):
    crops, mirrored = "centre view and random crops of each training image", "Raw pixels have their mirror image"
    text = render_card(NAME, config, ROWS, info)
    assert crops in text
    assert mirrored in text
    text = render_card(NAME, config, [{**row, "settings": "weight_decay=1e-05"} for row in ROWS], info)
    assert "frozen features of the centre view of each training image" in text
    assert mirrored not in text


def test_a_runs_card_claims_no_licence_and_no_result(config):
    text = render_card("byol-resnet18quarter-cifar10", config)
    data = ModelCard(text).data
    assert data.license is None
    assert data.eval_results is None
    assert "Not measured yet" in text
    assert "apache" not in text.lower()
    assert "| hardware | 2 × CPU |" in text
    assert "None" not in re.sub("```.*?```", "", text, flags=re.DOTALL)


def test_a_card_of_little_known_data_and_an_older_config(config):
    block = {**config["sslzoo"], "dataset": "mine", "run": {}}
    del block["paper"], block["command"]
    text = render_card("byol-resnet18quarter-mine", {**config, "sslzoo": block})
    assert ModelCard(text).data.datasets is None
    assert "Citation" not in text
    assert "None" not in re.sub("```.*?```", "", text, flags=re.DOTALL)


LIBRARIES = {"sslzoo", "timm", "transformers", "torchvision", "segmentation_models_pytorch"}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, with a photograph."""
    desk = tmp_path / "desk"
    desk.mkdir()
    Image.fromarray(load_sample_images().images[0]).resize((96, 72)).save(desk / "photo.jpg")
    monkeypatch.chdir(desk)
    return desk


@pytest.fixture
def publish(desk, use_zoo, tmp_path, monkeypatch):
    """Put an encoder where a card of its kind says it is; returns the card, and the encoder as it is there."""

    def as_run(encoder, config):
        card = render_card(NAME, config)
        weights.write_folder(desk, config, encoder.model.state_dict(), card)
        return (desk / "README.md").read_text(encoding="utf-8"), encoder

    def as_zoo_entry(encoder, config):
        use_zoo({NAME: {}}, encoders={NAME: encoder})
        return render_card(NAME, config, info=sslzoo.info(NAME)), sslzoo.load(NAME)  # in half precision

    def as_repository(encoder, config):
        folder = tmp_path / "cache" / "models--org--name"  # as huggingface_hub's cache has it
        snapshot = folder / "snapshots" / SHA
        weights.write_folder(snapshot, config, encoder.model.state_dict())
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(SHA)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        return render_card(NAME, config, repository="org/name"), encoder

    return {"run": as_run, "zoo": as_zoo_entry, "hub": as_repository}


@pytest.mark.parametrize("kind", ["run", "zoo", "hub"])
@pytest.mark.parametrize("arch", ["resnet18quarter", "resnet18"])
def test_the_code_of_a_card_runs_wherever_the_model_is(publish, run_snippets, arch, kind):
    encoder = sslzoo.create(arch, seed=0, image_size=64)
    card, encoder = publish[kind](encoder, config_of(encoder, arch))
    assert run_snippets(card, encoder) == LIBRARIES - ({"torchvision"} if arch == "resnet18quarter" else set())


def test_the_code_of_a_card_gives_a_lightness_network_its_lightness(publish, run_snippets):
    encoder = sslzoo.create("resnet18", seed=0, image_size=64, lightness=True)
    config = config_of(encoder, "resnet18")
    config["sslzoo"]["input"] = encoder.config["sslzoo"]["input"]
    card, encoder = publish["run"](encoder, config)
    assert run_snippets(card, encoder) == LIBRARIES - {"torchvision"}
    assert "pipeline(" not in card  # it converts all images to RGB


def test_libraries_are_named_where_they_can_load_the_network(config):
    text = render_card("a", config)
    assert "segmentation_models_pytorch" in text
    assert "torchvision" not in text
    assert "torchvision" in render_card("a", {**config, "model_args": {}})
    vit = {**config, "architecture": "vit_small_patch16_224", "model_args": {}}
    text = render_card("a", vit)
    assert "segmentation_models" not in text
    assert "torchvision" not in text
