"""Finished run -> repository in the zoo's layout -> bundled with the package, with its row in zoo.toml and its card."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from sslzoo.card import render_card
from sslzoo.weights import write_folder

SPLITS = {"train", "training", "images", "data", "unlabelled", "unlabeled"}


def data_name(data: Path) -> str:
    """A name for a data set from its path: the last part that is not just a split. cifar10/train -> cifar10."""
    parts = [part for part in data.absolute().parts if part.lower() not in SPLITS]
    return Path(parts[-1]).stem.lower()


def write_run(
    folder: Path,
    encoder: nn.Module,
    config: Mapping[str, Any],
    recipe: Mapping[str, Any],
    data: Path,
    facts: Mapping[str, Any],
) -> None:
    """Write config.json, model.safetensors and README.md of a finished run.

    Args:
        folder: The run.
        encoder: The network to publish, in timm's key names.
        config: Its config.json, as `sslzoo.create` made it.
        recipe: All settings, as `Plan.to_dict` gives them.
        data: Where the images came from.
        facts: What really ran: images, steps, seconds, device, processes.
    """
    name = data_name(data)
    block = {
        "schema": 1,
        "method": recipe["method"],
        "dataset": name,
        "recipe": dict(recipe),
        "metrics": {},
        "source": "trained",
        "run": dict(facts),
    }
    cfg = dict(config["pretrained_cfg"]) | {"tag": f"{recipe['method']}_{name}"}
    full = dict(config) | {"pretrained_cfg": cfg, "sslzoo": block}
    state = {key: value.detach().cpu() for key, value in encoder.state_dict().items()}
    write_folder(folder, full, state, render_card(f"{recipe['method']}-{recipe['arch']}-{name}", full))
