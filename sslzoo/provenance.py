"""Which code made a file or a number."""

import subprocess
from pathlib import Path


def commit(folder: Path, *, ignore: str | None = None) -> str:
    """Short commit of the git checkout that a folder lies in.

    Args:
        folder: Any folder of the checkout.
        ignore: A path below `folder` whose changes do not count.

    Returns:
        Such as "1a2b3c4", with "+" if tracked files differ from it; "" outside a checkout or without git.
    """
    head = _git(folder, "rev-parse", "--short", "HEAD")
    if not head:
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
