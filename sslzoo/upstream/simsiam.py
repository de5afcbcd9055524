"""SimSiam of its authors: `state_dict` of DistributedDataParallel. https://github.com/facebookresearch/simsiam"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, entry, split


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of pretraining; encoder.fc is the projector."""
    with open_torch(path) as tree:
        return split(
            entry(tree, "state_dict"), r"module\.encoder\.(?!fc\.)(.+)", r"module\.(encoder\.fc|predictor)\..+"
        )
