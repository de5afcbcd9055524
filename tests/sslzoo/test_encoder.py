"""Encoder, load and create: the same numbers as timm, torchvision and transformers on the same folder."""

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

import sslzoo
from sslzoo.encoder import VARIANTS, architecture, make_config

THIN = VARIANTS["resnet18quarter"][1]
ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}
# arch, model_args, do maps round their size up
NETWORKS: list[tuple[str, dict[str, Any], bool]] = [
    ("resnet18", {}, True),
    ("resnet18quarter", {}, True),
    ("resnet50", {"channels": [8, 16, 32, 64]}, True),
    ("vgg11_bn", {}, False),
    ("convnext_atto", {}, False),
    ("mobilenetv3_small_050", {}, True),
    ("vit_tiny_patch16_224", ANY_SIZE, True),
]
ARCHS = [arch for arch, _, _ in NETWORKS]


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def encoders() -> dict[str, sslzoo.Encoder]:
    made = {arch: sslzoo.create(arch, seed=0, image_size=64, **args) for arch, args, _ in NETWORKS}
    for encoder in made.values():
        disturb_batch_norm(encoder)
    return made


def disturb_batch_norm(encoder: nn.Module) -> None:
    """Statistics that differ by channel: a loader that drops or resets them must not go unseen."""
    generator = torch.Generator().manual_seed(0)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)


def images(height: int = 97, width: int = 130, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0))


# --- create


def test_create_is_seeded_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (sslzoo.create("resnet18quarter", seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    for key, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[key])
    assert not torch.equal(one.model.conv1[0].weight, other.model.conv1[0].weight)
    unseeded = [sslzoo.create("resnet18quarter").model.conv1[0].weight for _ in range(2)]
    assert not torch.equal(*unseeded)


def test_resnet18quarter_is_the_thin_one() -> None:
    encoder = sslzoo.create("resnet18quarter")
    assert sum(p.numel() for p in encoder.parameters()) == 701_720
    assert encoder.num_features == 128
    assert encoder.arch == "resnet18quarter"
    assert encoder.input_size == (3, 224, 224)  # timm's for resnet18
    assert not encoder.training
    assert "resnet18quarter, num_features=128, input_size=(3, 224, 224)" in repr(encoder)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet19", r"Unknown architecture 'resnet19'. Did you mean .*'resnet18'"),
        ("resnet18quater", "Did you mean 'resnet18quarter'"),
        ("resnet18.a1_in1k", "names weights of timm. Random weights have no tag: use 'resnet18'"),
        ("hf-hub:timm/resnet18", "Unknown architecture"),
    ],
)
def test_unknown_architecture_names_the_nearest(arch: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sslzoo.create(arch)


@pytest.mark.parametrize("args", [{"num_classes": 10}, {"features_only": True}, {"checkpoint_path": "x"}])
def test_arguments_that_make_no_encoder_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(args))} cannot be an argument"):
        sslzoo.create("resnet18", **args)
    with pytest.raises(ValueError, match="pass image_size"):
        sslzoo.create("vit_tiny_patch16_224", img_size=96)
    with pytest.raises(ValueError, match="in_chans must be 1"):
        sslzoo.create("resnet18", in_chans=4)


def test_architecture_gives_a_copy() -> None:
    architecture("resnet18quarter")[1]["channels"].append(1)
    assert architecture("resnet18quarter") == ("resnet18", THIN)


# --- forward and feature maps


@pytest.mark.parametrize(("arch", "rounds_up"), [(arch, up) for arch, _, up in NETWORKS])
def test_features_and_maps_are_those_of_timm(
    encoders: dict[str, sslzoo.Encoder], arch: str, rounds_up: bool, tmp_path: Path
) -> None:
    encoder = encoders[arch]
    encoder.save_pretrained(tmp_path)
    reference = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True).eval()
    assert encoder.channels == reference.feature_info.channels()
    assert encoder.reductions == reference.feature_info.reduction()
    for height, width in ((97, 130), (64, 64), (33, 70)):
        batch = images(height, width)
        maps = encoder.feature_maps(batch)
        for found, expected in zip(maps, reference(batch), strict=True):
            assert torch.equal(found, expected)
        side = math.ceil if rounds_up else math.floor
        assert [tuple(found.shape) for found in maps] == [
            (2, channels, side(height / reduction), side(width / reduction))
            for channels, reduction in zip(encoder.channels, encoder.reductions, strict=True)
        ]
        features = encoder(batch)
        assert features.shape == (2, encoder.num_features)
        if arch != "vgg11_bn":  # timm's VGG goes through two layers of its classifier
            assert torch.equal(features, timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(batch))


def test_resnet_maps_start_at_the_stem(encoders: dict[str, sslzoo.Encoder]) -> None:
    assert encoders["resnet18"].reductions == [2, 4, 8, 16, 32]
    assert encoders["resnet18quarter"].channels == [16, 16, 32, 64, 128]


def test_vgg_features_are_the_mean_of_the_last_maps(encoders: dict[str, sslzoo.Encoder]) -> None:
    encoder = encoders["vgg11_bn"]
    assert encoder.num_features == 512
    pooled = encoder.model.features(images()).mean((2, 3))
    torch.testing.assert_close(encoder(images()), pooled)
    # every parameter that asks for a gradient gets one: DDP stops at those that do not
    with torch.enable_grad():
        encoder(images(32, 32)).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())
    encoder.zero_grad(set_to_none=True)


def test_a_network_of_fixed_size_says_what_it_takes() -> None:
    encoder = sslzoo.create("vit_tiny_patch16_224", image_size=32, depth=2)
    assert encoder.config["model_args"]["img_size"] == 32
    assert [tuple(m.shape) for m in encoder.feature_maps(images(32, 32))] == [(2, 192, 2, 2)] * 2
    for call in (encoder, encoder.feature_maps):
        with pytest.raises(ValueError, match=r"images of 32×32 pixels only, got 97×130.*dynamic_img_size=True"):
            call(images())


@pytest.mark.parametrize(
    "batch", [torch.zeros(3, 64, 64), torch.zeros(2, 1, 64, 64), torch.zeros(2, 3, 64, 64, dtype=torch.uint8)]
)
def test_other_than_normalised_batches_are_refused(encoders: dict[str, sslzoo.Encoder], batch: Tensor) -> None:
    with pytest.raises(ValueError, match=r"takes normalised float images \(B, 3, H, W\), got torch\.\w+ of shape \("):
        encoders["resnet18quarter"](batch)


class Mapless(nn.Module):
    """What timm asks of a model, without feature maps."""

    def __init__(self, num_classes: int = 0, **_: Any) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = 4
        self.stem = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x).mean((2, 3))


def test_an_architecture_without_feature_maps_still_encodes() -> None:
    config = sslzoo.create("resnet18quarter").config | {"architecture": "mapless", "model_args": {}}
    encoder = sslzoo.Encoder(Mapless(), config)
    assert encoder(images()).shape == (2, 4)
    assert encoder.config["num_features"] == 4
    assert encoder.channels == encoder.reductions == []
    with pytest.raises(ValueError, match="mapless gives no feature maps"):
        encoder.feature_maps(images())


# --- output stride


@pytest.mark.parametrize("arch", ["resnet18quarter", "resnet50", "convnext_atto"])
def test_output_stride_is_timms(encoders: dict[str, sslzoo.Encoder], arch: str, tmp_path: Path) -> None:
    encoder = encoders[arch]
    encoder.save_pretrained(tmp_path)
    reference = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, features_only=True, output_stride=8).eval()
    dilated = encoder.with_output_stride(8)
    assert not dilated.training
    assert dilated.arch == encoder.arch
    assert dilated.reductions == reference.feature_info.reduction()
    assert max(dilated.reductions) == 8
    for found, expected in zip(dilated.feature_maps(images()), reference(images()), strict=True):
        assert torch.equal(found, expected)
    assert max(encoder.reductions) == 32  # the first one is left as it was
    dilated.save_pretrained(tmp_path / "dilated")
    again = sslzoo.load(tmp_path / "dilated")
    assert again.reductions == dilated.reductions
    assert torch.equal(again(images()), dilated(images()))
    assert again.with_output_stride(32).reductions == encoder.reductions


def test_output_stride_copies_the_weights_and_keeps_the_dtype(encoders: dict[str, sslzoo.Encoder]) -> None:
    encoder = copy.deepcopy(encoders["resnet18quarter"]).double()
    dilated = encoder.with_output_stride(16)
    assert next(dilated.parameters()).dtype == torch.float64
    before = encoder(images().double())
    for parameter in dilated.parameters():
        parameter.zero_()
    assert torch.equal(encoder(images().double()), before)


def test_networks_that_cannot_be_dilated_say_so(encoders: dict[str, sslzoo.Encoder]) -> None:
    # without its stride, a stage that does not widen loses the convolution beside it
    narrow = sslzoo.create("resnet50", seed=0, channels=[8, 16, 16, 32])
    with pytest.raises(ValueError, match=r"(?s)resnet50 has no output stride 8 in timm .*layer3.0.downsample"):
        narrow.with_output_stride(8)
    for arch, stride in (("vgg11_bn", 8), ("vit_tiny_patch16_224", 8), ("resnet18quarter", 7)):
        with pytest.raises(ValueError, match=f"{arch} has no output stride {stride} in timm"):
            encoders[arch].with_output_stride(stride)


# --- save and load


@pytest.mark.parametrize("arch", ARCHS)
def test_save_and_load_give_the_same_network(encoders: dict[str, sslzoo.Encoder], arch: str, tmp_path: Path) -> None:
    encoder = encoders[arch].train()
    encoder.config["sslzoo"].update(method="byol", recipe={"epochs": 3})
    encoder.save_pretrained(tmp_path, card="# Card")
    before = torch.get_rng_state()
    loaded = sslzoo.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    encoder.eval()
    assert not any(module.training for module in loaded.modules())
    assert loaded.config == encoder.config
    assert loaded.arch == arch
    assert torch.equal(loaded(images()), encoder(images()))
    assert (tmp_path / "README.md").read_text() == "# Card"
    from_class = sslzoo.Encoder.from_pretrained(str(tmp_path))
    assert torch.equal(from_class(images()), loaded(images()))


def test_half_precision_files_give_nearly_the_same_features(
    encoders: dict[str, sslzoo.Encoder], tmp_path: Path
) -> None:
    encoder = encoders["resnet18quarter"]
    encoder.save_pretrained(tmp_path, half=True)
    found, expected = sslzoo.load(tmp_path)(images()), encoder(images())
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 2e-3
    assert (tmp_path / "model.safetensors").stat().st_size < 1.5e6


def test_encoders_copy_and_pickle(encoders: dict[str, sslzoo.Encoder]) -> None:
    encoder = encoders["resnet18quarter"]
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert torch.equal(twin(images()), encoder(images()))
        twin.config["pretrained_cfg"]["tag"] = "twin"
    assert encoder.config["pretrained_cfg"]["tag"] == "random"


def test_transform_follows_the_config() -> None:
    image = Image.fromarray(load_sample_images().images[0])
    for channels in (1, 3):
        encoder = sslzoo.create("resnet18quarter", image_size=48, in_chans=channels)
        assert encoder.arch == "resnet18quarter"
        batch = encoder.transform(image)[None]
        assert batch.shape == (1, channels, 48, 48)
        assert encoder(batch).shape == (1, 128)


# --- config.json and other libraries


def test_config_is_the_schema_of_design() -> None:
    config = make_config("resnet18quarter", image_size=64, tag="byol_cifar10", sslzoo={"method": "byol"})
    assert config == {
        "architecture": "resnet18",
        "num_classes": 0,
        "num_features": 128,
        "global_pool": "avg",
        "model_args": {"channels": [16, 32, 64, 128], "stem_type": "deep", "stem_width": 8},
        "pretrained_cfg": {
            "tag": "byol_cifar10",
            "input_size": [3, 64, 64],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "num_classes": 0,
            "pool_size": [2, 2],
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
        "sslzoo": {
            "schema": 1,
            "method": "byol",
            "dataset": None,
            "recipe": {},
            "metrics": {},
            "source": "random",
        },
    }


@pytest.mark.parametrize(("arch", "args", "_"), NETWORKS, ids=ARCHS)
def test_first_conv_and_classifier_name_real_layers(arch: str, args: dict[str, Any], _: bool) -> None:
    cfg = make_config(arch, image_size=64, tag="x", sslzoo={}, **args)["pretrained_cfg"]
    name, defaults = architecture(arch)
    state = timm.create_model(name, num_classes=5, **{**defaults, **args}).state_dict()
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == 3
    assert state[f"{cfg['classifier']}.weight"].shape[0] == 5


@pytest.mark.parametrize("arch", ["resnet18quarter", "vgg11_bn", "convnext_atto", "vit_tiny_patch16_224"])
def test_timm_adapts_the_folder(encoders: dict[str, sslzoo.Encoder], arch: str, tmp_path: Path) -> None:
    encoders[arch].save_pretrained(tmp_path)
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).eval()(images()).shape == (2, 7)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1).eval()
    assert grey(images(channels=1)).shape[0] == 2
    settings = timm.data.resolve_model_data_config(timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    assert settings["crop_pct"] == 1.0
    assert tuple(settings["input_size"]) == encoders[arch].input_size


def test_torchvision_takes_the_file(encoders: dict[str, sslzoo.Encoder], tmp_path: Path) -> None:
    encoders["resnet18"].save_pretrained(tmp_path)
    network = torchvision.models.resnet18()
    keys = network.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert set(keys.missing_keys) == {"fc.weight", "fc.bias"}
    assert not keys.unexpected_keys
    network.fc = nn.Identity()
    torch.testing.assert_close(network.eval()(images()), encoders["resnet18"](images()))


@pytest.mark.parametrize("arch", ["resnet18quarter", "vit_tiny_patch16_224"])
def test_transformers_reads_the_folder_and_gives_it_back(
    encoders: dict[str, sslzoo.Encoder], arch: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    encoder = encoders[arch]
    encoder.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert torch.equal(model(images(64, 64)).pooler_output, encoder(images(64, 64)))
    assert model.config.sslzoo["schema"] == 1
    image = Image.fromarray(load_sample_images().images[0])
    processed = transformers.AutoImageProcessor.from_pretrained(tmp_path)(image)["pixel_values"]
    assert torch.equal(torch.as_tensor(processed)[0], encoder.transform(image))
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(sslzoo.load(tmp_path / "again")(images()), encoder(images()))
