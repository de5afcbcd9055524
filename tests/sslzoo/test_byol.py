"""BYOL's encoder beside the published architecture, built again in dm-haiku, from a checkpoint that dill wrote."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import published
import torch

import sslzoo
from sslzoo import zoo
from sslzoo.upstream import byol

hk = pytest.importorskip("haiku")
jax = pytest.importorskip("jax")
dill = pytest.importorskip("dill")

ID = "byol-resnet50-imagenet"
BN = {"decay_rate": 0.9, "eps": 1e-5, "create_scale": True, "create_offset": True}


class Torso(hk.Module):  # type: ignore[misc]
    """The ResNet of DeepMind's byol/utils/networks.py, from haiku's layers: 7x7 stem, max-pool and all else pad SAME."""

    def __init__(self, blocks: tuple[int, ...], name: str) -> None:
        super().__init__(name)
        self.initial_conv = hk.Conv2D(64, 7, stride=2, with_bias=False, padding="SAME", name="initial_conv")
        self.initial_batchnorm = hk.BatchNorm(name="initial_batchnorm", **BN)
        self.groups = [
            hk.nets.ResNet.BlockGroup(
                channels=256 * 2**n, num_blocks=count, stride=1 if n == 0 else 2, bn_config=BN, resnet_v2=False,
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


def random_weights(tree: Any, rng: np.random.Generator) -> Any:
    """Haiku's trees with batch norms that do something."""
    found: dict[str, Any] = {}
    for module, leaves in tree.items():
        found[module] = {name: np.asarray(value) for name, value in leaves.items()}
        for name, low, high in (("scale", 0.5, 1.5), ("offset", -0.2, 0.2), ("average", -0.2, 0.2)):
            if name in leaves:
                found[module][name] = rng.uniform(low, high, leaves[name].shape).astype(np.float32)
        if module.endswith("var_ema"):
            found[module]["average"] = rng.uniform(0.5, 2.0, leaves["average"].shape).astype(np.float32)
    return found


def compare(arch: str, blocks: tuple[int, ...], sizes: tuple[int, ...], load: Callable[[bytes], sslzoo.Encoder]) -> None:
    net = hk.without_apply_rng(hk.transform_with_state(lambda x, training: Torso(blocks, "res_net50")(x, training)))
    init = jax.jit(lambda key: net.init(key, np.zeros((1, 32, 32, 3), np.float32), True))
    params, state = init(jax.random.PRNGKey(0))
    features = jax.jit(lambda images: net.apply(params, state, images, False)[0])
    rng = np.random.default_rng(0)
    params, state = random_weights(params, rng), random_weights(state, rng)
    tree = published.byol_state(params, state)
    frozen = hk._src.data_structures.to_immutable_dict
    experiment = tree["experiment_state"]
    tree["experiment_state"] = type(experiment)(*(frozen(part) for part in experiment[:4]), experiment[4])
    encoder = load(dill.dumps(tree, protocol=2))
    assert encoder.arch == arch
    for size in sizes:
        batch = rng.standard_normal((2, size, size, 3)).astype(np.float32)
        expected = np.asarray(features(batch))
        with torch.no_grad():
            found = encoder(torch.from_numpy(batch.transpose(0, 3, 1, 2))).numpy()
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected), size


def test_features_are_those_of_the_haiku_network(
    published_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(content: bytes) -> sslzoo.Encoder:
        published_at({ID: content})
        table = zoo.TABLE.with_name("bottlenecks.toml")
        table.write_text(zoo.TABLE.read_text().replace(f'"{published.THIN}"', '"resnet26"'))
        monkeypatch.setattr(zoo, "TABLE", table)
        return sslzoo.load(ID)

    compare("resnet26", (2, 2, 2, 2), (224, 97), load)


@pytest.mark.slow
def test_features_of_resnet50_are_those_of_the_haiku_network(published_at: Callable[..., None]) -> None:
    def load(content: bytes) -> sslzoo.Encoder:
        published_at({ID: content}, whole=True)
        return sslzoo.load(ID)

    compare("resnet50", (3, 4, 6, 3), (224, 193), load)


def test_blocks_of_two_digits_and_both_names_of_the_stem() -> None:
    assert byol._timm_name("res_net200/~/block_group_2/~/block_35/~/conv_1", "w") == "layer3.35.conv2.weight"
    assert byol._timm_name("res_net50/~/initial_conv_1", "w") == "conv1.weight"
    assert byol._timm_name("res_net50/~/block_group_0/~/block_0/~/shortcut_batchnorm/~/var_ema", "average") == (
        "layer1.0.downsample.1.running_var"
    )
    assert byol._timm_name("predictor/linear", "w") is None
