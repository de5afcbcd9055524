from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sslzoo
from sslzoo.heads.segmentations import PackedMasks, Segmentations
from sslzoo.joint import IGNORE
from sslzoo_evaluations import segmentation
from sslzoo_evaluations.__main__ import main
from sslzoo_evaluations.results import Result, read
from sslzoo_evaluations.segmentation import overlap, table
from sslzoo_evaluations.speed import segment
from sslzoo_evaluations.subjects import EvaluationError
from sslzoo_evaluations.transfer import Job

ROW = Result("m", "segmentation-fcn", "camvid", "miou", 0.5, 0, 9, 5, "ab", "steps=5", "1a2b3c4", "2026-01-31")
NETWORK = "random:resnet18quarter@32"
CLASSES = ["photograph", "zero", "one"]


@pytest.fixture(scope="module")
def folder(scenes: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("seg") / "digits"
    for part, seed in (("train", 0), ("test", 1)):
        data = scenes(6, seed=seed)
        for name, arrays in (("images", data.images), ("masks", data.masks)):
            (root / part / name).mkdir(parents=True)
            for n, pixels in enumerate(arrays):
                Image.fromarray(pixels).save(root / part / name / f"{n}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seg") / "run"
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32)
    encoder.config["sslzoo"] |= {"method": "byol", "dataset": "digits", "source": "trained"}
    encoder.save_pretrained(path)
    return path


def words(run: Path, folder: Path, tmp_path: Path, *more: str) -> list[str]:
    budget = ["--steps", "2", "--batch-size", "3", "--image-size", "64x64", "--device", "cpu", "--seeds", "0"]
    files = ["--results", str(tmp_path / "r.csv"), "--picture", str(tmp_path / "p.png")]
    return [str(run), "--data", str(folder), *files, *budget, *more]


def test_rows_are_appended_once_with_pictures(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert segmentation.main(words(run, folder, tmp_path, "--scratch", "--heads", "fcn8s")) == 0
    rows = read(tmp_path / "r.csv")
    assert {row.key[:4] for row in rows} == {
        (model, "segmentation-fcn8s", "digits", metric)
        for model in ("run:byol-resnet18quarter-digits", NETWORK)
        for metric in ("miou", "pixel_accuracy")
    }
    assert {(row.n_train, row.n_test) for row in rows} == {(6, 6)}
    assert rows[0].settings.endswith("image_size=64x64 output_stride=32 precision=float32")
    for start in ("pretrained", "scratch"):
        with Image.open(tmp_path / f"p-fcn8s-{start}.png") as image:
            assert image.width > 800
    monkeypatch.setattr(segmentation, "finetuned", None)
    assert segmentation.main(words(run, folder, tmp_path, "--scratch", "--heads", "fcn8s")) == 0
    assert read(tmp_path / "r.csv") == rows
    assert "| fcn8s |" in capsys.readouterr().out


def test_scratch_has_weights_of_its_seed(folder: Path, run: Path, tmp_path: Path) -> None:
    options = segmentation._parse(words(run, folder, tmp_path))
    train = sslzoo.open_masks(folder / "train")
    bench = segmentation.Bench(str(run), "digits", train, train, options)
    scratch = bench.trial(Job("fcn", "scratch", 3)).subject
    expected = sslzoo.create("resnet18quarter", seed=3, image_size=32)
    assert torch.equal(scratch.encode.model.conv1[0].weight, expected.model.conv1[0].weight)  # type: ignore[index,union-attr]
    assert scratch.name == NETWORK


def test_pixels_are_counted_over_all_images_in_their_own_size(scenes: Callable[..., Any]) -> None:
    data = scenes(2)
    masks = data.masks.copy()
    masks[0, :8] = IGNORE
    truth = sslzoo.open_masks((data.images, masks), classes=CLASSES)
    said = PackedMasks()
    for mask in data.masks:
        said.append(np.where(mask == 2, 0, mask).astype(np.uint8))
    found = Segmentations(truth.images, CLASSES, [(0, 0, 0)] * 3, said, [])
    figures = overlap(found, truth).compute()
    counts = np.bincount(masks[masks != IGNORE], minlength=3)
    assert figures["iou/zero"] == 1
    assert figures["iou/one"] == 0
    assert figures["iou/photograph"] == pytest.approx(counts[0] / (counts[0] + counts[2]))
    with pytest.raises(EvaluationError, match="x cannot be read: why"):
        overlap(replace(found, skipped=[("x", "why")]), truth)


def test_camvids_classes_are_known_and_its_void_is_ignored(scenes: Callable[..., Any], tmp_path: Path) -> None:
    data = scenes(1)
    for name, pixels in (("images", data.images[0]), ("masks", data.masks[0] * 5 + 1)):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "a.png")
    found = segmentation._open(tmp_path, "camvid")
    assert len(found.classes or ()) == len(found.colours or ()) == 11
    assert set(np.unique(found.mask(0))) == {1, 6, 255}
    with pytest.raises(EvaluationError, match=r"needs a file classes\.txt"):
        segmentation._open(tmp_path, "other")


def test_what_cannot_be_fine_tuned(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for model, message in (("pixels", "no weights to fine-tune"), ("nonsense", "Unknown model 'nonsense'")):
        assert main(["segmentation", model, *words(tmp_path, folder, tmp_path)[1:]]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "r.csv").exists()


def test_the_table_has_mean_and_standard_deviation() -> None:
    rows = [replace(ROW, seed=seed, value=value) for seed, value in enumerate((0.5, 0.6, 0.7))]
    rows += [replace(ROW, model=NETWORK, value=0.2), replace(ROW, protocol="segmentation-unet")]
    rows += [replace(ROW, metric="pixel_accuracy", value=0.9)]
    rows += [replace(ROW, protocol="linear", metric="top1")]
    assert table(rows).splitlines() == [
        f"| mean IoU on CamVid, test | `m` | `{NETWORK}` |",
        "| --- | ---: | ---: |",
        "| fcn | 60.0 % ± 10.0 | 20.0 % |",
        "| unet | 50.0 % | – |",
    ]


def test_the_benchmark_trains_both(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    costs = iter([9000.0, 9000.0, 1000.0, 1050.0, 1000.0, 1300.0, 1000.0, 1080.0])
    small = torch.nn.Conv2d(1, 1, 1)
    monkeypatch.setattr(
        segment, "contenders", lambda *a: {segment.THEIRS: (small, small), segment.OURS: (small, small)}
    )
    monkeypatch.setattr(segment, "step", lambda *a: next(costs))
    assert segment.main(["--image-size", "64", "--repeats", "3", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "1080.0 (1050.0–1300.0)" in out
    assert "goal: at most 1.1 x torchvision deeplabv3_resnet50: met" in out


def test_both_have_the_same_loss_with_the_same_weights() -> None:
    torch.set_num_threads(1)
    found = segment.contenders(True, 64)
    (theirs, their_loss), (ours, loss) = found[segment.THEIRS], found[segment.OURS]
    state = theirs.state_dict()
    for mine, other in (
        ("encoder.model", "backbone"),
        ("decoder.layers", "classifier"),
        ("auxiliary", "aux_classifier"),
    ):
        part = ours.get_submodule(mine)
        part.load_state_dict({name: state[f"{other}.{name}"] for name in part.state_dict()})
    for network in (ours, theirs):
        network.eval()
        network.training = True  # the second decoder is for training; batch norm and dropout stay as they are
    images, masks = torch.randn(1, 3, 64, 64), torch.randint(0, segment.CLASSES, (1, 64, 64))
    torch.testing.assert_close(loss(images, masks), their_loss(images, masks))
    optimizer = torch.optim.SGD(ours.parameters(), 0.1)
    before = loss(images, masks).item()
    assert segment.step(loss, optimizer, images, masks, bf16=False) > 0
    assert loss(images, masks).item() != before
