"""The authors' checkpoints on this machine: downloaded once, checked, converted, and held to their digests ever after.

folder = locate(zoo.info("byol-resnet50-imagenet"))                  # what sslzoo.load calls
fetch(zoo.info("byol-resnet50-imagenet"), from_file=Path("pretrain_res50x1.pkl"))

Below SSLZOO_HOME (by default ~/.cache/sslzoo): models/ID has config.json, model.safetensors and a card; records/ID.json
the digests of every file that ever came for a model, from its first use on; downloads/ what is on its way. The download
is removed after conversion: it often is several times as large as the encoder.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from sslzoo import weights
from sslzoo.conversion import convert, facts
from sslzoo.downloads import DownloadError, download, file_name
from sslzoo.zoo import ModelInfo, UpstreamFile

HOME = "SSLZOO_HOME"


@dataclass(frozen=True)
class Verdict:
    """What `verify` found.

    Attributes:
        id: The model.
        state: "ok", "absent" or "changed".
        detail: In words.
    """

    id: str
    state: str
    detail: str


def home() -> Path:
    """Folder of all that is downloaded and converted: SSLZOO_HOME, or sslzoo in the user's cache."""
    if set_ := os.environ.get(HOME):
        return Path(set_).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sslzoo"


def folder_of(info: ModelInfo) -> Path:
    """Where a model is, or will be."""
    return home() / "models" / info.id


def locate(info: ModelInfo) -> Path:
    """The folder of a model; its files are fetched and converted if they are not there.

    Raises:
        sslzoo.downloads.DownloadError: They cannot be had.
        sslzoo.weights.WeightsError: A file is not what it was at its first use, or not what the authors published.
    """
    return _checked(info) or fetch(info)


def fetch(info: ModelInfo, *, from_file: Path | None = None, keep: bool = False) -> Path:
    """Download and convert a model, if that has not been done, and return its folder.

    Args:
        info: A row of the zoo that others have trained.
        from_file: The authors' file, if you have it: then nothing is downloaded.
        keep: Keep the download, in downloads/.

    Raises:
        ValueError: The model was trained by this project.
        sslzoo.downloads.DownloadError: It cannot be had.
        sslzoo.weights.WeightsError: A file is not what it was at its first use, or not what the authors published.
    """
    known = facts(info)
    with _lock(info):
        if found := _checked(info):  # another process has done it meanwhile
            return found
        if from_file is not None:
            path, file = from_file, _matching(from_file, known.files)
            origin = from_file.name
        else:
            path, file = _download(info, known.files)
            origin = file.url
        try:
            digest = _check_digest(info, path, file, origin)
            convert(path, info, folder_of(info), origin=origin)
        except weights.WeightsError:
            if from_file is None:
                path.unlink()  # another try shall not find it again
            raise
        _record(info, origin, digest)
        if from_file is None and not keep:
            path.unlink()
    return folder_of(info)


def verify(models: Iterable[ModelInfo]) -> list[Verdict]:
    """Read the weights of models anew and compare them with the zoo's table, or with the digest of their first use.

    Args:
        models: Rows of the zoo.
    """
    return [_verdict(info) for info in models]


def _verdict(info: ModelInfo) -> Verdict:
    try:
        if info.upstream is None and info.source == "bundled":
            weights.locate(info.id)
        elif info.upstream is None or _checked(info) is None:
            return Verdict(info.id, "absent", "not on this machine")
    except weights.WeightsError as error:
        return Verdict(info.id, "changed", str(error))
    digest = info.sha256 or _read_record(info)["weights"]
    return Verdict(info.id, "ok", f"sha256 {digest}")


def _checked(info: ModelInfo) -> Path | None:
    """The folder of a model if it is complete, its weights those of the record; None if it is not there."""
    folder = folder_of(info)
    if not all((folder / name).is_file() for name in (weights.CONFIG, weights.WEIGHTS)):
        return None
    wanted = _read_record(info).get("weights")
    if wanted is None:
        return None
    found = weights.sha256(folder / weights.WEIGHTS)
    if found != wanted:
        raise weights.WeightsError(
            f"{info.id}: {folder / weights.WEIGHTS} has changed since it was converted: SHA-256 {found}, it was "
            f"{wanted}. Remove {folder} and load it again."
        )
    return folder


def _download(info: ModelInfo, files: tuple[UpstreamFile, ...]) -> tuple[Path, UpstreamFile]:
    """One of the files, each tried in turn: mirrors may be of another form."""
    reasons = []
    for file in files:
        # named by the whole URL: two models' files may have one name
        name = f"{hashlib.sha256(file.url.encode()).hexdigest()[:16]}-{file_name(file.url)[-60:]}"
        path = home() / "downloads" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if not path.is_file():  # it may have been kept
                download(file.url, path)
        except DownloadError as error:
            reasons.append(str(error))
        else:
            return path, file
    lines = "\n  ".join(reasons)
    raise DownloadError(
        f"{info.id} is not on this machine, and could not be downloaded:\n  {lines}\nCheck the network and the proxy, "
        f"then try again: what has come is kept. With a file from elsewhere: sslzoo fetch {info.id} --from-file FILE."
    )


def _matching(path: Path, files: tuple[UpstreamFile, ...]) -> UpstreamFile:
    """The published file that a user's file seems to be: of its name, else the first."""
    if not path.is_file():
        raise FileNotFoundError(2, "There is no such file", str(path))
    named = [file for file in files if file_name(file.url) == path.name]
    return (named or list(files))[0]


def _check_digest(info: ModelInfo, path: Path, file: UpstreamFile, origin: str) -> str:
    """SHA-256 of a file, compared with what is known of it: from the table, and from its first use."""
    digest = weights.sha256(path)
    kind, _, known = file.digest.partition(":")
    if known:
        with path.open("rb") as opened:
            found = digest if kind == "sha256" else hashlib.file_digest(opened, kind).hexdigest()
        if not found.startswith(known):
            raise weights.WeightsError(
                f"{info.id}: {origin} has {kind} {found}, what its authors published begins with {known}. It is "
                "another file, or was damaged on its way: try again."
            )
    first = _read_record(info).get("files", {}).get(origin)
    if first not in (None, digest):
        raise weights.WeightsError(
            f"{info.id}: {origin} is not what it was at its first use on this machine: SHA-256 {digest}, it was "
            f"{first}. If you know why and trust the new file, remove {_record_file(info)}."
        )
    return digest


def _record(info: ModelInfo, origin: str, digest: str) -> None:
    record = _read_record(info)
    record["files"] = {**record.get("files", {}), origin: digest}
    record["weights"] = weights.sha256(folder_of(info) / weights.WEIGHTS)
    record["date"] = datetime.now(UTC).date().isoformat()
    _record_file(info).parent.mkdir(parents=True, exist_ok=True)
    weights.write_file(_record_file(info), (json.dumps(record, indent=2) + "\n").encode())


def _read_record(info: ModelInfo) -> dict[str, Any]:
    path = _record_file(info)
    if not path.is_file():
        return {}
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise weights.WeightsError(f"{path} is damaged ({error}). Remove it to begin anew.") from error
    return record


def _record_file(info: ModelInfo) -> Path:
    return home() / "records" / f"{info.id}.json"


@contextmanager
def _lock(info: ModelInfo) -> Iterator[None]:
    """One process at a time downloads and converts a model; the others wait, and find it."""
    path = home() / "records" / f"{info.id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield
