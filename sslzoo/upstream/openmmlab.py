"""mmselfsup of OpenMMLab, releases 0.x and 1.x. https://github.com/open-mmlab/mmselfsup

Releases 0.x have the encoder a second time, as online_net.0 or encoder.0.
"""

from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, entry, split

OTHERS = r"(?:online_net|target_net|encoder|encoder_q|encoder_k|neck|head|data_preprocessor|memory_bank)"


def read(path: Path) -> Checkpoint:
    """Read a published checkpoint of a ResNet on colour images."""
    with open_torch(path) as tree:
        return split(entry(tree, "state_dict"), r"backbone\.(.+)", rf"{OTHERS}\..+")
