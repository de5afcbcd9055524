"""The real client of the Hugging Face Hub against a stand-in: what is pushed and fetched, and all that can fail."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Fault, Hub, git_digest
from huggingface_hub import HfApi, ModelCard, close_session, constants, file_download
from huggingface_hub.errors import HfHubHTTPError

import sslzoo
from sslzoo import hub, weights, zoo
from sslzoo.hub import HubAccessError, HubError, HubNotFoundError, HubUnreachableError

NAME = "org/thin"


@pytest.fixture(scope="module")
def encoder() -> sslzoo.Encoder:
    return sslzoo.create("resnet18quarter", seed=0, image_size=64)


@pytest.fixture(autouse=True)
def client(hub_client: None) -> None:
    """Every test here talks to the stand-in."""


@pytest.fixture
def files(encoder: sslzoo.Encoder, tmp_path: Path) -> dict[str, bytes]:
    """A model, as it is on the Hub, and more that nobody asked for."""
    encoder.save_pretrained(tmp_path / "saved", card="---\nlibrary_name: timm\n---\n# thin")
    found = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    return found | {"pytorch_model.bin": b"a pickle", "sub/config.json": b"{}"}


def login(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("HF_TOKEN", token)


def cached_files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file() and "thin" in str(path))


# --- push, then load


def test_what_is_pushed_loads_from_a_new_cache_with_the_same_bytes(
    encoder: sslzoo.Encoder, server: Hub, tmp_path: Path
) -> None:
    url = encoder.push_to_hub(NAME, token="writer")
    repository = server.repositories[NAME]
    assert url == f"{server.url}/org/thin/commit/{repository.refs['main']}"
    assert not repository.private
    assert len(repository.messages) == 2  # that of making it, and one commit with all files
    assert repository.messages[1] == f"Upload with sslzoo {sslzoo.__version__}"

    folder = weights.locate(NAME)
    assert tmp_path / "cache" in folder.parents
    encoder.save_pretrained(tmp_path / "saved")
    for name in ("config.json", "model.safetensors"):
        assert weights.sha256(folder / name) == weights.sha256(tmp_path / "saved" / name)
    loaded = sslzoo.Encoder.from_pretrained(NAME)
    assert loaded.config == encoder.config
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[key], value)


def test_the_card_that_is_pushed_loads_from_its_repository(encoder: sslzoo.Encoder, server: Hub) -> None:
    encoder.push_to_hub(NAME, token="writer")
    text = server.repositories[NAME].files["README.md"].decode()
    assert ModelCard(text).data.library_name == "timm"
    assert text.count("# thin\n") == 1
    assert 'sslzoo.load("org/thin")' in text
    assert '"hf-hub:org/thin"' in text
    assert 'AutoModel.from_pretrained("org/thin")' in text


def test_only_what_changed_is_pushed(encoder: sslzoo.Encoder, server: Hub) -> None:
    first = encoder.push_to_hub(NAME, token="writer")
    server.requests.clear()
    assert encoder.push_to_hub(NAME, token="writer") == first
    assert not server.count("POST|PUT")

    other = sslzoo.create("resnet18quarter", seed=1, image_size=64)
    assert other.push_to_hub(NAME, token="writer", message="better") != first
    assert server.repositories[NAME].messages[2:] == ["better"]
    assert server.count("PUT") == 1
    assert server.count("POST .*validate-yaml") == 0  # the card is the same


def test_a_pinned_revision_stays(encoder: sslzoo.Encoder, server: Hub) -> None:
    encoder.push_to_hub(NAME, token="writer")
    first = server.repositories[NAME].refs["main"]
    sslzoo.create("resnet18quarter", seed=1, image_size=64).push_to_hub(NAME, token="writer")
    weight = encoder.model.conv1[0].weight  # type: ignore[index, union-attr]
    for revision, same in ((None, False), ("main", False), (first, True)):
        loaded = sslzoo.load(NAME, revision=revision)
        assert torch.equal(loaded.model.conv1[0].weight, weight) is same  # type: ignore[index, union-attr]
    with pytest.raises(HubNotFoundError, match=r"\(revision v9\) cannot be loaded.*no such revision.*commits/main"):
        sslzoo.load(NAME, revision="v9")


def test_only_the_three_files_are_fetched(server: Hub, files: dict[str, bytes]) -> None:
    server.add(NAME, files)
    folder = hub.fetch(NAME)
    assert {path.name for path in folder.rglob("*")} == set(hub.FILES)
    assert not server.count("pytorch_model.bin|sub/config")


def test_private_repositories(
    encoder: sslzoo.Encoder, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.push_to_hub(NAME, token="writer", private=True)
    assert server.repositories[NAME].private
    with pytest.raises(HubNotFoundError, match="a private one that you need to log in for"):
        sslzoo.load(NAME)
    login(monkeypatch, "reader")
    with pytest.raises(HubNotFoundError, match="a private one that your token may not see"):
        sslzoo.load(NAME)
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text("writer")  # as `hf auth login` leaves it
    assert sslzoo.load(NAME).num_features == 128
    encoder.push_to_hub(NAME, private=True)


def test_a_public_repository_is_not_taken_for_a_private_one(encoder: sslzoo.Encoder, server: Hub) -> None:
    encoder.push_to_hub(NAME, token="writer")
    server.requests.clear()
    with pytest.raises(HubError, match="org/thin is public, and pushing does not change that"):
        encoder.push_to_hub(NAME, token="writer", private=True)
    assert not server.count("POST|PUT")


# --- names


@pytest.mark.parametrize(
    "name", ["thin", "a/b/c", "../thin", "org/..", "org/.thin", "org/a--b", "org/thin.git", "org/", ""]
)
def test_a_name_that_is_none_never_reaches_the_hub(name: str, server: Hub, tmp_path: Path) -> None:
    for call in (lambda: hub.fetch(name), lambda: hub.push_folder(tmp_path, name, token="writer")):
        with pytest.raises(HubError, match=r"is no name of a repository: that is org/name"):
            call()
    assert not server.requests


@pytest.mark.parametrize("revision", ["../../x", "a/../../x", "/x", "-x", "x\\y", "", "x y", "x\0"])
def test_a_revision_cannot_leave_the_cache(revision: str, server: Hub) -> None:
    with pytest.raises(HubError, match="is no name of a revision"):
        hub.fetch(NAME, revision=revision)
    assert not server.requests


def test_an_existing_folder_wins_over_a_repository(
    encoder: sslzoo.Encoder, server: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(NAME, files)
    monkeypatch.chdir(tmp_path)
    encoder.save_pretrained(NAME)
    assert weights.locate(NAME) == Path(NAME)
    with pytest.raises(ValueError, match=r"revision='main' is for repositories .* 'org/thin' is a folder"):
        sslzoo.load(NAME, revision="main")
    (tmp_path / NAME / "config.json").unlink()
    with pytest.raises(weights.WeightsError, match=r"thin has no config.json"):
        weights.locate(NAME)  # not the repository instead
    with pytest.raises(weights.WeightsError, match=r"There is no folder 'org/other'"):
        weights.locate(Path("org/other"))  # a Path is no name
    with pytest.raises(weights.WeightsError, match=r"There is no folder './other'"):
        weights.locate("./other")
    with pytest.raises(weights.WeightsError, match=r"'org/thin/model.safetensors' is a file"):
        weights.locate("org/thin/model.safetensors")
    monkeypatch.chdir(tmp_path / "org")
    with pytest.raises(weights.WeightsError, match=r"'thin/model.safetensors' is a file"):
        weights.locate("thin/model.safetensors")  # which could be a repository
    assert not server.requests


def test_a_mistyped_path_is_told_apart_from_a_repository(server: Hub) -> None:
    with pytest.raises(HubNotFoundError, match=r"no such repository.* There is no folder 'runs/byol' here either"):
        sslzoo.load("runs/byol")


# --- entries of the zoo that are on the Hub


def test_a_zoo_entry_on_the_hub_is_compared_with_the_table(
    server: Hub, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(NAME, files)
    content = files["model.safetensors"]
    sha256 = weights.sha256(tmp_path / "saved" / "model.safetensors")
    row = zoo.list_models()[0].__dict__ | {"id": "big", "source": NAME, "bytes": len(content), "sha256": sha256}
    table = zoo.Zoo(zoo.ModelTable([zoo.ModelInfo(**row)]), {})
    monkeypatch.setattr(zoo, "read_table", lambda path: table)
    assert weights.locate("big") == weights.locate(NAME)
    with pytest.raises(ValueError, match=r"revision='v1' .* big is an entry of the zoo"):
        weights.locate("big", revision="v1")
    row["sha256"] = "0" * 64
    table = zoo.Zoo(zoo.ModelTable([zoo.ModelInfo(**row)]), {})
    with pytest.raises(weights.WeightsError, match=rf"SHA-256 {sha256}, .* org/thin has other weights than"):
        weights.locate("big")


# --- without a network


def test_what_is_cached_loads_without_a_network(
    server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(NAME, files)
    folder = hub.fetch(NAME)
    server.requests.clear()
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert hub.fetch(NAME) == folder
        with pytest.raises(HubUnreachableError, match=r"HF_HUB_OFFLINE is set\. Unset it.*org/thin \(cached\)"):
            hub.fetch("org/other")
    assert not server.requests
    server.faults = [Fault("GET", 503)]
    assert hub.fetch(NAME) == folder
    server.stop()
    close_session()
    assert hub.fetch(NAME) == folder
    with pytest.raises(HubUnreachableError, match=r"there is no connection.* Without a network load: byol-") as caught:
        hub.fetch("org/other")
    assert server.url in str(caught.value)


def test_half_a_model_does_not_load_without_a_network_but_the_last_whole_one_does(
    server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = server.add(NAME, files)
    old = hub.fetch(NAME)
    new = bytearray(files["model.safetensors"])
    new[-1] ^= 1
    server.large[hashlib.sha256(new).hexdigest()] = bytes(new)
    repository.commit(files | {"config.json": files["config.json"] + b" ", "model.safetensors": bytes(new)}, "second")
    server.cuts = float("inf")
    with pytest.raises(HubUnreachableError, match="it was cut"):
        hub.fetch(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match=rf"The cache has revision '{old.name}', which loads without"):
        hub.fetch(NAME)
    assert hub.fetch(NAME, revision=old.name) == old


# --- what can fail in fetching


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda s: s.repositories.clear(),
            HubNotFoundError,
            "no such repository, or it is a private one that you need",
        ),
        (lambda s: s.faults.append(Fault("GET /api", 500)), HubUnreachableError, "busy or broken, it answers 500"),
        (lambda s: s.faults.append(Fault("resolve", 503)), HubUnreachableError, "busy or broken, it answers 503"),
        (lambda s: s.faults.append(Fault("GET /[0-9a-f]{64}", 502)), HubUnreachableError, "it answers 502"),
        (lambda s: s.faults.append(Fault("tree", 429)), HubUnreachableError, "busy or broken, it answers 429"),
        (lambda s: s.faults.append(Fault("GET /api", 403)), HubAccessError, r"it needs a token \(injected\)"),
        (lambda s: s.faults.append(Fault("GET /api", 418)), HubError, "the Hub refuses it"),
        (lambda s: setattr(s.repositories[NAME], "gated", True), HubAccessError, "owners decide .* `hf auth login`"),
        (lambda s: s.repositories[NAME].files.pop("model.safetensors"), HubNotFoundError, "has no model.safetensors"),
        (lambda s: setattr(s, "cuts", float("inf")), HubUnreachableError, "there is no connection, or it was cut"),
    ],
    ids=["missing", "500", "resolve-503", "store-502", "429", "403", "418", "gated", "no-weights", "cut"],
)
def test_each_failure_has_its_error_and_leaves_the_cache_usable(
    server: Hub,
    files: dict[str, bytes],
    tmp_path: Path,
    change: Callable[[Hub], Any],
    error: type[HubError],
    message: str,
) -> None:
    server.add(NAME, dict(files))
    change(server)
    with pytest.raises(HubError, match=message) as caught:
        hub.fetch(NAME)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)
    if error is HubUnreachableError:
        assert "Without a network load: byol-" in str(caught.value)
    assert not [name for name in cached_files(tmp_path) if "incomplete" in name or "tmp" in name]

    server.add(NAME, files)
    server.faults, server.cuts = [], 0
    folder = hub.fetch(NAME)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: files[name] for name in hub.FILES}


@pytest.mark.parametrize(("token", "error", "message"), [
    ("wrong", HubAccessError, r"the token in HF_TOKEN is not valid\. .* public repositories need none"),
    ("reader", HubAccessError, r"Ask for access at http://127.0.0.1:\d+/org/thin, then try again"),
])  # fmt: skip
def test_tokens_that_do_not_open(
    server: Hub,
    files: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    error: type[HubError],
    message: str,
) -> None:
    server.add(NAME, files, gated=True)
    login(monkeypatch, token)
    with pytest.raises(error, match=message) as caught:
        hub.fetch(NAME)
    assert "'wrong'" not in str(caught.value)
    login(monkeypatch, "writer")
    assert hub.fetch(NAME).is_dir()


def test_a_download_that_is_cut_once_goes_on(server: Hub, files: dict[str, bytes]) -> None:
    server.add(NAME, files)
    server.cuts = 1
    assert (hub.fetch(NAME) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert server.count("GET /[0-9a-f]{64}") == 2


def test_a_damaged_download_is_refused_and_removed(server: Hub, files: dict[str, bytes]) -> None:
    server.add(NAME, files)
    good = dict(server.large)
    damaged = files["model.safetensors"][:-1] + b"?"
    server.large = dict.fromkeys(server.large, damaged)
    with pytest.raises(HubError, match=r"model.safetensors was damaged on its way or on this disk"):
        hub.fetch(NAME)
    server.large = good
    folder = hub.fetch(NAME)
    config = folder / "config.json"
    config.resolve().write_bytes(config.read_bytes() + b" ")  # git's digest, of small files
    with pytest.raises(HubError, match=r"config.json was damaged"):
        hub.fetch(NAME)
    assert (hub.fetch(NAME) / "config.json").read_bytes() == files["config.json"]


def test_an_answer_of_something_that_is_no_hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the login page of a hotel: 200, but no JSON."""
    monkeypatch.setattr("hub_server._Pages.model", lambda self, *_: self.reply(b"<html>", 200, {}))
    with pytest.raises(HubUnreachableError, match="damaged or not that of a Hub"):
        hub.fetch(NAME)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            r"no space left \(No space left on device\)\. Free some, or",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x/cache"),
            r"Permission denied: x/cache\.$",
        ),
        (PermissionError(errno.EACCES, "Permission denied"), r"Permission denied: .*cache\. HF_HOME moves the cache"),
        (OSError("Consistency check failed"), r"damaged or not that of a Hub \(Consistency check failed\)\. Try again"),
    ],
    ids=["space", "permission", "permission-somewhere", "size"],
)
def test_what_fails_while_a_file_is_written(
    server: Hub,
    files: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    message: str,
) -> None:
    server.add(NAME, files)

    def fails(url: str, temp_file: Any, **kwargs: Any) -> None:
        temp_file.write(b"half")
        raise error

    with monkeypatch.context() as disk:
        disk.setattr(file_download, "http_get", fails)
        with pytest.raises(HubError, match=message):
            hub.fetch(NAME)
    assert not [name for name in cached_files(tmp_path) if "incomplete" in name]
    assert hub.fetch(NAME).is_dir()


# --- what can fail in pushing


def test_pushing_needs_a_token(encoder: sslzoo.Encoder, server: Hub) -> None:
    with pytest.raises(HubAccessError, match=r"needs a token with write access.*/settings/tokens.*`hf auth login`"):
        encoder.push_to_hub(NAME)
    assert not server.requests


@pytest.mark.parametrize(
    ("fault", "token", "error", "message"),
    [
        (None, "wrong", HubAccessError, "the token that was given is not valid"),
        (None, "reader", HubAccessError, r"the token that was given does not permit it \(You don't"),
        (Fault("POST .*commit", 500), "writer", HubUnreachableError, "it answers 500"),
        (Fault("PUT", 503), "writer", HubUnreachableError, "it answers 503"),
        (Fault("POST .*validate-yaml", 400), "writer", HubError, r"the Hub refuses it \(injected\)"),
        (Fault("POST .*create", 503), "writer", HubUnreachableError, "it answers 503"),
    ],
    ids=["bad-token", "no-right", "commit-500", "put-503", "bad-card", "create-503"],
)
def test_a_push_that_fails_commits_nothing_and_can_be_repeated(
    encoder: sslzoo.Encoder, server: Hub, fault: Fault | None, token: str, error: type[HubError], message: str
) -> None:
    server.faults = [fault] if fault else []
    with pytest.raises(error, match=message) as caught:
        encoder.push_to_hub(NAME, token=token)
    assert "cannot be pushed" in str(caught.value)
    assert ("Pushing again is safe" in str(caught.value)) is (error is HubUnreachableError)
    assert "Without a network" not in str(caught.value)
    assert not [r for r in server.repositories.values() if len(r.messages) > 1]
    server.faults = []
    encoder.push_to_hub(NAME, token="writer")
    assert set(server.repositories[NAME].files) > set(hub.FILES)


def test_pushing_without_a_network(encoder: sslzoo.Encoder, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnreachableError, match=r"cannot be pushed .* HF_HUB_OFFLINE is set"):
        encoder.push_to_hub(NAME, token="writer")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    server.stop()
    close_session()
    with pytest.raises(HubUnreachableError, match="there is no connection"):
        encoder.push_to_hub(NAME, token="writer")


def test_a_folder_that_is_no_model_or_has_no_card_is_not_pushed(
    encoder: sslzoo.Encoder, server: Hub, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match=r"has no config.json and no model.safetensors and no README.md"):
        hub.push_folder(tmp_path, NAME, token="writer")
    encoder.save_pretrained(tmp_path, card="---\nmodel-index:\n- name: x\n  results:\n  - task: {}\n---\n")
    with pytest.raises(HubError, match=r"README.md is no card that the Hub accepts: .*model_index"):
        hub.push_folder(tmp_path, NAME, token="writer")
    assert not server.requests


# --- other processes


def environment(server: Hub, home: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    return kept | settings | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | more


def python(code: str, env: dict[str, str], *args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_that_load_the_same_new_model_at_once(server: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    server.add(NAME, files)
    server.meeting = threading.Barrier(3)
    code = "from sslzoo import hub; print(hub.fetch('org/thin'))"
    running = [python(code, environment(server, tmp_path)) for _ in range(3)]
    answers = [process.communicate(timeout=120) for process in running]
    assert {process.returncode for process in running} == {0}, answers
    (folder,) = {Path(out.strip()) for out, _ in answers}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: files[name] for name in hub.FILES}
    assert server.count("GET /[0-9a-f]{64}") == 1
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_disk_that_fills_up(server: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    """A limit on the size of files, which a process meets as it meets a full disk: a write fails half-way."""
    pytest.importorskip("resource", reason="limits of processes are POSIX's")
    server.add(NAME, files)
    code = """
import resource
from sslzoo import hub
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
try:
    hub.fetch("org/thin")
except hub.HubError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
print(hub.fetch("org/thin"))
"""
    out, err = python(code, environment(server, tmp_path)).communicate(timeout=120)
    message, folder = out.splitlines()
    assert "no space left (File too large). Free some, or set HF_HOME" in message, err
    assert (Path(folder) / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not list(tmp_path.rglob("*.incomplete"))


def test_timm_and_transformers_load_what_was_pushed(encoder: sslzoo.Encoder, server: Hub, tmp_path: Path) -> None:
    """In a process of its own, with the settings that users have: HF_ENDPOINT, HF_HOME, HF_TOKEN."""
    classifier = sslzoo.classifier(encoder, classes=["cat", "dog"])
    torch.nn.init.normal_(classifier.head.weight, generator=torch.Generator().manual_seed(0))
    encoder.push_to_hub(NAME, token="writer", private=True)
    classifier.push_to_hub("org/pets", token="writer", private=True)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "images.npy", images.numpy())
    code = """
import sys
import numpy as np, timm, torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification
import sslzoo
folder = sys.argv[1]
images = torch.from_numpy(np.load(f"{folder}/images.npy"))
pets = AutoModelForImageClassification.from_pretrained("org/pets").eval()
assert pets.config.id2label == {0: "cat", 1: "dog"}
assert AutoImageProcessor.from_pretrained("org/thin").data_config["input_size"] == (3, 64, 64)
with torch.inference_mode():
    features = [
        sslzoo.load("org/thin")(images),
        timm.create_model("hf-hub:org/thin", pretrained=True).eval()(images),
        AutoModel.from_pretrained("org/thin").eval()(images).pooler_output,
    ]
    logits = [
        sslzoo.load_model("org/pets")(images)["logits"],
        timm.create_model("hf-hub:org/pets", pretrained=True).eval()(images),
        pets(images).logits,
    ]
np.savez(f"{folder}/out.npz", features=torch.stack(features), logits=torch.stack(logits))
"""
    running = python(code, environment(server, tmp_path, HF_TOKEN="writer"), str(tmp_path))
    out, err = running.communicate(timeout=250)
    assert (tmp_path / "out.npz").is_file(), out + err
    found = np.load(tmp_path / "out.npz")
    with torch.inference_mode():
        for features in found["features"]:
            np.testing.assert_allclose(features, encoder(images).numpy(), atol=1e-6)
        for logits in found["logits"]:
            np.testing.assert_allclose(logits, classifier(images)["logits"].numpy(), atol=1e-5)


def test_the_stand_in_knows_its_users(server: Hub) -> None:
    assert HfApi(token="writer").whoami()["name"] == "org"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        HfApi(token="wrong").whoami()


def test_digests_are_those_of_git(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert git_digest(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"  # echo hello | git hash-object --stdin
    assert hub._digest(tmp_path / "a", like="0" * 40) == git_digest(b"hello\n")
