"""SeLa of the 2020 paper: a pre-activation ResNet, in an archive beside an AlexNet. https://github.com/yukimasano/self-label

    pretrained.zip: resnet-10x3k.pth, alexnet-10x3k-wRot.pth, each a bare state dict

It has no batch norm behind its last stage: see `resnetv2_50bare` in sslzoo/resnets.py.
"""

import re
from pathlib import Path

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, CheckpointError, split

MEMBER = "resnet-10x3k.pth"
TENSOR = re.compile(
    r"(?:(?P<stem>0)|(?P<stage>[2-5])\.(?P<block>\d+)\.(?:(?P<kind>bn|conv)(?P<number>[1-3])|shortcut\.0))\.(?P<leaf>\w+)"
)


def read(path: Path) -> Checkpoint:
    """Read the archive, or the file of the ResNet out of it; each top_layer is a head of 3000 clusters."""
    with open_torch(path, member=MEMBER) as tree:
        found = split(tree, r"features\.(.+)", r"top_layer\d*\..+")
    return Checkpoint({_timm_name(name): tensor for name, tensor in found.encoder.items()}, found.dropped)


def _timm_name(name: str) -> str:
    found = TENSOR.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{f'features.{name}'[:80]!r} is no tensor of its ResNet.")
    if found["stem"]:
        return f"stem.conv.{found['leaf']}"
    kind = {"bn": "norm", "conv": "conv", None: "downsample.conv"}[found["kind"]]
    return f"stages.{int(found['stage']) - 2}.blocks.{found['block']}.{kind}{found['number'] or ''}.{found['leaf']}"
