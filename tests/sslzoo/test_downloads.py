"""Downloads from a server on this machine that breaks in every way that servers break."""

import errno
from pathlib import Path
from typing import Any

import pytest
from file_server import FileServer
from huggingface_hub import constants

from sslzoo import downloads
from sslzoo.downloads import DownloadError, download

CONTENT = bytes(range(256)) * 40


@pytest.fixture
def url(web: FileServer) -> str:
    web.files["a/model.pkl"] = CONTENT
    return f"{web.url}/a/model.pkl"


def test_a_file_comes_whole_and_leaves_nothing_beside_it(url: str, tmp_path: Path) -> None:
    download(url, tmp_path / "model.pkl")
    assert (tmp_path / "model.pkl").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["model.pkl"]


def test_a_broken_download_goes_on_where_it_broke_off(url: str, web: FileServer, tmp_path: Path) -> None:
    web.cuts = 3
    download(url, tmp_path / "model.pkl")
    assert (tmp_path / "model.pkl").read_bytes() == CONTENT
    assert web.log == ["a/model.pkl", "a/model.pkl from 5120", "a/model.pkl from 7680", "a/model.pkl from 8960"]


def test_a_later_process_goes_on(url: str, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", killed)
    web.cuts = 1
    with pytest.raises(KeyboardInterrupt):
        download(url, tmp_path / "model.pkl")
    assert not (tmp_path / "model.pkl").exists()
    download(url, tmp_path / "model.pkl")
    assert (tmp_path / "model.pkl").read_bytes() == CONTENT
    assert web.log[-1] == "a/model.pkl from 5120"


@pytest.mark.parametrize("change", ["content", "ranges", "tags"])
def test_the_rest_of_another_file_is_not_put_behind_the_first(
    url: str, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    web.tags = change != "tags"
    web.ranges = change != "ranges"
    new = CONTENT[::-1] if change == "content" else CONTENT

    def replaced(seconds: float) -> None:
        web.files["a/model.pkl"] = new

    monkeypatch.setattr("time.sleep", replaced)
    web.cuts = 1
    download(url, tmp_path / "model.pkl")
    assert (tmp_path / "model.pkl").read_bytes() == new


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_busy_server_is_asked_again(url: str, web: FileServer, tmp_path: Path, status: int) -> None:
    web.status = status, 3
    download(url, tmp_path / "model.pkl")
    assert len(web.log) == 4


def test_it_gives_up_after_tries_that_bring_nothing(url: str, web: FileServer, tmp_path: Path) -> None:
    web.status = 503, 99
    with pytest.raises(DownloadError, match=r"model\.pkl: the server answers 503"):
        download(url, tmp_path / "model.pkl")
    assert len(web.log) == downloads.TRIES


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_refusal_is_final(url: str, web: FileServer, tmp_path: Path, status: int) -> None:
    web.status = status, 99
    with pytest.raises(DownloadError, match=f"the server answers {status}"):
        download(url, tmp_path / "model.pkl")
    assert len(web.log) == 1


def test_no_server_and_no_network(url: str, web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match="the server answers 404"):
        download(f"{web.url}/gone.pkl", tmp_path / "gone.pkl")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/x: .*refused"):
        download("http://127.0.0.1:9/x", tmp_path / "x")
    with pytest.raises(DownloadError, match="only http and https"):
        download("file:///etc/passwd", tmp_path / "x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        download(url, tmp_path / "model.pkl")
    assert not list(tmp_path.glob("*.pkl"))


def test_a_full_disk_is_said_before_anything_comes(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 10

    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: Full)
    with pytest.raises(OSError, match=r"0 MB are free\. SSLZOO_HOME moves") as caught:
        download(url, tmp_path / "model.pkl")
    assert caught.value.errno == errno.ENOSPC
    assert not (tmp_path / "model.pkl").exists()


def test_a_link_that_leads_elsewhere_is_followed(url: str, web: FileServer, tmp_path: Path) -> None:
    web.moved["sh/InfoMin_800.pth?dl=1"] = url  # as Dropbox does it
    web.cuts = 1
    download(f"{web.url}/sh/InfoMin_800.pth?dl=1", tmp_path / "model.pkl")
    assert (tmp_path / "model.pkl").read_bytes() == CONTENT
    assert web.log[-1] == "a/model.pkl from 5120"
    assert downloads.file_name(f"{web.url}/sh/InfoMin_800.pth?dl=1") == "InfoMin_800.pth"


def test_a_proxy_of_the_environment_is_used(web: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session

    web.files["http://authors.example/model.pkl"] = CONTENT  # a proxy is asked for the whole URL
    monkeypatch.setenv("http_proxy", web.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    close_session()
    try:
        download("http://authors.example/model.pkl", tmp_path / "model.pkl")
    finally:
        monkeypatch.undo()
        close_session()
    assert (tmp_path / "model.pkl").read_bytes() == CONTENT


def test_an_answer_of_another_length_than_announced_is_no_file(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Any = downloads._size
    monkeypatch.setattr(downloads, "_size", lambda path: min(real(path), 100))
    with pytest.raises(DownloadError, match="100 bytes came, 10,240 were announced"):
        download(url, tmp_path / "model.pkl")
