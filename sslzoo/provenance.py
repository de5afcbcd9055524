"""Which code made a file or a number, and on what."""

import subprocess
from pathlib import Path
from typing import Any

import torch


def run_facts(device: torch.device, processes: int) -> dict[str, Any]:
    """What a card says of how something ran.

    Args:
        device: Of one process.
        processes: How many there were.

    Returns:
        device (in words), processes, torch (its version) and commit (of this code; "" outside a checkout).
    """
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads",
        "processes": processes,
        "torch": torch.__version__,
        "commit": commit(Path(__file__).parent),
    }


def commit(folder: Path, *, ignore: str | None = None) -> str:
    """Short commit of the git checkout that a folder lies in.

    Args:
        folder: Any folder of the checkout.
        ignore: A path below `folder` whose changes do not count.

    Returns:
        Such as "1a2b3c4", with "+" if tracked files differ from it; "" without git or where nothing is tracked.
    """
    head = _git(folder, "rev-parse", "--short", "HEAD")
    if not head or not _git(folder, "ls-files", "."):  # site-packages may lie inside somebody else's checkout
        return ""
    but = [f":(exclude,top){_top_relative(folder, ignore)}"] if ignore else []
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ":/", *but)
    return f"{head}+" if changed else head


def _top_relative(folder: Path, path: str) -> str:
    """A path from the top of the checkout, as git's "top" pathspecs have it."""
    return f"{_git(folder, 'rev-parse', '--show-prefix')}{path}"


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
