"""DeepCluster-v2 and SeLa-v2 of SwAV's authors: the file is the state dict. https://github.com/facebookresearch/swav"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, split


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of pretraining. The network pads by 1 and then by 2, which is torchvision's 3."""
    with open_torch(path) as tree:
        heads = r"(?:projection_head|prototypes)"
        return split(tree, rf"module\.(?!{heads})(.+)", rf"module\.{heads}.+")
