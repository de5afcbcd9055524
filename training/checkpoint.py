"""Checkpoints and logs that survive a kill at any moment: written beside their place, flushed, then renamed."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be continued from; the message says why and what to do."""


def save(folder: Path, state: Mapping[str, Any]) -> None:
    """Write RUN/checkpoint.pt; until the very end the previous one stays in place."""
    target, fresh = folder / CHECKPOINT, folder / f"{CHECKPOINT}.tmp"
    with fresh.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(target)


def load(folder: Path) -> dict[str, Any] | None:
    """The state of RUN/checkpoint.pt on the CPU, or None where there is none yet. Runs no code from the file.

    Raises:
        CheckpointError: The file is damaged.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Delete it to start this run from its beginning."
        ) from error
    return state


class Log:
    """RUN/log.jsonl: one JSON object a line; lines after the step resumed from are cut off."""

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / LOG
        kept = [line for line in self._lines() if json.loads(line)["step"] <= step] if step else []
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def _lines(self) -> list[str]:
        """All whole lines; a kill may have left half a line at the end."""
        if not self.path.exists():
            return []
        return [line for line in self.path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All lines of RUN/log.jsonl."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
