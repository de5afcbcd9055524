"""BYOL's encoder beside the published architecture, built again in dm-haiku, from a checkpoint that dill wrote."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import published
import pytest
import torch

import sslzoo
from sslzoo import zoo
from sslzoo.encoder import VARIANTS
from sslzoo.upstream import byol

pytestmark = pytest.mark.filterwarnings("ignore:The weights of")
ID = "byol-resnet50-imagenet"
oracle = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("haiku", "jax", "dill")), reason="needs dm-haiku, jax and dill"
)


def compare(
    blocks: tuple[int, ...],
    channels: tuple[int, ...],
    sizes: tuple[int, ...],
    load: Callable[[bytes], sslzoo.Encoder],
    folder: Path,
) -> None:
    job = json.dumps({"blocks": blocks, "channels": channels, "sizes": sizes})
    script = Path(__file__).with_name("haiku_byol.py")
    done = subprocess.run([sys.executable, str(script), job, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    encoder = load((folder / "checkpoint.pkl").read_bytes())
    with np.load(folder / "features.npz") as arrays:
        for size in sizes:
            with torch.no_grad():
                found = encoder(torch.from_numpy(arrays[f"images{size}"])).numpy()
            expected = arrays[f"features{size}"]
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            print(f"{size} px: relative error {error:.1e}")
            assert error < 1e-4


@oracle
def test_features_are_those_of_the_haiku_network(
    published_at: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    thin = {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}
    monkeypatch.setitem(VARIANTS, "bottlenecks", ("resnet26", thin))  # as ResNet-50 has them

    def load(content: bytes) -> sslzoo.Encoder:
        published_at({ID: content})
        table = zoo.TABLE.with_name("bottlenecks.toml")
        table.write_text(zoo.TABLE.read_text().replace(f'"{published.THIN}"', '"bottlenecks"'))
        monkeypatch.setattr(zoo, "TABLE", table)
        return sslzoo.load(ID)

    compare((1, 1, 1, 1), (32, 64, 128, 256), (224, 97), load, tmp_path)


@oracle
@pytest.mark.slow
def test_features_of_resnet50_are_those_of_the_haiku_network(published_at: Callable[..., None], tmp_path: Path) -> None:
    def load(content: bytes) -> sslzoo.Encoder:
        published_at({ID: content}, whole=True)
        return sslzoo.load(ID)

    compare((3, 4, 6, 3), (256, 512, 1024, 2048), (224, 193), load, tmp_path)


def test_blocks_of_two_digits_and_both_names_of_the_stem() -> None:
    assert byol._timm_name("res_net200/~/block_group_2/~/block_35/~/conv_1", "w") == "layer3.35.conv2.weight"
    assert byol._timm_name("res_net50/~/initial_conv_1", "w") == "conv1.weight"
    assert byol._timm_name("res_net50/~/block_group_0/~/block_0/~/shortcut_batchnorm/~/var_ema", "average") == (
        "layer1.0.downsample.1.running_var"
    )
    assert byol._timm_name("predictor/linear", "w") is None
