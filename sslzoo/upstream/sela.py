"""SeLa of its authors, the models in torchvision's names. https://github.com/yukimasano/self-label"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, entry, split


def read(path: Path) -> Checkpoint:
    """Read one of the files `*_pp.pth`; fc has a row for each cluster. The labels beside it are left alone."""
    with open_torch(path) as tree:
        return split(entry(tree, "state_dict"), r"(?!fc\.)(.+)", r"fc\..+")
