"""DeepCluster of its authors: VGG-16 with batch norm, whose features are DataParallel.

https://github.com/facebookresearch/deepcluster

It sees edges: see `SobelConv` in sslzoo/resnets.py. Three linear layers follow its features, the last of them the
clusters; the encoder here is the features.
"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, check_sobel, entry, split


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of pretraining."""
    with open_torch(path) as tree:
        tensors = entry(tree, "state_dict")
        check_sobel(tensors, "sobel")
        return split(tensors, r"(features\.)module\.(.+)", r"(?:classifier|top_layer|sobel)\..+")
