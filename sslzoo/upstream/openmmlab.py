"""mmselfsup of OpenMMLab, releases 0.x and 1.x. https://github.com/open-mmlab/mmselfsup

Releases 0.x have the encoder a second time, as online_net.0 or encoder.0. DeepCluster's sees edges: see `SobelConv` in
sslzoo/resnets.py.
"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, check_sobel, entry, split

SOBEL = r"(?:backbone\.)?sobel_layer\.sobel"
OTHERS = r"(?:online_net|target_net|encoder|encoder_q|encoder_k|neck|head|data_preprocessor|memory_bank)"


def read(path: Path) -> Checkpoint:
    """Read a published checkpoint of a ResNet on colour images."""
    with open_torch(path) as tree:
        tensors = entry(tree, "state_dict")
        check_sobel(tensors, SOBEL)
        return split(tensors, r"backbone\.(?!sobel_layer)(.+)", rf"(?:{OTHERS}|{SOBEL})\..+|loss_weight")
