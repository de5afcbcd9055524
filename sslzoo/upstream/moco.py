"""MoCo of its authors: `state_dict` of DistributedDataParallel. https://github.com/facebookresearch/moco"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, entry, split


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of pretraining; the encoder is that of the queries, its fc the projector."""
    with open_torch(path) as tree:
        return split(
            entry(tree, "state_dict"),
            r"module\.encoder_q\.(?!fc\.)(.+)",
            r"module\.(encoder_q\.fc\..+|encoder_k\..+|queue|queue_ptr)",
        )
