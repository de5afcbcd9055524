"""One folder, five libraries: each loads what `save_pretrained` wrote and gives the same features.

Differences are measured against the largest feature, where that is above 1: random networks may give hundreds.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import sslzoo
from sslzoo.card import render_card

ARCHS: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet18quarter": {},
    "resnet50": {},
    "vgg16_bn": {},
    "vit_tiny_patch16_224": {"depth": 4},
    "convnext_atto": {},
}
SIDE = 64


@dataclass(frozen=True)
class Saved:
    """An encoder, its folder, an image file, and what the encoder makes of it."""

    arch: str
    encoder: sslzoo.Encoder
    folder: Path
    photo: Path
    batch: Tensor
    features: Tensor

    @property
    def is_vgg(self) -> bool:
        return self.arch.startswith("vgg")

    def pooled(self, maps: Tensor, pooled: Tensor) -> Tensor:
        """What is to be compared: timm's VGG pools after two more layers, and features are the mean of its maps."""
        return maps.mean((2, 3)) if self.is_vgg else pooled


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def _zeros_before_loading(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loader leaves out is 0 and gives other features; drawing random weights would take most of the time."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "normal_", "uniform_", "xavier_uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor.zero_())


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.fromarray(load_sample_images().images[0]).resize((96, 72)).save(path)
    return path


@pytest.fixture(scope="module", params=list(ARCHS))
def saved(request: pytest.FixtureRequest, photo: Path, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    encoder = sslzoo.create(request.param, seed=0, image_size=SIDE, **ARCHS[request.param])
    generator = torch.Generator().manual_seed(0)
    for module in encoder.modules():  # a loader that drops or resets the statistics must not go unseen
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    folder = tmp_path_factory.mktemp("models") / request.param
    encoder.save_pretrained(folder)
    batch = encoder.transform(sslzoo.read_image(photo))[None]
    with torch.no_grad():
        return Saved(request.param, encoder, folder, photo, batch, encoder(batch))


def load_in_sslzoo(saved: Saved) -> None:
    loaded = sslzoo.load(saved.folder)
    assert_same(loaded(saved.batch), saved.features)
    for found, expected in zip(loaded.feature_maps(saved.batch), saved.encoder.feature_maps(saved.batch), strict=True):
        assert_same(found, expected)


def load_in_timm(saved: Saved) -> None:
    model = timm.create_model(f"local-dir:{saved.folder}", pretrained=True).eval()
    maps = model.forward_features(saved.batch)
    assert_same(saved.pooled(maps, model(saved.batch)), saved.features)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    assert_same(transform(Image.open(saved.photo))[None], saved.batch)
    pyramid = timm.create_model(f"local-dir:{saved.folder}", pretrained=True, features_only=True).eval()
    for found, expected in zip(pyramid(saved.batch), saved.encoder.feature_maps(saved.batch), strict=True):
        assert_same(found, expected)


def load_in_transformers(saved: Saved) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(saved.folder)
    processor = transformers.AutoImageProcessor.from_pretrained(saved.folder)
    inputs = processor(Image.open(saved.photo))
    assert_same(inputs["pixel_values"], saved.batch)
    output = model(**inputs)
    assert_same(saved.pooled(output.last_hidden_state, output.pooler_output), saved.features)
    extract = transformers.pipeline("image-feature-extraction", model=str(saved.folder), pool=not saved.is_vgg)
    found = torch.tensor(extract(str(saved.photo)))
    assert_same(saved.pooled(found, found), saved.features)


def load_in_smp(saved: Saved) -> None:
    """The way of the cards, but from a moved folder: what smp saves must not need it any more."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    if saved.arch.startswith("vit"):
        pytest.skip("a vision transformer's maps form no pyramid")
    folder = saved.folder.with_name("elsewhere")
    shutil.copytree(saved.folder, folder)
    model = smp.Unet(
        f"tu-{saved.encoder.config['architecture']}",
        encoder_weights=True,
        pretrained_cfg_overlay={"file": f"{folder}/model.safetensors", "num_classes": 0},
        **saved.encoder.config["model_args"],
        decoder_channels=(8,) * 5,
    ).eval()
    model.config["encoder_weights"] = None
    del model.config["pretrained_cfg_overlay"]
    model.save_pretrained(folder.with_name("segmenter"))
    shutil.rmtree(folder)
    again = smp.from_pretrained(folder.with_name("segmenter")).eval()
    for segmenter in (model, again):
        maps = [m for m in segmenter.encoder(saved.batch) if m.shape[1]]  # ConvNeXt: one of no channels at stride 2
        for found, expected in zip(maps[::-1], saved.encoder.feature_maps(saved.batch)[::-1], strict=False):
            assert_same(found, expected)


def load_in_torchvision(saved: Saved) -> None:
    twin: Callable[[], nn.Module] | None = getattr(torchvision.models, saved.arch, None)
    if twin is None:
        pytest.skip("torchvision has no such network")
    network: Any = twin().eval()
    keys = network.load_state_dict(load_file(saved.folder / "model.safetensors"), strict=False)
    if saved.is_vgg:
        assert all(key.startswith("classifier.") for key in keys.missing_keys)
        assert all(key.startswith("pre_logits.") for key in keys.unexpected_keys)
        assert_same(network.features(saved.batch).mean((2, 3)), saved.features)
    else:
        assert set(keys.missing_keys) == {"fc.weight", "fc.bias"}
        assert not keys.unexpected_keys
        network.fc = nn.Identity()
        assert_same(network(saved.batch), saved.features)


LOADERS = {
    "sslzoo": load_in_sslzoo,
    "timm": load_in_timm,
    "transformers": load_in_transformers,
    "smp": load_in_smp,
    "torchvision": load_in_torchvision,
}


@pytest.mark.parametrize("library", LOADERS)
def test_every_library_gives_the_features_of_the_folder(saved: Saved, library: str) -> None:
    LOADERS[library](saved)


def test_the_code_of_its_card_gives_the_same_features(
    saved: Saved, run_snippets: Callable[[str, sslzoo.Encoder], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    card = render_card(saved.arch, saved.encoder.config)
    monkeypatch.chdir(saved.folder)
    Path("photo.jpg").write_bytes(saved.photo.read_bytes())
    libraries = run_snippets(card, saved.encoder)
    assert {"sslzoo", "timm", "transformers"} <= libraries
    assert ("torchvision" in libraries) == hasattr(torchvision.models, saved.arch)
    assert ("segmentation_models_pytorch" in libraries) == (not saved.arch.startswith("vit"))


def test_features_depend_on_the_image_and_are_finite(saved: Saved) -> None:
    """Else equal features would say nothing."""
    other = saved.encoder(saved.batch.flip(3))
    assert np.isfinite(saved.features.numpy()).all()
    assert (other - saved.features).abs().max() > 1e-4 * saved.features.abs().max() > 0
