from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub
from huggingface_hub import close_session, constants


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
