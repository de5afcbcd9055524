"""Large files from the web: resumed where they broke off, and there whole or not at all.

download("https://…/pretrain_res50x1.pkl", folder / "pretrain_res50x1.pkl")

The client is huggingface_hub's, so that proxies (HTTPS_PROXY, NO_PROXY), certificates (SSL_CERT_FILE) and
HF_HUB_OFFLINE mean here what they mean for the Hub. No token is ever sent.
"""

import errno
import shutil
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import get_session
from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled  # type: ignore[attr-defined]  # see hub.py
from tqdm import tqdm

TIMEOUT = 30.0  # seconds without an answer
TRIES = 5  # in a row that bring nothing


class DownloadError(Exception):
    """A file could not be downloaded: what was tried, why it failed, what to do."""


class _RefusedError(Exception):
    """A server's answer that trying again would not change."""


def download(url: str, path: Path) -> None:
    """Download a file to `path`. What an earlier, broken download left beside it is gone on with.

    Args:
        url: Where the file is.
        path: Where it goes; its folder must be there.

    Raises:
        DownloadError: It cannot be had. What has come so far is kept.
        OSError: It cannot be written.
    """
    partial = path.with_name(f"{path.name}.part")
    try:
        _fetch(url, partial)
    except OfflineModeIsEnabled:
        raise DownloadError(f"{url}: HF_HUB_OFFLINE is set. Unset it to download.") from None
    except (HTTPError, _RefusedError, ConnectionError) as error:
        raise DownloadError(f"{url}: {_words(error)}") from error
    partial.replace(path)
    _tag(partial).unlink(missing_ok=True)


def file_name(url: str) -> str:
    """Name of the file that a URL leads to: without what follows a question mark."""
    return urlsplit(url).path.rpartition("/")[2]


def _fetch(url: str, partial: Path) -> None:
    """Bring all of `url` into `partial`; tries again while that brings something."""
    if not url.startswith(("https://", "http://")):
        raise _RefusedError("only http and https are fetched.")
    failures = 0
    while True:
        before = _size(partial)
        try:
            _stream(url, partial)
            return
        except HTTPError as error:
            failures = 0 if _size(partial) > before else failures + 1
            if failures >= TRIES:
                raise
            print(f"{_words(error)}: trying again", file=sys.stderr)
            time.sleep(2**failures)


def _stream(url: str, partial: Path) -> None:
    """One request: the rest of the file, if the server still has the one that was begun, else all of it."""
    have = _size(partial)
    tag = _tag(partial).read_text() if have and _tag(partial).is_file() else ""
    headers = {"Accept-Encoding": "identity"}
    if tag:  # without a tag nobody knows whether the rest belongs to what is here
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
        if response.status_code not in (200, 206):
            raise _failure(response, partial)
        have = have if response.status_code == 206 else 0
        if not have:
            partial.unlink(missing_ok=True)
            _tag(partial).write_text(_strong_tag(response))
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        _check_space(partial, total, have)
        with (
            partial.open("ab") as file,
            tqdm(desc=file_name(url)[-40:], total=total, initial=have, unit="B", unit_scale=True) as bar,
        ):
            for chunk in response.iter_raw():  # as they come: what waits to fill a block would be lost
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(partial) != total:
        raise _RefusedError(f"{_size(partial):,} bytes came, {total:,} were announced.")


def _failure(response: Any, partial: Path) -> Exception:
    """What to do of an answer that is no file: try again, or not."""
    status = response.status_code
    if status == 416:  # nothing is left to send, or the file is another one: begin anew
        partial.unlink(missing_ok=True)
    if status in (408, 416, 429) or status >= 500:
        return HTTPError(f"the server answers {status}")
    return _RefusedError(f"the server answers {status}.")


def _strong_tag(response: Any) -> str:
    """What names these very bytes, for If-Range: a strong ETag, or the date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _tag(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_space(partial: Path, total: int | None, have: int) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - have > free:
        needs = f"No space: {(total - have) / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free. SSLZOO_HOME moves"
        raise OSError(errno.ENOSPC, needs, str(partial.parent))


def _words(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 200 else f"{words[:200]}…"
