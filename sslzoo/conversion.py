"""An authors' checkpoint -> a model folder: every tensor of the encoder exactly once, all else listed as dropped.

convert(Path("pretrain_res50x1.pkl"), zoo.info("byol-resnet50-imagenet"), Path("byol"))
"""

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslzoo import encoder, upstream, weights
from sslzoo.card import render_card
from sslzoo.pickles import PickleError
from sslzoo.torch_files import TorchFileError
from sslzoo.upstream import Checkpoint, CheckpointError
from sslzoo.zoo import ModelInfo, Upstream

COUNTER = ".num_batches_tracked"
UNUSED = "pre_logits."  # layers of timm's VGG that no encoder uses: see `sslzoo.encoder.Encoder`


class ConversionError(weights.WeightsError):
    """A file is not the checkpoint that it should be, or is damaged, or does not what a checkpoint may do."""


def facts(info: ModelInfo) -> Upstream:
    """What is known of the authors' files of a model.

    Raises:
        ValueError: It was trained by this project.
    """
    if info.upstream is None:
        raise ValueError(f"{info.id} was trained by this project: there is no other file to get or convert it from.")
    return info.upstream


def make_config(info: ModelInfo) -> dict[str, Any]:
    """The config.json of a model of the zoo that others have trained. Needs none of its files."""
    known = facts(info)
    block = {
        "method": info.method,
        "dataset": info.data,
        "source": "upstream",
        "licence": info.licence,
        **({"padding": known.padding} if known.padding else {}),
        **({"last_stride": known.last_stride} if known.last_stride != 2 else {}),
        **({"sobel": True} if known.sobel else {}),
        "upstream": {
            "id": info.id,
            "summary": info.summary,
            "authors": known.authors,
            "paper": info.paper,
            "paper_url": info.paper_url,
            "epochs": info.epochs,
            "hardware": info.hardware,
            "published": _published(known),
            "note": known.note,
        },
    }
    config = copy.deepcopy(_network_config(info.arch, info.input_size))
    config["sslzoo"] |= block
    if known.sobel:  # a first convolution of two channels, which timm shall not adapt to three
        config["model_args"]["in_chans"] = 2
        config["pretrained_cfg"]["first_conv"] = None
    config["pretrained_cfg"] |= {
        "tag": f"{info.method}_{info.data}",
        "mean": list(known.mean),
        "std": list(known.std),
        "interpolation": known.interpolation,
        "crop_pct": known.crop_pct,
    }
    return config


def _published(known: Upstream) -> dict[str, Any] | None:
    if not known.accuracy:
        return None
    return {"linear_top1_percent": known.accuracy, "data": "imagenet", "source": known.accuracy_source}


@cache
def _network_config(arch: str, input_size: tuple[int, int, int]) -> dict[str, Any]:
    """The config.json of a network, whose weights are not made: many models have the same."""
    with torch.device("meta"):
        return encoder.create(arch, seed=0, image_size=input_size[1], lightness=input_size[0] == 1).config


def convert(path: Path, info: ModelInfo, folder: Path, *, origin: str | None = None) -> list[str]:
    """Convert a checkpoint into a model folder.

    Args:
        path: The authors' file.
        info: The model that it is, a row of the zoo.
        folder: Made if it is not there.
        origin: Where the file came from, for config.json; None is its name.

    Returns:
        Names, as in the file, of what is no part of the encoder.

    Raises:
        ConversionError: It is not this checkpoint, or damaged; nothing is written.
    """
    config = make_config(info)
    try:
        found = _read(path, facts(info))
        state = fitted(found.encoder, expected(config))
    except (CheckpointError, PickleError, TorchFileError) as error:
        raise ConversionError(f"{path} is no checkpoint of {info.id}: {error}") from error
    origin = origin or path.name
    config["sslzoo"]["upstream"] |= {"file": origin, "sha256": weights.sha256(path), "dropped": found.dropped}
    weights.write_folder(folder, config, state, render_card(info.id, config, info=info))
    return found.dropped


def _read(path: Path, known: Upstream) -> Checkpoint:
    """Read a file by the family, of those that a model comes in, that it is of."""
    families = list(dict.fromkeys(file.family for file in known.files))
    reasons = []
    for family in families:
        try:
            return upstream.read(family, path)
        except (CheckpointError, PickleError, TorchFileError) as error:
            if len(families) == 1:
                raise
            reasons.append(f"as {family}: {error}")
    raise CheckpointError(" ".join(reasons))


def expected(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Names, shapes and types of the encoder's tensors; they have no numbers."""
    with torch.device("meta"):
        network = encoder.build_network(config["architecture"], config["pretrained_cfg"], config["model_args"], seed=0)
    return network.state_dict()


def fitted(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The found tensors in the order and types of the wanted ones.

    Counts of batches that a source lacks are 0, and so are layers that no encoder uses.

    Raises:
        CheckpointError: One is missing, too much, of another shape, not finite, or a variance is negative.
    """
    counted = any(name.endswith(COUNTER) for name in found)
    lacking = [n for n in wanted if n.startswith(UNUSED) or (n.endswith(COUNTER) and not counted)]
    found = {**found, **{n: torch.zeros(wanted[n].shape, dtype=wanted[n].dtype) for n in lacking}}
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is too much" for name in found if name not in wanted]
    for name in wanted.keys() & found.keys():
        if why := weights.misfit(found[name], wanted[name]):
            problems.append(f"{name}: {why}")
        elif name.endswith("running_var") and found[name].min() < 0:
            problems.append(f"{name}: a variance is negative")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{'; '.join(sorted(problems)[:5])}{more}.")
    return {name: found[name].to(tensor.dtype) for name, tensor in wanted.items()}
