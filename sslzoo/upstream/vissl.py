"""VISSL's model zoo: what VISSL trained, and what it converted from others. https://github.com/facebookresearch/vissl

Trained: `classy_state_dict.base_model.model` with `trunk` and `heads`. Converted: `model_state_dict`, or the bare state
dict; heads (fc1, fc2, …) may be among the trunk's tensors.
"""

from pathlib import Path
from typing import Any

from sslzoo.torch_files import open_torch
from sslzoo.upstream import Checkpoint, entry, split

STEM = r"(?:_feature_blocks\.)?"
TENSOR = r"((?:conv1|bn1|layer[1-4]\.\d+\.(?:conv\d|bn\d|downsample\.[01]))\.\w+)"


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of a ResNet."""
    with open_torch(path) as tree:
        trunk, heads = _parts(tree)
        found = split(trunk, STEM + TENSOR, STEM + r"(?:fc|clf|heads?)[\w.]*")
        return Checkpoint(found.encoder, found.dropped + heads)


def _parts(tree: Any) -> tuple[Any, list[str]]:
    if isinstance(tree, dict) and "classy_state_dict" in tree:
        model = entry(tree, "classy_state_dict", "base_model", "model")
        heads = model.get("heads", {}) if isinstance(model, dict) else {}
        return entry(model, "trunk"), [f"heads: {name}" for name in heads]
    return (entry(tree, "model_state_dict") if isinstance(tree, dict) and "model_state_dict" in tree else tree), []
