"""BYOL's encoder beside the published architecture, built again in dm-haiku, from a checkpoint that dill wrote."""

from collections.abc import Callable
from typing import Any

import numpy as np
import published
import pytest
import torch

import sslzoo
from sslzoo import zoo
from sslzoo.encoder import VARIANTS
from sslzoo.upstream import byol

hk = pytest.importorskip("haiku")
jax = pytest.importorskip("jax")
dill = pytest.importorskip("dill")
to_immutable_dict = pytest.importorskip("haiku._src.data_structures").to_immutable_dict  # what networks give

pytestmark = pytest.mark.filterwarnings("ignore:The weights of")
ID = "byol-resnet50-imagenet"
BN = {"decay_rate": 0.9, "eps": 1e-5, "create_scale": True, "create_offset": True}


class Torso(hk.Module):  # type: ignore[misc]
    """The ResNet of DeepMind's byol/utils/networks.py, from haiku's layers: all of them pad SAME."""

    def __init__(self, blocks: tuple[int, ...], channels: tuple[int, ...], name: str) -> None:
        super().__init__(name)
        self.initial_conv = hk.Conv2D(64, 7, stride=2, with_bias=False, padding="SAME", name="initial_conv")
        self.initial_batchnorm = hk.BatchNorm(name="initial_batchnorm", **BN)
        self.groups = [
            hk.nets.ResNet.BlockGroup(
                channels=channels[n], num_blocks=count, stride=1 if n == 0 else 2, bn_config=BN, resnet_v2=False,
                bottleneck=True, use_projection=True, name=f"block_group_{n}",
            )
            for n, count in enumerate(blocks)
        ]  # fmt: skip

    def __call__(self, images: Any, is_training: bool) -> Any:
        maps = jax.nn.relu(self.initial_batchnorm(self.initial_conv(images), is_training))
        maps = hk.max_pool(maps, window_shape=(1, 3, 3, 1), strides=(1, 2, 2, 1), padding="SAME")
        for group in self.groups:
            maps = group(maps, is_training, False)
        return maps.mean(axis=(1, 2))


def random_weights(shapes: Any, rng: np.random.Generator) -> Any:
    """Haiku's trees, with convolutions that keep the scale of their input and batch norms that do something."""

    def draw(module: str, name: str, shape: tuple[int, ...]) -> Any:
        if name == "w":
            return rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape)
        low, high = (0.5, 1.5) if name == "scale" or module.endswith("var_ema") else (-0.2, 0.2)
        return rng.uniform(low, high, shape)

    return {
        module: {name: draw(module, name, leaf.shape).astype(leaf.dtype) for name, leaf in leaves.items()}
        for module, leaves in shapes.items()
    }


def compare(
    blocks: tuple[int, ...], channels: tuple[int, ...], sizes: tuple[int, ...], load: Callable[[bytes], sslzoo.Encoder]
) -> None:
    def forward(images: Any, is_training: bool) -> Any:
        return Torso(blocks, channels, "res_net50")(images, is_training)

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    image = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda key: net.init(key, image, True), jax.random.PRNGKey(0))
    rng = np.random.default_rng(0)
    params, state = (random_weights(part, rng) for part in shapes)
    features = jax.jit(lambda params, state, images: net.apply(params, state, images, False)[0])
    tree = published.byol_state(params, state)
    experiment = tree["experiment_state"]
    tree["experiment_state"] = type(experiment)(*map(to_immutable_dict, experiment[:4]), experiment[4])
    encoder = load(dill.dumps(tree, protocol=2))
    for size in sizes:
        batch = rng.standard_normal((2, size, size, 3)).astype(np.float32)
        expected = np.asarray(features(params, state, batch))
        with torch.no_grad():
            found = encoder(torch.from_numpy(batch.transpose(0, 3, 1, 2))).numpy()
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        print(f"{size} px: relative error {error:.1e}")
        assert error < 1e-4


def test_features_are_those_of_the_haiku_network(
    published_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    thin = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
    monkeypatch.setitem(VARIANTS, "bottlenecks", ("resnet26", thin))  # as ResNet-50 has them

    def load(content: bytes) -> sslzoo.Encoder:
        published_at({ID: content})
        table = zoo.TABLE.with_name("bottlenecks.toml")
        table.write_text(zoo.TABLE.read_text().replace(f'"{published.THIN}"', '"bottlenecks"'))
        monkeypatch.setattr(zoo, "TABLE", table)
        return sslzoo.load(ID)

    compare((1, 1, 1, 1), (32, 64, 128, 256), (224, 97), load)


@pytest.mark.slow
def test_features_of_resnet50_are_those_of_the_haiku_network(published_at: Callable[..., None]) -> None:
    def load(content: bytes) -> sslzoo.Encoder:
        published_at({ID: content}, whole=True)
        return sslzoo.load(ID)

    compare((3, 4, 6, 3), (256, 512, 1024, 2048), (224, 193), load)


def test_blocks_of_two_digits_and_both_names_of_the_stem() -> None:
    assert byol._timm_name("res_net200/~/block_group_2/~/block_35/~/conv_1", "w") == "layer3.35.conv2.weight"
    assert byol._timm_name("res_net50/~/initial_conv_1", "w") == "conv1.weight"
    assert byol._timm_name("res_net50/~/block_group_0/~/block_0/~/shortcut_batchnorm/~/var_ema", "average") == (
        "layer1.0.downsample.1.running_var"
    )
    assert byol._timm_name("predictor/linear", "w") is None
