"""Finding, reading and writing model folders; whatever is wrong is refused and named."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sslzoo
from sslzoo import weights, zoo
from sslzoo.hub import HubError
from sslzoo.weights import WeightsError

ID = "byol-resnet18quarter-cifar10"


@pytest.fixture(scope="module")
def encoder() -> sslzoo.Encoder:
    return sslzoo.create("resnet18quarter", seed=0, image_size=64)


@pytest.fixture
def folder(encoder: sslzoo.Encoder, tmp_path: Path) -> Path:
    encoder.save_pretrained(tmp_path / "saved", card="# A card")
    return tmp_path / "saved"


@pytest.fixture
def bundled(encoder: sslzoo.Encoder, use_zoo: Callable[..., Path]) -> Path:
    """A zoo of one bundled model."""
    return use_zoo({ID: {}}, {"byol": ID}, {ID: encoder}).parent / "bundled" / ID


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_state(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors")


# --- from a name to a folder


def test_locate_a_zoo_id_and_its_alias(bundled: Path) -> None:
    assert weights.locate(ID) == bundled
    assert weights.locate("byol") == bundled


def test_a_zoo_id_wins_over_a_folder_of_that_name(
    bundled: Path, encoder: sslzoo.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder.save_pretrained(ID)
    encoder.save_pretrained("mine")
    assert weights.locate(ID) == bundled
    assert weights.locate(f"./{ID}").samefile(tmp_path / ID)
    assert weights.locate(Path(ID)).samefile(tmp_path / ID)
    assert weights.locate("mine").samefile(tmp_path / "mine")


def test_neither_id_nor_folder(bundled: Path) -> None:
    with pytest.raises(zoo.UnknownModelError, match=rf"Did you mean .*'{ID}'.*There is no folder 'byol-resnet18'"):
        sslzoo.load("byol-resnet18")
    with pytest.raises(HubError, match=r"HF_HUB_OFFLINE is set.* There is no folder 'org/byol-resnet50' here either"):
        sslzoo.load("org/byol-resnet50")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, bundled: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"saved has no {name}"):
        sslzoo.load(folder)
    (bundled / name).unlink()
    with pytest.raises(WeightsError, match=rf"{name} is missing. Install sslzoo again"):
        sslzoo.load(ID)


def test_a_bundled_file_of_the_wrong_size_or_hash_is_refused(bundled: Path) -> None:
    path = bundled / "model.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1])
    with pytest.raises(WeightsError, match=f"has {len(good) - 1} bytes, the zoo table says {len(good)}"):
        sslzoo.load(ID)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(WeightsError) as caught:
        sslzoo.load(ID)
    assert weights.sha256(path) in str(caught.value)
    assert zoo.info(ID).sha256 in str(caught.value)


# --- config.json


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.pop("architecture"), "lacks architecture"),
        (lambda c: c.pop("num_classes"), "lacks num_classes"),
        (lambda c: c.pop("pretrained_cfg"), "lacks pretrained_cfg"),
        (lambda c: c.update(pretrained_cfg=[1]), r"pretrained_cfg must be an object, got \[1\]"),
        (lambda c: c["pretrained_cfg"].pop("input_size"), r"input_size must be \[channels, height, width\], got None"),
        (lambda c: c.update(num_classes=10), "num_classes is 10, an encoder has 0: this is a classifier"),
        (lambda c: c["sslzoo"].update(schema=2), "has schema 2, this sslzoo reads 1. Update"),
        (lambda c: c.update(model_args="thin"), "model_args must be an object, got 'thin'"),
        (lambda c: c.update(architecture="resnet18x"), "timm has no architecture 'resnet18x'"),
        (lambda c: c["model_args"].update(chanels=3), "unexpected keyword argument 'chanels'"),
        (lambda c: c["pretrained_cfg"].update(colour="RGB"), "unexpected keyword argument 'colour'"),
    ],
)
def test_a_wrong_config_is_refused(folder: Path, edit: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_config(folder, edit)
    with pytest.raises(WeightsError, match=message) as caught:
        sslzoo.load(folder)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("text", ["{", "", "\x00", "[]"])
def test_a_config_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config.json (is not JSON|must hold an object)"):
        sslzoo.load(folder)


def test_null_and_absent_model_args_are_none(tmp_path: Path) -> None:
    plain = sslzoo.create("resnet18", seed=0, image_size=64)
    assert plain.config["model_args"] == {}
    plain.save_pretrained(tmp_path)
    for edit in (lambda c: c.update(model_args=None), lambda c: c.pop("model_args")):
        edit_config(tmp_path, edit)
        assert sslzoo.load(tmp_path).config["model_args"] == {}


@pytest.mark.parametrize("architecture", ["local-dir:{folder}", "hf-hub:timm/resnet18.a1_in1k"])
def test_an_architecture_from_elsewhere_is_refused(folder: Path, architecture: str) -> None:
    edit_config(folder, lambda c: c.update(architecture=architecture.format(folder=folder)))
    with pytest.raises(WeightsError, match="timm has no architecture"):
        sslzoo.load(folder)


def test_a_config_cannot_make_timm_unpickle_a_file(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save(Trap(), tmp_path / "evil.pth")
    edit_config(folder, lambda c: c["model_args"].update(checkpoint_path=str(tmp_path / "evil.pth")))
    with pytest.raises(WeightsError, match="checkpoint_path cannot be an argument"):
        sslzoo.load(folder)
    assert not (tmp_path / "sprung").exists()


# --- model.safetensors


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_truncated_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"model.safetensors \(\d+ bytes\) is truncated or not a safetensors file"):
        sslzoo.load(folder)


def test_a_pickle_is_refused(folder: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        sslzoo.load(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("bn1.weight"), "bn1.weight: missing"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra: unexpected"),
        (lambda s: s.update({"bn1.weight": torch.zeros(3)}), r"bn1.weight: shape \(3,\), needs \(16,\)"),
        (lambda s: s.update({"bn1.weight": torch.full((16,), torch.nan)}), "bn1.weight: has values that are NaN"),
        (lambda s: s.update({"bn1.running_var": torch.full((16,), torch.inf)}), "bn1.running_var: has values that are"),
        (lambda s: s.update({"bn1.weight": torch.ones(16).int()}), "bn1.weight: torch.int32, needs torch.float32"),
        (
            lambda s: s.update({"bn1.num_batches_tracked": torch.tensor(1.0)}),
            "num_batches_tracked: torch.float32, needs",
        ),
        (lambda s: s.clear(), "and 124 more"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(folder: Path, edit: Callable[[Any], object], message: str) -> None:
    edit_state(folder, edit)
    with pytest.raises(WeightsError, match=message) as caught:
        sslzoo.load(folder)
    assert "model.safetensors" in str(caught.value)


def test_every_problem_is_named_at_once() -> None:
    network = nn.Linear(3, 2)
    with pytest.raises(WeightsError) as caught:
        weights.read_state(Path("gone"), network.state_dict())
    assert "gone/model.safetensors (missing)" in str(caught.value).replace("\\", "/")


# --- reading and writing


def test_float16_files_give_float32_networks_and_keep_counters(encoder: sslzoo.Encoder, tmp_path: Path) -> None:
    encoder.model.bn1.num_batches_tracked.fill_(70_001)  # past what float16 can hold
    encoder.model.bn1.running_mean.fill_(1 / 3)
    encoder.save_pretrained(tmp_path, half=True)
    stored = load_file(tmp_path / "model.safetensors")
    for key, value in stored.items():
        tracked = key.endswith("num_batches_tracked")
        assert value.dtype == (torch.int64 if tracked else torch.float16 if value.ndim > 1 else torch.float32), key
    loaded = sslzoo.load(tmp_path).model.state_dict()
    for key, value in encoder.model.state_dict().items():
        assert loaded[key].dtype == value.dtype
        torch.testing.assert_close(loaded[key], value, rtol=1e-3, atol=1e-6)
    assert loaded["bn1.num_batches_tracked"] == 70_001
    assert torch.equal(loaded["bn1.running_mean"], encoder.model.bn1.running_mean)


@pytest.mark.parametrize(("value", "half"), [(1e5, True), (float("nan"), False), (float("inf"), True)])
def test_values_that_would_not_survive_are_not_written(tmp_path: Path, value: float, half: bool) -> None:
    state = {"conv.weight": torch.full((2, 2), value)}
    with pytest.raises(WeightsError, match=r"conv.weight has values that are NaN"):
        weights.write_folder(tmp_path / "new", {}, state, half=half)
    assert not (tmp_path / "new").exists()


def test_writing_keeps_other_files_and_leaves_no_partial_ones(folder: Path, encoder: sslzoo.Encoder) -> None:
    (folder / "log.csv").write_text("step")
    encoder.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md", "log.csv"}
    assert (folder / "README.md").read_text() == "# A card"  # no card given: the old one stays


def test_a_failed_write_leaves_the_old_file(folder: Path, encoder: sslzoo.Encoder, monkeypatch: Any) -> None:
    before = weights.sha256(folder / "model.safetensors")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        sslzoo.create("resnet18quarter", seed=1).save_pretrained(folder)
    assert weights.sha256(folder / "model.safetensors") == before
    assert not list(folder.glob(".*"))


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """One thread saves two states in turn; the other reads all the time and must always get one of them whole."""
    states = [{"weight": torch.full((400, 400), float(n)), "bias": torch.full((400,), float(n))} for n in (1, 2)]
    weights.write_folder(tmp_path, {}, states[0])
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            weights.write_folder(tmp_path, {}, states[n % 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            state = weights.read_state(tmp_path, states[0])
            values = torch.cat([state["weight"].flatten(), state["bias"]])
            assert values.min() == values.max()
    finally:
        stop.set()
        writer.join()
