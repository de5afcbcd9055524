"""Weights on disk: from a name to a checked folder, and safe reading and writing of such a folder.

A folder holds config.json (timm's schema and a block "sslzoo"), model.safetensors (timm's key names, no head) and
README.md. timm, transformers and torchvision read the same folder. Only safetensors is read: nothing here unpickles.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from sslzoo import hub, zoo

CONFIG, WEIGHTS, CARD = hub.FILES
SCHEMA = 1
LIGHTNESS = "lab-l"  # "input" in the block "sslzoo": the network sees the lightness L of CIE Lab, in one channel
BUNDLED = Path(__file__).with_name("bundled")
COMMERCIAL = "SSLZOO_COMMERCIAL"  # set to anything but 0: no weights whose licence forbids commercial use
_told: set[str] = set()  # models whose licence this process has told of


class WeightsError(RuntimeError):
    """A model folder or one of its files is missing, damaged or not what it says it is."""


class LicenceError(Exception):
    """Weights may not be used where the caller, or the environment, says that it wants to use them."""


def locate(name_or_folder: str | Path, *, revision: str | None = None, allow_noncommercial: bool = True) -> Path:
    """Find the folder of a model, and check it as far as that goes without reading it.

    In this order: a zoo id or alias, an existing folder, a repository of the Hub. So `./name` is the folder beside a
    zoo id of that name, and a folder "org/name" wins over the repository.

    Args:
        name_or_folder: Zoo id, alias, a folder with config.json and model.safetensors, or "org/name" on the Hugging
            Face Hub. A `Path` always is a folder.
        revision: Branch, tag or commit of a repository of the Hub; None is the newest.
        allow_noncommercial: See `check_licence`.

    Raises:
        sslzoo.zoo.UnknownModelError: Neither a zoo id nor a folder; names the nearest ids.
        sslzoo.hub.HubError: The repository cannot be had; says why and what to do.
        sslzoo.downloads.DownloadError: The authors' file of a zoo id cannot be had; says why and what to do.
        LicenceError: The licence of a zoo id is not allowed; nothing is downloaded.
        WeightsError: A file is missing, or the file of a zoo id has the wrong size or SHA-256.
        ValueError: A revision of something that has none.
    """
    text = str(name_or_folder)
    folder = Path(text).expanduser()
    is_path = isinstance(name_or_folder, Path) or "/" in text or os.sep in text
    if not is_path:
        try:
            return _zoo_entry(zoo.info(text), revision, allow_noncommercial)
        except zoo.UnknownModelError as error:
            if not folder.is_dir():
                raise zoo.UnknownModelError(f"{error} There is no folder {text!r} either.") from None
    if folder.is_dir():
        _no_revision(revision, f"{text!r} is a folder")
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise WeightsError(f"{folder} has no {name}. A model folder holds {CONFIG} and {WEIGHTS}.")
        return folder
    if folder.exists():
        raise WeightsError(f"{text!r} is a file. Models are loaded from folders: give the one that it lies in.")
    if isinstance(name_or_folder, Path) or not hub.is_repo_id(text):
        raise WeightsError(
            f"There is no folder {text!r}. Models are loaded by zoo id (see sslzoo.list_models()), from a folder, or "
            "as 'org/name' from the Hugging Face Hub."
        )
    try:
        return hub.fetch(text, revision=revision)
    except hub.HubError as error:  # a mistyped path looks like this too
        raise type(error)(f"{error} There is no folder {text!r} here either.") from error


def check_licence(name: str, licence: str | None, allow_noncommercial: bool = True) -> None:
    """Refuse weights that may not be used commercially, or tell once of their licence.

    Args:
        name: The model, for the message.
        licence: SPDX identifier; None if it is not known.
        allow_noncommercial: False refuses. SSLZOO_COMMERCIAL=1 in the environment refuses as well.

    Raises:
        LicenceError: It is refused.
    """
    if licence is None or "-nc" not in licence.lower():
        return
    terms = f"The weights of {name} are under {licence}, which forbids commercial use"
    if not allow_noncommercial or os.environ.get(COMMERCIAL, "0") not in ("", "0"):
        why = f"{COMMERCIAL} is set" if allow_noncommercial else "allow_noncommercial is False"
        raise LicenceError(f"{terms}, and {why}. sslzoo.list_models() shows each model's licence.")
    if name not in _told:
        _told.add(name)
        warnings.warn(f"{terms}. {COMMERCIAL}=1 refuses such weights.", stacklevel=3)


def _zoo_entry(model: zoo.ModelInfo, revision: str | None, allow_noncommercial: bool) -> Path:
    """The folder of a zoo entry, its weights compared with the table: bundled, the authors' own, or from the Hub."""
    _no_revision(revision, f"{model.id} is an entry of the zoo, always the same bytes")
    check_licence(model.id, model.licence, allow_noncommercial)
    if model.upstream is not None:
        from sslzoo.originals import locate as locate_original  # converting needs encoders, which stand above this

        return locate_original(model)
    if model.source == "bundled":
        folder = BUNDLED / model.id
        advice = "Install sslzoo again: pip install --force-reinstall --no-deps sslzoo."
    else:
        folder = hub.fetch(model.source)
        advice = f"The repository {model.source} has other weights than this version of sslzoo knows: update sslzoo."
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise WeightsError(f"{model.id}: {folder / name} is missing. {advice}")
    path = folder / WEIGHTS
    size = path.stat().st_size
    if size != model.bytes:
        raise WeightsError(f"{model.id}: {path} has {size} bytes, the zoo table says {model.bytes}. {advice}")
    found = sha256(path)
    if found != model.sha256:
        raise WeightsError(f"{model.id}: {path} has SHA-256 {found}, the zoo table says {model.sha256}. {advice}")
    return folder


def _no_revision(revision: str | None, why: str) -> None:
    if revision is not None:
        raise ValueError(f"revision={revision!r} is for repositories of the Hugging Face Hub, and {why}: leave it out.")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sees_lightness(config: Mapping[str, Any]) -> bool:
    """Whether the encoder with this config.json sees the lightness L of Lab instead of colours."""
    return (config.get("sslzoo") or {}).get("input") == LIGHTNESS


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the config.json of an encoder: see `read_model_config`.

    Raises:
        WeightsError: Also for a network with a head.
    """
    config = read_model_config(folder)
    if task := config["sslzoo"].get("task"):
        raise WeightsError(f"{folder} is a model for {task}: sslzoo.load_model opens it; its `encoder` is inside.")
    if config["num_classes"] != 0:
        raise WeightsError(
            f"{folder / CONFIG}: num_classes is {config['num_classes']}, an encoder has 0: this is a classifier."
        )
    return config


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read and check the config.json of an encoder or a model for a task. `model_args` always is a dict afterwards.

    Raises:
        WeightsError: Not JSON, a key missing, or a newer format.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:  # bad JSON or bad UTF-8
        raise WeightsError(f"{path} is not JSON ({error}). Get the folder again.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path} must hold an object, got {type(config).__name__}.")
    if missing := [key for key in ("architecture", "num_classes", "pretrained_cfg") if config.get(key) is None]:
        raise WeightsError(f"{path} lacks {', '.join(missing)}. It needs timm's schema, as save_pretrained writes it.")
    for key in ("pretrained_cfg", "model_args", "sslzoo"):
        config[key] = config.get(key) or {}  # transformers writes "model_args": null
        if not isinstance(config[key], dict):
            raise WeightsError(f"{path}: {key} must be an object, got {config[key]!r}.")
    size = config["pretrained_cfg"].get("input_size")
    if not (isinstance(size, list) and len(size) == 3):
        raise WeightsError(f"{path}: pretrained_cfg.input_size must be [channels, height, width], got {size!r}.")
    schema = config["sslzoo"].get("schema", SCHEMA)
    if schema != SCHEMA:
        raise WeightsError(f"{path} has schema {schema}, this sslzoo reads {SCHEMA}. Update sslzoo.")
    config["model_args"].pop("num_classes", None)  # timm 1.0.31 puts it in, a second time
    return config


def read_state(folder: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Read model.safetensors, in the dtypes of `expected`. Every tensor must be there, fit, and be finite.

    Args:
        folder: Folder with model.safetensors.
        expected: The network's own `state_dict()`.

    Raises:
        WeightsError: Names the file and the tensors that are missing, unexpected, not finite, or do not fit.
    """
    path = folder / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        size = f"{path.stat().st_size} bytes" if path.is_file() else "missing"
        raise WeightsError(
            f"{path} ({size}) is truncated or not a safetensors file: {error}. Get or save the folder again."
        ) from error
    problems = [f"{key}: missing" for key in expected if key not in state]
    problems += [f"{key}: unexpected" for key in state if key not in expected]
    problems += [f"{key}: {why}" for key in expected if key in state and (why := misfit(state[key], expected[key]))]
    if problems:
        shown = "\n  ".join(problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else []))
        raise WeightsError(f"{path} does not fit the network of its {CONFIG}:\n  {shown}")
    return {key: state[key].to(expected[key].dtype) for key in expected}


def misfit(found: Tensor, expected: Tensor) -> str:
    """Say why a tensor cannot take the place of another; empty if it can. A float of any width may."""
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, needs {tuple(expected.shape)}"
    if found.dtype != expected.dtype and not (found.is_floating_point() and expected.is_floating_point()):
        return f"{found.dtype}, needs {expected.dtype}"
    if found.is_floating_point() and not torch.isfinite(found).all():
        return "has values that are NaN or infinite"
    return ""


def write_folder(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor], card: str | None = None, *, half: bool = False
) -> None:
    """Write a model folder, each file by write-then-rename: no reader ever sees half a file.

    Args:
        folder: Made if it is not there. Other files in it stay.
        config: What config.json holds.
        state: The network's `state_dict()`.
        card: Text of README.md; None leaves that file alone.
        half: Store matrices and convolutions as float16. Vectors (norms, biases, BN statistics) stay float32.

    Raises:
        WeightsError: A value is NaN or infinite, or too large for float16.
    """
    tensors = {}
    for key, value in state.items():
        narrow = half and value.is_floating_point() and value.ndim > 1
        tensors[key] = value.detach().to("cpu", torch.float16 if narrow else value.dtype).contiguous()
        if value.is_floating_point() and not torch.isfinite(tensors[key]).all():
            raise WeightsError(
                f"{key} has values that are NaN, infinite{' or too large for float16' if narrow else ''}."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    if card is not None:
        write_file(folder / CARD, card.encode())
    write_file(folder / CONFIG, (json.dumps(config, indent=2) + "\n").encode())  # last: without it a folder is no model


def write_file(path: Path, content: bytes) -> None:
    """Write a file by write-then-rename."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
