import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import published
import pytest
import timm
from file_server import FileServer
from hub_server import Hub
from huggingface_hub import close_session, constants

from sslzoo import encoder, zoo


@pytest.fixture
def server() -> Iterator[Hub]:
    """A stand-in for the Hugging Face Hub, on this machine."""
    running = Hub()
    yield running
    running.stop()


@pytest.fixture
def hub_client(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of this process talks to the stand-in, has an empty cache and no token, and does not wait."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    close_session()


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A web server on this machine; what is fetched goes to `tmp_path / "home"`."""
    monkeypatch.setenv("SSLZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    close_session()
    running = FileServer()
    yield running
    running.stop()


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the architecture of `published.network()`; a pre-activation ResNet and a VGG are thin as well."""
    monkeypatch.setitem(encoder.VARIANTS, published.THIN, ("resnet18", published.THIN_ARGS))
    monkeypatch.setitem(encoder.VARIANTS, published.PREACT, ("resnetv2_50bare", published.PREACT_ARGS))
    monkeypatch.setitem(timm.models.vgg.cfgs, "vgg11", published.VGG)
    return published.THIN


@pytest.fixture
def published_at(web: FileServer, thin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put the zoo's files on the web server of this machine: `published_at({id: content})`.

    The table is the package's own, but for URLs, which point to the server, digests, and architectures: a thin ResNet
    in the place of all ResNets, and a thin VGG, unless `whole` is set.
    """

    def publish(contents: Mapping[str, bytes], *, whole: bool = False) -> None:
        text = zoo.TABLE.read_text(encoding="utf-8")
        for id_, content in contents.items():
            for file in zoo.info(id_).upstream.files:
                web.files[file.url.partition("://")[2]] = content
        text = re.sub(r'url = "https?://', f'url = "{web.url}/', text)
        text = re.sub(r', digest = "[^"]*"', "", text)
        table = tmp_path / "upstream.toml"
        thin = re.sub(r'arch = "resnet[0-9w]+"', f'arch = "{published.THIN}"', text)
        thin = thin.replace('"resnetv2_50bare"', f'"{published.PREACT}"').replace('"vgg16_bn"', '"vgg11_bn"')
        table.write_text(text if whole else thin, encoding="utf-8")
        monkeypatch.setattr(zoo, "TABLE", table)

    return publish
