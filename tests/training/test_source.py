import csv
import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from sslzoo.data import EmptyDatasetError, open_images
from sslzoo_training.source import Batch, Source, open_source

ALL_IN_MEMORY = 2**30
STREAMED = 0


def noise(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Ten 20 x 24 images."""
    for i in range(10):
        noise(i, 20, 24).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Photographs of several sizes, one of them turned by its EXIF."""
    exif = Image.Exif()
    exif[274] = 6
    photo = Image.fromarray(load_sample_images().images[0])
    photo.save(tmp_path / "0.jpg", exif=exif)
    photo.crop((0, 0, 300, 200)).save(tmp_path / "1.png")
    photo.crop((0, 0, 100, 400)).save(tmp_path / "2.jpg")
    return tmp_path


def truncate(path: Path) -> None:
    """Leave the header whole and the pixels not."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.images, b.images) and torch.equal(a.sizes, b.sizes)


@pytest.mark.parametrize("limit", [ALL_IN_MEMORY, STREAMED])
def test_small_images_of_one_size_are_stored_as_they_are(small: Path, limit: int) -> None:
    source = open_source(small, store_size=24, memory_limit=limit, workers=2, device="cpu")
    assert source.in_memory == (limit > 0)
    assert (len(source), source.skipped, source.names[3]) == (10, [], "3.png")
    batch = source.fetch(torch.tensor([3, 0, 3]))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (3, 3, 20, 24)
    assert batch.sizes.tolist() == [[20, 24]] * 3
    for image, i in zip(batch.images, [3, 0, 3], strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(noise(i, 20, 24)))


@pytest.mark.parametrize("limit", [ALL_IN_MEMORY, STREAMED])
def test_one_size_above_store_size_is_squashed(small: Path, limit: int) -> None:
    source = open_source(small, store_size=16, memory_limit=limit, workers=2, device="cpu")
    batch = source.fetch(torch.tensor([5]))
    expected = noise(5, 20, 24).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), np.asarray(expected))
    assert batch.sizes.tolist() == [[20, 24]]


def test_mixed_sizes_are_squashed_and_keep_their_true_size(mixed: Path) -> None:
    source = open_source(mixed, store_size=48, workers=2, device="cpu")
    batch = source.fetch(torch.arange(3))
    assert batch.images.shape == (3, 3, 48, 48)
    assert batch.sizes.tolist() == [[640, 427], [200, 300], [400, 100]]
    for image, exact in zip(batch.images, open_images(mixed), strict=True):
        squashed = np.asarray(exact.resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(image.permute(1, 2, 0).numpy() - squashed).mean() < 3  # a large JPEG is decoded at a lower scale


def damage(folder: Path) -> None:
    """What a long run meets: empty, no image, truncated pixels (two neighbours, and the last), other files."""
    (folder / "1.png").write_bytes(b"")
    (folder / "4.png").write_text("not an image")
    for name in ["6.png", "7.png", "9.png"]:
        truncate(folder / name)
    (folder / "notes.txt").touch()


@pytest.mark.parametrize("store_size", [24, 16])
@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_what_memory_gives_bit_for_bit(
    small: Path, store_size: int, damaged: bool, workers: int
) -> None:
    if damaged:
        damage(small)
    held, streamed = (
        open_source(small, store_size=store_size, memory_limit=limit, workers=workers, device="cpu")
        for limit in (ALL_IN_MEMORY, STREAMED)
    )
    assert held.names == streamed.names
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0)).repeat(2)
    for start in (0, 5):
        indices = []
        for (index, batch), (streamed_index, streamed_batch) in zip(
            held.loader(order, 3, start), streamed.loader(order, 3, start), strict=True
        ):
            assert torch.equal(index, streamed_index)
            assert same(batch, streamed_batch)
            assert same(batch, streamed.fetch(index))
            assert len(batch.images) == len(index)
            indices.append(index)
        assert torch.equal(torch.cat(indices), order[start:])
    assert held.skipped == streamed.skipped


@pytest.mark.parametrize("limit", [ALL_IN_MEMORY, STREAMED])
def test_damaged_images_are_left_out_or_stood_in_for_and_listed(small: Path, tmp_path: Path, limit: int) -> None:
    damage(small)
    source = open_source(small, store_size=24, memory_limit=limit, workers=2, device="cpu")
    assert source.names == ["0.png", "2.png", "3.png", "5.png", "6.png", "7.png", "8.png", "9.png"]
    seen = torch.cat([batch.images for _, batch in source.loader(torch.arange(8), 8)])
    for image, original in zip(seen, [0, 2, 3, 5, 8, 8, 8, 0], strict=True):  # 6, 7 -> 8; 9 -> 0, around the end
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(noise(original, 20, 24)))
    assert [name for name, _ in source.skipped] == ["1.png", "4.png", "6.png", "7.png", "9.png"]
    assert source.skipped[0][1] == "the file is empty"
    assert "truncated" in source.skipped[2][1]
    assert "8 images" in repr(source)
    assert "5 unreadable, 1 other" in repr(source)

    run = tmp_path / "run"
    run.mkdir()
    path = source.write_skipped(run)
    assert path == run / "skipped.csv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["name", "reason"], *map(list, source.skipped), ["notes.txt", "not an image file"]]


def test_a_list_is_added_to_by_a_resumed_run_and_by_other_processes(small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (small / "1.png").write_bytes(b"")
    source = open_source(small, store_size=24, device="cpu")
    source.write_skipped(run, [("2.png", "of another process"), ("1.png", "the same")])
    source.write_skipped(run, [("3.png", "found later, \udcff")], add=True)

    def listed() -> dict[str, str]:
        with (run / "skipped.csv").open(newline="", encoding="utf-8") as file:
            return dict(list(csv.reader(file))[1:])

    expected = {"1.png": "the file is empty", "2.png": "of another process", "3.png": "found later, \\udcff"}
    assert listed() == expected
    source.write_skipped(run)
    assert listed() == {"1.png": "the file is empty"}


def test_no_list_where_nothing_was_skipped(small: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    assert open_source(small, store_size=24, device="cpu").write_skipped(run) is None
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("limit", [ALL_IN_MEMORY, STREAMED])
@pytest.mark.parametrize("spoil", [truncate, lambda path: path.write_bytes(b"")], ids=["pixels", "headers"])
def test_nothing_readable_says_so(small: Path, spoil: Callable[[Path], None], limit: int) -> None:
    for path in small.iterdir():
        spoil(path)
    with pytest.raises(EmptyDatasetError, match=r"None of the 10 images can be read.*0\.png: .*4\.png: "):
        open_source(small, store_size=24, memory_limit=limit, device="cpu").fetch(torch.tensor([0]))


@pytest.mark.parametrize("limit", [ALL_IN_MEMORY, STREAMED])
def test_one_image_can_fill_a_batch(limit: int) -> None:
    image = noise(0, 300, 200)
    source = open_source([image], store_size=64, memory_limit=limit, workers=1, device="cpu")
    batch = source.fetch(torch.zeros(8, dtype=torch.int64))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.sizes.tolist() == [[300, 200]] * 8
    assert len(batch.images.flatten(1).unique(dim=0)) == 1


@pytest.mark.parametrize("layout", ["hwc", "chw", "grey", "float", "uint16"])
def test_arrays_in_memory_and_streamed(layout: str, tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (9, 10, 12, 3), dtype=np.uint8)
    array = {
        "hwc": rgb,
        "chw": rgb.transpose(0, 3, 1, 2),
        "grey": rgb[..., 0],
        "float": rgb / np.float32(255),
        "uint16": rgb.astype(np.uint16) * np.uint16(257),
    }[layout]
    expected = np.repeat(rgb[..., :1], 3, axis=-1) if layout == "grey" else rgb
    np.save(tmp_path / "a.npy", array)
    index = torch.tensor([8, 0, 4])
    for data in (array, tmp_path / "a.npy"):
        for limit in (ALL_IN_MEMORY, STREAMED):
            source = open_source(data, store_size=12, memory_limit=limit, workers=1, device="cpu")
            batch = source.fetch(index)
            assert torch.equal(batch.images, torch.from_numpy(expected).permute(0, 3, 1, 2)[index])
            assert batch.sizes.tolist() == [[10, 12]] * 3
    assert open_source(array, store_size=8, device="cpu").fetch(index).images.shape == (3, 3, 8, 8)


def test_array_store_is_a_copy() -> None:
    array = np.zeros((4, 3, 8, 8), np.uint8)
    source = open_source(array, store_size=8, device="cpu")
    array[:] = 255
    assert source.fetch(torch.tensor([0])).images.max() == 0


def test_a_wrong_range_stops_the_run_and_damaged_rows_do_not() -> None:
    with pytest.raises(ValueError, match="Divide"):
        open_source(np.full((4, 8, 8), 16.0), store_size=8, device="cpu")
    floats = np.zeros((4, 8, 8))
    floats[1] = np.nan
    source = open_source(floats, store_size=8, device="cpu")
    assert source.skipped == [("000001", "it holds NaN or infinite values")]


@pytest.mark.parametrize("limit", [ALL_IN_MEMORY, STREAMED])
def test_loading_leaves_the_global_generator_alone(small: Path, limit: int) -> None:
    source = open_source(small, store_size=24, memory_limit=limit, workers=1, device="cpu")
    before = torch.get_rng_state()
    assert len(list(source.loader(torch.arange(10), 4))) == 3
    assert list(source.loader(torch.arange(10), 4, start=10)) == []
    assert torch.equal(torch.get_rng_state(), before)


def test_ctrl_c_leaves_the_workers_to_the_main_process(small: Path) -> None:
    source = open_source(small, store_size=24, memory_limit=STREAMED, workers=2, device="cpu")
    others = multiprocessing.active_children()  # joblib's, which outlive the tests that started them
    batches = source.loader(torch.arange(10).repeat(20), 2)
    next(batches), next(batches)  # one from each: both workers are up
    workers = [child for child in multiprocessing.active_children() if child not in others]
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 98


def test_the_memory_limit_counts_the_stored_bytes(small: Path) -> None:
    stored = 10 * 3 * 20 * 24
    for limit, in_memory in [(stored, True), (stored - 1, False)]:
        assert open_source(small, store_size=24, memory_limit=limit, device="cpu").in_memory == in_memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_source(small, store_size=24, device="cpu").fetch(torch.arange(10))

    def check(source: Source) -> None:
        for index, batch in source.loader(torch.arange(10), 4):
            assert batch.images.is_cuda
            assert same(Batch(batch.images.cpu(), batch.sizes), Batch(expected.images[index], expected.sizes[index]))

    check(open_source(small, store_size=24, device="cuda"))
    check(open_source(small, store_size=24, memory_limit=STREAMED, workers=2, device="cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    check(open_source(small, store_size=24, device="cuda"))


def test_the_list_of_many_files_takes_little_memory(tmp_path: Path) -> None:
    """So that all 14 million images of ImageNet take less than 1 GB."""
    noise(0, 1, 1).save(tmp_path / "one.png")
    one, data = (tmp_path / "one.png").read_bytes(), tmp_path / "data"
    for c in range(20):
        (data / f"n{c:08d}").mkdir(parents=True)
        for i in range(400):
            (data / f"n{c:08d}" / f"n{c:08d}_{i}.png").write_bytes(one)
    open_images(data)  # what is loaded on first use
    tracemalloc.start()
    try:
        source = open_source(data, store_size=24, memory_limit=STREAMED, workers=1, device="cpu")
        lasting, peak = (size / len(source) for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert (len(source), source.in_memory) == (8000, False)
    assert lasting < 70  # bytes an image; as lists it was 151
    assert peak < 110
