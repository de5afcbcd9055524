"""Embedding: the same features from every kind of source, and in files, whatever interrupts their writing."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import Compose, Normalize, ToTensor

import sslzoo
from sslzoo import Encoder, embed, embed_to_file, encoding, read_features
from sslzoo.data import EmptyDatasetError, ImageSet, UnreadableImageError, open_images
from sslzoo.encoding import cut, encode

SUFFIXES = (".npz", ".npy", ".parquet")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return sslzoo.create("resnet18quarter", seed=0, image_size=32)


@pytest.fixture
def damaged_folder(photo_folder: Path, tmp_path: Path) -> Path:
    """The photos, of which the second of class china is cut short."""
    folder = tmp_path / "damaged"
    shutil.copytree(photo_folder, folder)
    file = folder / "china" / "02.png"
    file.write_bytes(file.read_bytes()[:200])
    return folder


def write(encoder: Any, source: Any, out: Path, **settings: Any) -> Any:
    return embed_to_file(encoder, source, out, batch_size=3, chunk=5, progress=False, **settings)


# embed


def test_every_kind_of_source_gives_what_the_encoder_gives(
    encoder: Encoder, photos: np.ndarray, photo_folder: Path
) -> None:
    pictures = [Image.fromarray(photo) for photo in photos]
    with torch.inference_mode():
        expected = torch.cat([encoder(encoder.transform(picture)[None]) for picture in pictures]).numpy()
    channels_first = torch.from_numpy(photos).permute(0, 3, 1, 2)
    paths = [photo_folder / ("china", "flower")[i % 2] / f"{i:02}.png" for i in range(len(photos))]
    for source in (
        pictures,
        photos,
        list(photos),
        paths,
        [str(p) for p in paths],
        channels_first,
        channels_first / 255,
    ):
        X = encoder.embed(source)
        assert X.dtype == np.float32
        np.testing.assert_allclose(X, expected, atol=1e-5)
    order = [paths.index(photo_folder / name) for name in open_images(photo_folder).names]
    assert order != sorted(order)
    np.testing.assert_allclose(embed(encoder, photo_folder), expected[order], atol=1e-5)


def test_batches_and_workers_change_nothing(encoder: Encoder, photos: np.ndarray) -> None:
    one = embed(encoder, photos, batch_size=1)
    for settings in ({"batch_size": 7}, {"batch_size": 100}, {"batch_size": 5, "num_workers": 2}):
        np.testing.assert_allclose(embed(encoder, photos, **settings), one, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_gets_what_the_transform_gives(photos: np.ndarray, channels: int) -> None:
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32, in_chans=channels)
    seen: list[torch.Tensor] = []
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    embed(encoder, photos, batch_size=9, num_workers=1)
    assert [len(batch) for batch in seen] == [9, 9, 6]
    transformed = [encoder.transform(Image.fromarray(photo)) for photo in photos]
    assert torch.equal(torch.cat(seen), torch.stack(transformed))


def test_errors_in_reading_threads_are_raised_and_the_threads_end(encoder: Encoder, photos: np.ndarray) -> None:
    class Broken(ImageSet):
        def __getitem__(self, i: int) -> Image.Image:
            if i == 7:
                raise KeyError("a bug")
            return super().__getitem__(i)

    images = Broken(list(photos), [str(i) for i in range(len(photos))])
    before = threading.active_count()
    with pytest.raises(KeyError, match="a bug"):
        list(encode(encoder, images, cut(range(24), 4), total=24, num_workers=2))
    assert threading.active_count() == before


def test_an_empty_list_has_no_features_and_an_empty_folder_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    assert embed(encoder, []).shape == (0, 128)
    assert embed(encoder, np.empty((0, 8, 8, 3), np.uint8)).shape == (0, 128)
    with pytest.raises(EmptyDatasetError):
        embed(encoder, tmp_path)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        embed(encoder, np.zeros((1, 8, 8, 3), np.uint8), batch_size=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_is_named(encoder: Encoder, damaged_folder: Path, num_workers: int) -> None:
    with pytest.raises(UnreadableImageError, match=r"china/02\.png"):
        embed(encoder, damaged_folder, num_workers=num_workers)


def test_modes_come_back_even_after_an_error(photos: np.ndarray, damaged_folder: Path) -> None:
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32).train()
    encoder.model.bn1.eval()  # a frozen part
    statistics = encoder.model.bn1.running_mean.clone(), encoder.model.layer1[0].bn1.running_mean.clone()
    modes = [module.training for module in encoder.modules()]
    X = embed(encoder, photos)
    np.testing.assert_allclose(X, embed(encoder.eval(), photos))
    encoder.train().model.bn1.eval()
    with pytest.raises(UnreadableImageError) as caught:
        embed(encoder, damaged_folder)
    assert caught.value.name == "china/02.png"
    assert [module.training for module in encoder.modules()] == modes
    assert torch.equal(encoder.model.bn1.running_mean, statistics[0])
    assert torch.equal(encoder.model.layer1[0].bn1.running_mean, statistics[1])


def test_an_encoder_in_bfloat16_gives_float32(encoder: Encoder, photos: np.ndarray) -> None:
    low = sslzoo.create("resnet18quarter", seed=0, image_size=32).to(torch.bfloat16)
    X = embed(low, photos[:4])
    assert X.dtype == np.float32
    np.testing.assert_allclose(X, embed(encoder, photos[:4]), rtol=0.1, atol=0.1)


# embed_to_file


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_holds_names_labels_and_features(
    encoder: Encoder, photo_folder: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / "new" / f"features{suffix}"
    report = write(encoder, photo_folder, out)
    images = open_images(photo_folder)
    found = read_features(out)
    assert (report.path, report.n_images, report.num_features, report.skipped) == (out, 24, 128, [])
    assert str(report) == f"{out}: 128 features of 24 images"
    assert found.names == images.names
    assert found.classes == ["china", "flower"]
    np.testing.assert_array_equal(found.labels, images.labels)
    np.testing.assert_allclose(found.X, embed(encoder, photo_folder), atol=1e-5)
    beside = {"features.npy", "features.csv"} if suffix == ".npy" else {out.name}
    assert {file.name for file in out.parent.iterdir()} == beside


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_without_labels_get_none(encoder: Encoder, photos: np.ndarray, tmp_path: Path, suffix: str) -> None:
    write(encoder, photos[:7], tmp_path / f"features{suffix}")
    found = read_features(tmp_path / f"features{suffix}")
    assert (found.labels, found.classes) == (None, None)
    assert found.names == [f"{i:06d}" for i in range(7)]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_numbers_as_labels_and_any_letters_in_names(encoder: Encoder, tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / name for name in ("ü,1.png", 'a "b".png', "日本.png")]
    for file in files:
        Image.new("RGB", (8, 8), "teal").save(file)
    write(encoder, open_images(files, labels=[7, 0, 7]), tmp_path / f"features{suffix}")
    found = read_features(tmp_path / f"features{suffix}")
    assert found.names == [str(file) for file in files]
    assert found.labels is not None
    assert found.labels.tolist() == [7, 0, 7]
    assert found.classes is None


def test_other_programs_read_the_files(encoder: Encoder, photo_folder: Path, tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        write(encoder, photo_folder, tmp_path / f"f{suffix}")
    X = read_features(tmp_path / "f.npz").X
    with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {"features", "names", "labels", "classes"}
        assert archive["names"].dtype.kind == "U"
    np.testing.assert_array_equal(np.load(tmp_path / "f.npy", mmap_mode="r"), X)
    csv, frame = pd.read_csv(tmp_path / "f.csv"), pd.read_parquet(tmp_path / "f.parquet")
    assert list(frame.columns) == ["name", "label", "class", "features"]
    pd.testing.assert_frame_equal(csv, frame[["name", "label", "class"]])
    np.testing.assert_array_equal(np.stack(frame["features"]), X)
    assert pyarrow.parquet.ParquetFile(tmp_path / "f.parquet").num_row_groups == 5  # one a chunk of 5


@pytest.mark.parametrize("num_workers", [0, 1])
def test_damaged_images_are_left_out_and_listed(
    encoder: Encoder, damaged_folder: Path, tmp_path: Path, num_workers: int
) -> None:
    out = tmp_path / "features.npz"
    report = write(encoder, damaged_folder, out, num_workers=num_workers)
    found = read_features(out)
    assert report.n_images == len(found.names) == 23
    assert [name for name, _ in report.skipped] == ["china/02.png"]
    assert "1 could not be read" in str(report)
    assert "china/02.png" not in found.names
    assert found.labels is not None
    assert np.bincount(found.labels).tolist() == [11, 12]
    listed = pd.read_csv(tmp_path / "features.npz.skipped.csv")
    assert list(listed.itertuples(index=False, name=None)) == report.skipped
    keep = [i for i, name in enumerate(open_images(damaged_folder).names) if name != "china/02.png"]
    np.testing.assert_allclose(found.X, embed(encoder, open_images(damaged_folder).subset(keep)), atol=1e-5)


def test_nothing_but_damaged_images_is_an_error(encoder: Encoder, tmp_path: Path) -> None:
    for i in range(7):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(EmptyDatasetError, match=r"None of the 7 images can be read: 0.png"):
        write(encoder, tmp_path, tmp_path / "features.npz")
    assert not (tmp_path / "features.npz").exists()
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")  # mended: it is looked at again
    assert write(encoder, tmp_path, tmp_path / "features.npz").n_images == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_are_no_text_do_not_end_the_work(encoder: Encoder, tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    try:
        shutil.copy(tmp_path / "x.png", os.fsencode(folder) + b"/\xe9.png")
    except OSError:
        pytest.skip("this file system takes text only")
    write(encoder, folder, tmp_path / f"features{suffix}")
    assert read_features(tmp_path / f"features{suffix}").names == ["\\udce9.png"]


def test_a_bad_target_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.npz").mkdir()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name, error, words in (
        ("f.csv", ValueError, r"must be one of \.npz, \.npy, \.parquet"),
        ("folder.npz", IsADirectoryError, "it is a folder"),
        ("f.parquet", ImportError, r"sslzoo\[data\]"),
    ):
        with pytest.raises(error, match=words):
            write(None, None, tmp_path / name)  # neither encoder nor images are looked at
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        embed_to_file(None, None, tmp_path / "f.npz", batch_size=3, chunk=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Cannot read features"):
        read_features(tmp_path / "f.csv")
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match="has no features, names; it has a"):
        read_features(tmp_path / "other.npz")


class InterruptedByTestError(Exception):
    pass


def count_images(encoder: Encoder, stop_after: int | None = None) -> tuple[list[int], Callable[[], None]]:
    """Count the images that go through an encoder; with `stop_after`, fail when more than so many would."""
    seen: list[int] = []

    def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
        if stop_after is not None and sum(seen) + len(inputs[0]) > stop_after:
            raise InterruptedByTestError
        seen.append(len(inputs[0]))

    return seen, encoder.register_forward_pre_hook(hook).remove


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_interrupted_call_goes_on_and_ends_in_the_same_file(
    encoder: Encoder, damaged_folder: Path, tmp_path: Path, suffix: str
) -> None:
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"features{suffix}"
    write(encoder, damaged_folder, whole)
    _, remove = count_images(encoder, stop_after=16)
    with pytest.raises(InterruptedByTestError):
        write(encoder, damaged_folder, out)
    remove()
    assert not out.exists()
    assert len(list(Path(f"{out}.partial").glob("*.npz"))) == 3
    seen, remove = count_images(encoder)
    report = write(encoder, damaged_folder, out)
    remove()
    assert report.n_resumed == 15
    assert sum(seen) == 24 - 15  # only what was missing; the damaged image is among the first
    assert out.read_bytes() == whole.read_bytes()
    assert not Path(f"{out}.partial").exists()


def test_what_was_left_by_other_work_is_refused(encoder: Encoder, photos: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "features.npz"

    def interrupted() -> None:
        _, remove = count_images(encoder, stop_after=10)
        with pytest.raises(InterruptedByTestError):
            write(encoder, photos, out, resume=False)
        remove()

    interrupted()
    other_pixels = photos.copy()
    other_pixels[-1] = 0
    with pytest.raises(ValueError, match="begun with other images, so"):
        write(encoder, other_pixels, out)  # the names, 000000 and so on, are the same
    with pytest.raises(ValueError, match="begun with other images, so"):
        write(encoder, open_images(photos, labels=[0] * 24), out)
    with pytest.raises(ValueError, match="begun with other weights, so"):
        write(sslzoo.create("resnet18quarter", seed=1, image_size=32), photos, out)
    with pytest.raises(ValueError, match="begun with other encoder settings, so"):
        write(sslzoo.create("resnet18quarter", seed=0, image_size=64), photos, out)
    with pytest.raises(ValueError, match="begun with other chunk size, so"):
        embed_to_file(encoder, photos, out, chunk=6, progress=False)
    interrupted()  # with resume=False, so the folder may be of anything
    assert write(encoder, other_pixels, out, resume=False).n_resumed == 0
    np.testing.assert_allclose(read_features(out).X, embed(encoder, other_pixels), atol=1e-5)


def _embed_slowly(encoder: Encoder, folder: Path, out: Path) -> None:
    torch.set_num_threads(1)  # as every forked process must
    encoder.register_forward_pre_hook(lambda module, inputs: time.sleep(0.2))
    write(encoder, folder, out)


def test_killed_and_resumed_gives_the_same_file(encoder: Encoder, photo_folder: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.npz", tmp_path / "features.npz"
    write(encoder, photo_folder, whole)
    process = multiprocessing.get_context("fork").Process(target=_embed_slowly, args=(encoder, photo_folder, out))
    process.start()
    until = time.monotonic() + 120
    while not list(Path(f"{out}.partial").glob("*.npz")):
        assert process.is_alive()
        assert time.monotonic() < until
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    assert 5 <= write(encoder, photo_folder, out).n_resumed < 24
    assert out.read_bytes() == whole.read_bytes()


SCRIPT = """
import sys, sslzoo
from accelerate import PartialState
encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32)
report = sslzoo.embed_to_file(encoder, sys.argv[1], sys.argv[2], batch_size=3, chunk=5, progress=False)
print(f"REPORT {PartialState().num_processes} {report}\\n", end="", flush=True)
"""


def test_two_processes_give_the_file_of_one(encoder: Encoder, damaged_folder: Path, tmp_path: Path) -> None:
    one, two, script = tmp_path / "one.npz", tmp_path / "two.npz", tmp_path / "script.py"
    script.write_text(SCRIPT)
    report = write(encoder, damaged_folder, one)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        [*command, str(damaged_folder), str(two)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr
    said = str(report).replace(str(one), str(two))
    assert run.stdout.count(said) == 2  # both processes know; what they print may share a line
    assert run.stdout.count("REPORT 2 ") == 2
    found, expected = read_features(two), read_features(one)
    assert found.names == expected.names
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)  # they may use other numbers of threads


def test_a_batch_in_parts_gives_the_same_features(photos: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=40)
    whole = encoder.embed(photos, batch_size=24)
    monkeypatch.setattr(encoding, "_CPU_PIXELS", 5 * 40 * 40)
    sizes: list[int] = []
    encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    np.testing.assert_allclose(encoder.embed(photos, batch_size=24), whole, rtol=1e-5, atol=1e-6)
    assert sizes == [5, 5, 5, 5, 4]
    monkeypatch.setattr(encoding, "_CPU_PIXELS", 1)  # less than an image
    np.testing.assert_allclose(encoder.embed(photos[:2]), whole[:2], rtol=1e-5, atol=1e-6)


class Wide(nn.Module):
    """Half a megabyte of features an image, so that features outweigh all else."""

    num_features = 131_072
    config: dict[str, Any] = {"architecture": "wide", "model_args": {}, "pretrained_cfg": {"mean": (0, 1)}}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ParameterDict({"weight": torch.ones(1)})

    input_size = (3, 1, 1)
    transform = Compose([ToTensor(), Normalize([0.0] * 3, [1 / 255] * 3)])

    def forward(self, images: Tensor) -> Tensor:
        return self.model["weight"] * images[:, 0].reshape(-1, 1).expand(-1, self.num_features)


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_memory_holds_a_chunk_not_the_set(tmp_path: Path, suffix: str) -> None:
    tracemalloc.start()
    try:
        pixels = np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
        settings: dict[str, Any] = {"batch_size": 2, "chunk": 4, "progress": False, "num_workers": 0}
        embed_to_file(Wide(), pixels, tmp_path / f"features{suffix}", **settings)  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    chunk = 4 * Wide.num_features * 4
    assert peak < 4 * chunk  # of 15: its batches, them concatenated, and buffers of NumPy's writer
    np.testing.assert_allclose(read_features(tmp_path / f"features{suffix}").X[:, -1], range(60), rtol=1e-6)
