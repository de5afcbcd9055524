"""The card of a fine-tuned classifier: its code runs, the Hub reads its front matter, it claims what was recorded."""

import re

import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image
from sklearn.datasets import load_sample_images

import sslzoo
from sslzoo import weights
from sslzoo.model_card import render_model_card

PARENT = "byol-resnet18quarter-cifar10"
SHA = "0123456789abcdef0123456789abcdef01234567"
FINETUNING = {
    "epochs": 12, "steps": None, "batch_size": 32, "lr": 5e-4, "weight_decay": 0.05, "layer_decay": 0.8,
    "freeze_encoder": False, "class_weights": None, "val_fraction": 0.2, "seed": 3, "bf16": False, "data": "pets",
    "n_train": 1200, "n_val": 300, "metrics": {"loss": 0.31, "accuracy": 0.9125, "balanced_accuracy": 0.9},
    "best_epoch": 7, "validation": "300 of the 1,500 images",
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    """A classifier of two classes on an encoder of the zoo, with a head that is not zero."""
    model = sslzoo.classifier(PARENT, classes=["cat", "dog"])
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "pets-model", finetuning=FINETUNING)
    return tmp_path / "pets-model"


@pytest.fixture
def config(folder):
    return weights.read_model_config(folder)


def test_the_front_matter_names_the_encoder_and_the_accuracy(config):
    data = ModelCard(render_model_card("pets-model", config)).data  # raises for a model-index that lacks something
    assert (data.base_model, data.pipeline_tag, data.library_name) == (PARENT, "image-classification", "timm")
    found = {(r.metric_type, r.metric_value, r.dataset_name, r.dataset_split) for r in data.eval_results}
    assert found == {("accuracy", 0.9125, "pets", "validation"), ("balanced_accuracy", 0.9, "pets", "validation")}


def test_it_tells_what_was_recorded(config):
    text = render_model_card("pets-model", config)
    for part in (
        "2 classes", f"`{PARENT}` (resnet18quarter, pretrained by byol on CIFAR-10), fine-tuned as a whole",
        "`cat`, `dog`.", "pets, 1 200 images with labels", "| seed | 3 |", "| accuracy | 91.2 % |", "Of epoch 7",
        "| loss | 0.310 |", "apache-2.0", "@misc{", "validation, 300 images",
    ):  # fmt: skip
        assert part in text, part
    assert "None" not in re.sub("```.*?```", "", text, flags=re.DOTALL)


def test_a_licence_is_stated_where_it_is_given(config):
    assert ModelCard(render_model_card("pets-model", config)).data.license is None
    card = ModelCard(render_model_card("pets-model", config, licence="mit"))
    assert card.data.license == "mit"
    assert "Weights: mit. The encoder that it started from: apache-2.0." in card.content


def test_without_a_run_a_name_or_validation_it_claims_nothing(model, tmp_path):
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32)
    sslzoo.classifier(encoder, num_classes=30).save_pretrained(tmp_path)
    config = weights.read_model_config(tmp_path)
    text = render_model_card("fresh", config)
    data = ModelCard(text).data
    assert data.base_model is None
    assert data.eval_results is None
    for part in ("an encoder without a name", "has not been fine-tuned", "no validation images", "and 10 more"):
        assert part in text, part
    assert "None" not in re.sub("```.*?```", "", text, flags=re.DOTALL)
    config["sslzoo"]["finetuning"] = {**FINETUNING, "metrics": {}, "n_val": 0, "freeze_encoder": True}
    text = render_model_card("frozen", config)
    assert "which was not changed" in text
    assert "Not measured" in text


@pytest.mark.parametrize("kind", ["run", "hub"])
def test_its_code_runs_and_gives_the_models_answer(model, folder, config, kind, tmp_path, monkeypatch, capsys):
    desk = folder if kind == "run" else tmp_path
    card = render_model_card("pets-model", config, repository="org/pets" if kind == "hub" else None)
    cached = tmp_path / "cache" / "models--org--pets"  # as huggingface_hub's cache has it
    (cached / "snapshots").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "snapshots" / SHA).symlink_to(folder)
    (cached / "refs" / "main").write_text(SHA)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    Image.fromarray(load_sample_images().images[0]).resize((96, 72)).save(desk / "photo.jpg")
    monkeypatch.chdir(desk)
    scope = {}
    with torch.no_grad():
        expected = model(model.transform(sslzoo.read_image("photo.jpg"))[None])["logits"]
        for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            scope.pop("logits", None)
            exec(code, scope)
            if "logits" in scope:
                torch.testing.assert_close(scope["logits"], expected, rtol=1e-5, atol=1e-5)
                assert scope["label"] == model.classes[int(expected.argmax())]
    best = max(scope["answers"], key=lambda answer: answer["score"])
    assert best["label"] == model.classes[int(expected.argmax())]
    assert best["score"] == pytest.approx(float(expected.softmax(1).max()), abs=1e-5)
    assert best["label"] in capsys.readouterr().out


def of_others():
    """An encoder that pads as BYOL's authors do, which other libraries do not know of."""
    config = sslzoo.create("resnet18", seed=0, image_size=64).config
    config["sslzoo"]["padding"] = "same"
    network = sslzoo.create("resnet18", seed=0, image_size=64).model
    return sslzoo.Encoder(network, config)


@pytest.mark.parametrize("kind", ["lightness", "of others"])
def test_code_for_unusual_encoders_gives_the_models_answer_too(kind, tmp_path, monkeypatch):
    lightness = kind == "lightness"
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=64, lightness=True) if lightness else of_others()
    model = sslzoo.classifier(encoder, classes=["cat", "dog"])
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path)
    Image.fromarray(load_sample_images().images[0]).resize((96, 72)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found, scope = [], {}
    with torch.no_grad():
        expected = model(model.transform(sslzoo.read_image("photo.jpg"))[None])["logits"]
        card = render_model_card("unusual", weights.read_model_config(tmp_path))
        for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL):
            scope.pop("logits", None)
            exec(code, scope)
            found += [scope["logits"]] if "logits" in scope else []
    assert len(found) == (2 if lightness else 1)  # timm, and transformers where it builds the same network
    for logits in found:
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
