"""BYOL of DeepMind: dill pickles of dm-haiku's parameters.

https://github.com/google-deepmind/deepmind-research/tree/master/byol

    {"experiment_state": (online_params, target_params, online_state, target_state, opt_state), "step": …, "rng": …}
    online_params["res_net50/~/block_group_0/~/block_0/~/conv_1"]["w"]                     # (3, 3, in, out)
    online_state["res_net50/~/block_group_0/~/block_0/~/batchnorm_1/~/mean_ema"]["average"]  # (1, 1, 1, C)

The encoder is the online one, as in the authors' linear evaluation. It pads as TensorFlow: see sslzoo/resnets.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslzoo.pickles import NUMPY, Array, Inert, Maker, Record, dill, read_pickle, record, table
from sslzoo.upstream import Checkpoint, CheckpointError, entry

STATE = ("online_params", "target_params", "online_state", "target_state", "opt_state")
_NOTHING = Maker(lambda *_: Inert())
NAMES = {
    **NUMPY,
    **dill(NUMPY),
    # frozendict until 3 August 2020
    ("haiku._src.data_structures", "FlatMapping"): Maker(table),
    ("haiku._src.data_structures", "frozendict"): Maker(table),
    ("byol.byol_experiment", "_ByolExperimentState"): record("_ByolExperimentState", STATE),
    ("byol.utils.optimizers", "ScaleByLarsState"): _NOTHING,
    ("byol.utils.optimizers", "AddWeightDecayState"): _NOTHING,
    ("optax._src.transform", "ScaleState"): _NOTHING,
}
BLOCK = re.compile(
    r"(?P<net>res_net\d+)/~/(?:"
    r"initial_(?P<stem>conv|batchnorm)(?:_1)?|"  # _1: while the network was a subclass of haiku's own
    r"block_group_(?P<group>\d+)/~/block_(?P<block>\d+)/~/(?P<part>shortcut_)?(?P<kind>conv|batchnorm)(?:_(?P<number>\d+))?"
    r")(?:/~/(?P<statistic>mean|var)_ema)?"
)
LEAVES = {"w": "weight", "scale": "weight", "offset": "bias"}


def read(path: Path) -> Checkpoint:
    """Read a checkpoint of pretraining. Needs memory for all of it: 1.5 times the file at the most."""
    with path.open("rb") as file:
        state = entry(read_pickle(file, NAMES), "experiment_state")
    if not isinstance(state, Record) or not set(STATE) <= set(state.fields):
        raise CheckpointError(f"its experiment_state has no {', '.join(STATE)}.")
    found: dict[str, Tensor] = {}
    dropped = dict.fromkeys(name for name in STATE if not name.startswith("online_"))
    for part in ("online_params", "online_state"):
        for module, leaf, array in _leaves(state.fields[part]):
            name = _timm_name(module, leaf)
            if name is None:
                dropped[f"{part}: {'counter and hidden of each average' if BLOCK.fullmatch(module) else module}"] = None
            elif name in found:
                raise CheckpointError(f"it has two tensors for {name}; one of them is {module!r}.")
            else:
                found[name] = _tensor(array)
    return Checkpoint(found, list(dropped))


def _leaves(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """(module, name, array) of haiku's two-level mapping."""
    if not isinstance(tree, dict) or not all(isinstance(leaves, dict) for leaves in tree.values()):
        raise CheckpointError("its parameters are no mapping of modules to mappings of arrays.")
    for module, leaves in tree.items():
        for leaf, array in leaves.items():
            yield module, leaf, array


def _timm_name(module: str, leaf: str) -> str | None:
    """Timm's name of haiku's; None for what is no part of the encoder, and for all but one of three moving averages."""
    found = BLOCK.fullmatch(module)
    if found is None:
        if module.startswith("res_net"):
            raise CheckpointError(f"{module[:80]!r} is no module of a ResNet of BYOL.")
        return None  # projector, predictor, classifier
    if found["statistic"]:
        # "hidden" is the average before its bias is corrected, "counter" counts
        leaf_name = f"running_{found['statistic']}" if leaf == "average" else None
    else:
        leaf_name = LEAVES.get(leaf)
        if leaf_name is None:
            raise CheckpointError(f"{module[:80]!r} has an array {leaf!r}, which no such module has.")
    return f"{_layer(found)}.{leaf_name}" if leaf_name else None


def _layer(found: re.Match[str]) -> str:
    if found["stem"]:
        return "conv1" if found["stem"] == "conv" else "bn1"
    layer = f"layer{int(found['group']) + 1}.{int(found['block'])}"
    if found["part"]:
        return f"{layer}.downsample.{0 if found['kind'] == 'conv' else 1}"
    if found["number"] is None:
        raise CheckpointError(f"{found[0][:80]!r} has no number.")
    return f"{layer}.{'conv' if found['kind'] == 'conv' else 'bn'}{int(found['number']) + 1}"


def _tensor(array: Any) -> Tensor:
    """Convolutions (H, W, in, out) -> (out, in, H, W); vectors (1, 1, 1, C) -> (C,)."""
    if not isinstance(array, Array) or array.value.ndim != 4:
        raise CheckpointError("a part of the encoder is no array of four dimensions.")
    value = torch.from_numpy(array.value.copy())
    return value.flatten() if value.shape[:3] == (1, 1, 1) else value.permute(3, 2, 0, 1).contiguous()
