"""PyContrast: InfoMin, and others of the same trainer. https://github.com/HobbitLong/PyContrast

{"model": …, "model_ema": …, "contrast": …, "optimizer": …}, of which `model` alone is read.
"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, entry, split


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of a ResNet on colour images; head is the projector, head_jig that of jigsaw's patches."""
    with open_torch(path) as tree:
        return split(entry(tree, "model"), r"module\.encoder\.(.+)", r"module\.head(?:_jig)?\..+")
