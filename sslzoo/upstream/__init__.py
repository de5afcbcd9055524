"""The authors' own checkpoints: one file for each family of formats says how to read them, and which tensor is which.

    read(path) -> Checkpoint      # the encoder's tensors under timm's names, and the names of all else

A module of this folder is a family; zoo.toml names it beside each URL.
"""

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslzoo.resnets import SOBEL
from sslzoo.torch_files import Stored


class CheckpointError(ValueError):
    """A checkpoint is not of the form in which its authors published it; says what is missing or too much."""


class Checkpoint(NamedTuple):
    """What a family makes of a file.

    Attributes:
        encoder: timm's name -> tensor.
        dropped: Names, as in the file, of what is no part of the encoder.
    """

    encoder: dict[str, Tensor]
    dropped: list[str]


def read(family: str, path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CheckpointError: Not of this form.
        sslzoo.pickles.PickleError: Damaged, or it asks for what is not allowed.
        sslzoo.torch_files.TorchFileError: The same.
    """
    if family not in families():
        raise ValueError(f"There is no family {family!r} of checkpoints. There are: {', '.join(families())}.")
    found: Checkpoint = import_module(f"sslzoo.upstream.{family}").read(path)
    return found


def families() -> list[str]:
    """The names that `read` takes: the modules of this folder."""
    return sorted(module.name for module in iter_modules(__path__))


def entry(tree: Any, *keys: str) -> Any:
    """What lies in nested mappings under these keys, one after the other.

    Raises:
        CheckpointError: There is no such entry.
    """
    for key in keys:
        if not isinstance(tree, dict) or key not in tree:
            raise CheckpointError(f"it has no entry {key!r}; there are: {_listed(tree)}.")
        tree = tree[key]
    return tree


def split(tensors: Any, encoder: str, dropped: str) -> Checkpoint:
    """Tell the tensors of an encoder from the others, by their names.

    Args:
        tensors: Name -> tensor in a file of `torch.save`.
        encoder: Regular expression of the encoder's names; its groups together are timm's name.
        dropped: Regular expression of the names of what is no part of it. The first expression wins.

    Raises:
        CheckpointError: A name that fits neither, two tensors for one name, or something else than tensors.
    """
    if not isinstance(tensors, Mapping) or not tensors:
        raise CheckpointError(f"it has no tensors where they should be, but {_listed(tensors)}.")
    found: dict[str, Tensor] = {}
    others = []
    for name, tensor in tensors.items():
        if match := re.fullmatch(encoder, str(name)):
            if not isinstance(tensor, Stored):
                raise CheckpointError(f"{name!r} is no tensor but {type(tensor).__name__}.")
            timm_name = "".join(match.groups())
            if timm_name in found:
                raise CheckpointError(f"it has two tensors for {timm_name}; one of them is {name!r}.")
            found[timm_name] = tensor.read()
        elif re.fullmatch(dropped, str(name)):
            others.append(name)
        else:
            raise CheckpointError(f"{str(name)[:80]!r} is no name of such a checkpoint.")
    return Checkpoint(found, others)


def check_sobel(tensors: Any, prefix: str) -> None:
    """Make sure that a network which sees edges has the filters of `sslzoo.resnets.SobelConv`, where it has any.

    Args:
        tensors: Name -> tensor in a file of `torch.save`.
        prefix: Regular expression of the name of the two filters together.

    Raises:
        CheckpointError: It has others.
    """
    wanted = {"0.weight": torch.full((1, 3, 1, 1), 1 / 3), "1.weight": torch.tensor(SOBEL)[:, None]}
    for name, tensor in tensors.items() if isinstance(tensors, Mapping) else ():
        match = re.fullmatch(rf"{prefix}\.(\d\.\w+)", str(name))
        if match is None or not isinstance(tensor, Stored):
            continue
        found = tensor.read()
        if not torch.equal(found, wanted.get(match[1], torch.zeros_like(found))):
            raise CheckpointError(f"{name!r} is no Sobel filter as the authors have it.")


def _listed(tree: Any) -> str:
    if not isinstance(tree, dict):
        return type(tree).__name__
    return ", ".join(repr(str(key)[:40]) for key in list(tree)[:8]) or "none"
