"""The network of BYOL's authors in dm-haiku: writes a checkpoint with random weights as they did, and its features.

    python haiku_byol.py '{"blocks": [1, 1, 1, 1], "channels": [32, 64, 128, 256], "sizes": [224, 97]}' FOLDER

A program of its own, since no process that forks may have jax in it. FOLDER gets checkpoint.pkl and, for each size,
images (2, 3, size, size) and features in features.npz.
"""

import json
import sys
from pathlib import Path
from typing import Any

import dill
import haiku as hk
import jax
import numpy as np
import published
from haiku._src.data_structures import to_immutable_dict  # what networks give

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


def write(blocks: list[int], channels: list[int], sizes: list[int], folder: Path) -> None:
    """Write the checkpoint, images and features."""

    def forward(images: Any, is_training: bool) -> Any:
        return Torso(tuple(blocks), tuple(channels), "res_net50")(images, is_training)

    net = hk.without_apply_rng(hk.transform_with_state(forward))
    image = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(lambda key: net.init(key, image, True), jax.random.PRNGKey(0))
    rng = np.random.default_rng(0)
    params, state = (random_weights(part, rng) for part in shapes)
    features = jax.jit(lambda params, state, images: net.apply(params, state, images, False)[0])
    tree = published.byol_state(params, state)
    experiment = tree["experiment_state"]
    tree["experiment_state"] = type(experiment)(*map(to_immutable_dict, experiment[:4]), experiment[4])
    (folder / "checkpoint.pkl").write_bytes(dill.dumps(tree, protocol=2))
    arrays = {}
    for size in sizes:
        batch = rng.standard_normal((2, size, size, 3)).astype(np.float32)
        arrays[f"images{size}"] = batch.transpose(0, 3, 1, 2)
        arrays[f"features{size}"] = np.asarray(features(params, state, batch))
    np.savez(folder / "features.npz", **arrays)


if __name__ == "__main__":
    write(**json.loads(sys.argv[1]), folder=Path(sys.argv[2]))
