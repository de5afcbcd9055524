"""The Hugging Face Hub: repositories into the cache of this machine, model folders into repositories. Needs no torch.

folder = fetch("org/name", revision="v1")             # config.json, model.safetensors and README.md, nothing else
push_folder(folder, "org/other", private=True).url    # of the commit

Settings are those of huggingface_hub: HF_TOKEN or `hf auth login`, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE. Whatever fails
becomes a `HubError` that says what was tried, why it failed, what to do and what loads without a network.
"""

import errno
import hashlib
import os
import re
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelInfo, constants, get_token, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of httpx or httpx2, as the client has it
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from sslzoo import zoo

# What is fetched and pushed: the configuration, the weights (never a pickle), the card.
FILES = ("config.json", "model.safetensors", "README.md")
# RuntimeError is how the client wraps a failed upload.
_FAILURES = (OSError, HTTPError, ValueError, RuntimeError)
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/@-]*")  # a part of git's rules, enough for branches, tags and commits


class HubError(Exception):
    """A repository of the Hub could not be read or written. Subclasses tell what would mend it."""


class HubNotFoundError(HubError):
    """No such repository, revision or file, or a private one: mend the name, or log in."""


class HubAccessError(HubError):
    """A token is missing, not valid or may not do this: log in, or ask for access."""


class HubUnreachableError(HubError):
    """No network, no server, no whole answer: try again later."""


@dataclass(frozen=True)
class File:
    """One file of a push.

    Attributes:
        name: In the folder and in the repository.
        bytes: Its size.
        state: "new", "changed" or "unchanged", beside what the repository has.
    """

    name: str
    bytes: int
    state: str


@dataclass(frozen=True)
class Push:
    """What a push uploaded, or would upload.

    Attributes:
        repo_id: The repository, "org/name".
        files: All files of the model.
        url: The commit, or the newest one if nothing had changed; "" if nothing is there yet.
    """

    repo_id: str
    files: tuple[File, ...]
    url: str

    @property
    def changed(self) -> list[str]:
        """Names of the files that the repository lacks or has otherwise."""
        return [file.name for file in self.files if file.state != "unchanged"]

    def __str__(self) -> str:
        width = max((len(file.name) for file in self.files), default=0)
        lines = [f"  {file.name:<{width}}  {file.bytes:>11,} bytes  {file.state}" for file in self.files]
        return "\n".join([f"{self.repo_id}: {len(self.changed)} of {len(self.files)} files differ", *lines])


def is_repo_id(text: str) -> bool:
    """Tell whether a text can be the name of a repository: "org/name"."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.count("/") == 1


def fetch(repo_id: str, *, revision: str | None = None) -> Path:
    """Return the folder of the cache with the files of a repository; downloads those that are not there yet.

    Processes may call it at once. The files are compared with the digests by which the Hub knows them.

    Args:
        repo_id: "org/name".
        revision: Branch, tag or commit; None is the newest of the main branch, or what the cache has of it without a
            network.

    Raises:
        HubError: It cannot be had; nothing half-written is left.
    """
    _check_name(repo_id)
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise HubError(f"{revision!r} is no name of a revision: that is a branch, a tag or a commit, such as 'main'.")
    try:
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(FILES),
                library_name="sslzoo",
                library_version=version("sslzoo"),
            )
        )
    except _FAILURES as error:
        trying = f"{repo_id!r} (revision {revision or 'main'}) cannot be loaded from {constants.ENDPOINT}"
        raise _explained(error, trying, repo_id, token=get_token(), reading=True) from error
    for name in FILES:
        _verify(folder / name)
    for name in FILES[:2]:
        if not (folder / name).is_file():
            raise HubNotFoundError(
                f"{constants.ENDPOINT}/{repo_id} (revision {revision or 'main'}) has no {name}. A model needs "
                f"{FILES[0]} and {FILES[1]}; weights in other formats, such as pickles, are not read."
            )
    return folder


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    message: str | None = None,
    token: str | None = None,
    dry_run: bool = False,
) -> Push:
    """Upload config.json, model.safetensors and README.md of a folder, in one commit; only what changed.

    Args:
        folder: Holds the three files; others are left alone.
        repo_id: "org/name"; made if it is not there.
        private: Make it private. An existing public repository is refused: it would stay public.
        message: Of the commit.
        token: With write access; None takes HF_TOKEN or that of `hf auth login`.
        dry_run: Only compare.

    Raises:
        HubError: It cannot be done; the repository has all of the commit or nothing of it.
    """
    _check_name(repo_id)
    _check_folder(folder)
    token = token or get_token()
    if token is None and not dry_run:
        raise HubAccessError(
            f"Pushing to {constants.ENDPOINT}/{repo_id} needs a token with write access. Make one at "
            f"{constants.ENDPOINT}/settings/tokens, then run `hf auth login` or set HF_TOKEN."
        )
    api = HfApi(token=token, library_name="sslzoo", library_version=version("sslzoo"))
    try:
        remote = _remote(api, repo_id)
        push = _compare(folder, repo_id, remote)
        if private and remote is not None and not remote.private:
            raise HubError(
                f"{constants.ENDPOINT}/{repo_id} is public, and pushing does not change that: make it private in its "
                "settings first, or take another name."
            )
        if dry_run or not push.changed:
            return push
        if remote is None:  # None, not False: an organization may have private as its default
            api.create_repo(repo_id, private=private or None, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=push.changed,
            commit_message=message or f"Upload with sslzoo {version('sslzoo')}",
        )
        return replace(push, url=commit.commit_url)
    except _FAILURES as error:
        trying = f"{repo_id!r} cannot be pushed to {constants.ENDPOINT}"
        raise _explained(error, trying, repo_id, token=token, reading=False) from error


def _check_name(repo_id: str) -> None:
    if not is_repo_id(repo_id):
        raise HubError(
            f"{repo_id!r} is no name of a repository: that is org/name, of letters, digits, '-', '_' and '.'."
        )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that lacks a file, or whose card the Hub would refuse."""
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise HubError(f"{folder} has no {' and no '.join(missing)}. A model folder to push holds {', '.join(FILES)}.")
    try:
        ModelCard((folder / FILES[2]).read_text(encoding="utf-8"))
    except ValueError as error:
        raise HubError(f"{folder / FILES[2]} is no card that the Hub accepts: {_words(error)}") from error


def _remote(api: HfApi, repo_id: str) -> ModelInfo | None:
    """What the Hub has, with digests; None if there is no such repository that the token may see."""
    try:
        return api.model_info(repo_id, files_metadata=True)
    except HfHubHTTPError as error:
        if error.response.status_code == 404 or (error.response.status_code == 401 and api.token is None):
            return None
        raise


def _compare(folder: Path, repo_id: str, remote: ModelInfo | None) -> Push:
    theirs = {}
    for file in (remote.siblings or []) if remote else []:
        theirs[file.rfilename] = file.lfs.sha256 if file.lfs else file.blob_id or ""
    files = []
    for name in FILES:
        path = folder / name
        state = "new"
        if name in theirs:
            state = "unchanged" if _digest(path, like=theirs[name]) == theirs[name] else "changed"
        files.append(File(name, path.stat().st_size, state))
    url = f"{constants.ENDPOINT}/{repo_id}/commit/{remote.sha}" if remote else ""
    return Push(repo_id, tuple(files), url)


def _digest(path: Path, like: str) -> str | None:
    """SHA-256 of a large file, git's SHA-1 of a small one: the kind of digest that `like` is; None if it is neither."""
    with path.open("rb") as file:
        if len(like) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest()
        if len(like) == 40:
            content = file.read()
            return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    return None


def _verify(path: Path) -> None:
    """Compare a file of the cache with the digest that the cache names it by; a damaged file is removed."""
    if not path.is_symlink():  # missing, or a cache without links, which does not keep the digest
        return
    blob = path.parent / path.readlink()
    if _digest(path, like=blob.name) in (blob.name, None):
        return
    for damaged in (path.resolve(), blob, path):
        damaged.unlink(missing_ok=True)
    raise HubError(
        f"{path} was damaged on its way or on this disk, and has been removed from the cache. Load it again."
    )


def _explained(error: Exception, trying: str, repo_id: str, *, token: str | None, reading: bool) -> HubError:
    """Our error for one that the client raised: the class that says what mends it, and one line."""
    cause = error
    # nothing cached after a failure, a failed upload, a card that the Hub refused: what happened is the cause
    if isinstance(error, (LocalEntryNotFoundError, RuntimeError, ValueError)) and isinstance(
        error.__cause__, Exception
    ):
        cause = error.__cause__
    kind, why = _refusal(cause, repo_id, token) if isinstance(cause, HfHubHTTPError) else _breakdown(cause)
    if kind is HubUnreachableError:
        why += f" {_loads_offline(repo_id)}" if reading else " Pushing again is safe: a commit is whole or none."
    return kind(f"{trying}: {why}")


def _breakdown(cause: Exception) -> tuple[type[HubError], str]:
    """What to say of a failure on this machine or on the way to the Hub."""
    if isinstance(cause, OfflineModeIsEnabled):
        return HubUnreachableError, "HF_HUB_OFFLINE is set. Unset it to reach the Hub."
    if isinstance(cause, (HTTPError, ConnectionError, TimeoutError)):
        return HubUnreachableError, (
            f"there is no connection, or it was cut ({_words(cause)}). Check the network, the proxy and HF_ENDPOINT, "
            "then try again."
        )
    if isinstance(cause, OSError) and cause.errno in _NO_SPACE:
        return HubError, (
            f"no space left ({cause.strerror}). Free some, or set HF_HOME to a folder of another disk (the cache is "
            f"{constants.HF_HUB_CACHE}), then try again."
        )
    if isinstance(cause, OSError) and cause.errno is not None:
        where = str(cause.filename or constants.HF_HUB_CACHE)
        hint = " HF_HOME moves the cache." if where.startswith(constants.HF_HUB_CACHE) else ""
        return HubError, f"{cause.strerror}: {where}.{hint}"
    # a size that is not as announced, an answer that is no JSON or lacks what a Hub sends
    return HubUnreachableError, f"the answer is damaged or not that of a Hub ({_words(cause)}). Try again."


def _refusal(error: HfHubHTTPError, repo_id: str, token: str | None) -> tuple[type[HubError], str]:
    """What to say of an answer of the Hub that is an error."""
    status = error.response.status_code
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, GatedRepoError):
        then = "then try again" if token else "then run `hf auth login` or set HF_TOKEN"
        return HubAccessError, f"its owners decide who may load it. Ask for access at {page}, {then}."
    if isinstance(error, RevisionNotFoundError):
        return HubNotFoundError, f"there is no such revision. {page}/commits/main shows them."
    if isinstance(error, RemoteEntryNotFoundError):
        return HubNotFoundError, f"a file is gone ({_words(error)})."
    if status == 401 and token:
        return HubAccessError, (
            f"the token {_origin(token)} is not valid. Make another at {constants.ENDPOINT}/settings/tokens, or take it"
            " away: public repositories need none."
        )
    if status in (401, 404):
        see = "your token may not see" if token else "you need to log in for (`hf auth login`, or set HF_TOKEN)"
        return HubNotFoundError, f"there is no such repository, or it is a private one that {see}. Check the name."
    if status == 403:
        what = f"the token {_origin(token)} does not permit it" if token else "it needs a token"
        return HubAccessError, f"{what} ({_words(error)})."
    if status == 429 or status >= 500:
        return HubUnreachableError, f"the Hub is busy or broken, it answers {status}. Try again later."
    return HubError, f"the Hub refuses it ({_words(error)})."


def _origin(token: str) -> str:
    if token == os.environ.get("HF_TOKEN"):
        return "in HF_TOKEN"
    return "stored by `hf auth login`" if token == get_token() else "that was given"


def _words(error: Exception) -> str:
    """An error of the client as part of a line."""
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    words = " ".join(text.split())
    return words if len(words) <= 200 else f"{words[:200]}…"


def _loads_offline(repo_id: str) -> str:
    """What can be loaded without a network: other revisions of this repository, the bundled zoo, the cache."""
    found: dict[str, list[str]] = {}
    for config in sorted(Path(constants.HF_HUB_CACHE).glob(f"models--*/snapshots/*/{FILES[0]}")):
        if config.with_name(FILES[1]).is_file() and b'"sslzoo"' in config.read_bytes():
            name = config.parents[2].name.removeprefix("models--").replace("--", "/")
            found.setdefault(name, []).append(config.parent.name)
    if repo_id in found:
        return f"The cache has revision {' and '.join(map(repr, found[repo_id]))}, which loads without a network."
    ids = [model.id for model in zoo.list_models() if model.source == "bundled"]
    text = f"Without a network load: {_few(ids)} (bundled)"
    return f"{text}, {_few(list(found))} (cached)." if found else f"{text}; {constants.HF_HUB_CACHE} has none yet."


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
