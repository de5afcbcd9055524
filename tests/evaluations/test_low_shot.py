from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sslzoo
from sslzoo.encoder import Encoder
from sslzoo_evaluations import low_shot
from sslzoo_evaluations.__main__ import main
from sslzoo_evaluations.low_shot import Job, curves, in_memory, table
from sslzoo_evaluations.protocol import open_splits
from sslzoo_evaluations.results import Result, read
from sslzoo_evaluations.subjects import EvaluationError

ROW = Result("m", "low_shot-finetune-1%", "cifar10", "top1", 0.5, 0, 500, 10, "ab", "steps=5", "1a2b3c4", "2026-01-31")
NETWORK = "random:resnet18quarter@32"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright noisy images of 16 pixels: 20 of each to train on, 10 to test on."""
    root = tmp_path_factory.mktemp("low") / "shades"
    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 10)):
        for name, low in (("dark", 0), ("bright", 120)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(low, low + 100, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("low") / "run"
    encoder = sslzoo.create("resnet18quarter", seed=0, image_size=32)
    encoder.config["sslzoo"] |= {"method": "byol", "dataset": "shades", "source": "trained"}
    encoder.save_pretrained(path)
    return path


def words(run: Path, folder: Path, tmp_path: Path, *more: str) -> list[str]:
    files = ["--results", str(tmp_path / "r.csv"), "--picture", str(tmp_path / "curves.png")]
    budget = ["--steps", "3", "--batch-size", "4", "--views", "1", "--device", "cpu", "--seeds", "0"]
    return [str(run), "--data", str(folder), *files, *budget, "--fractions", "0.2", "1", *more]


def test_rows_are_appended_once_and_the_rest_is_done_later(
    folder: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[Job] = []
    finetuned = low_shot.finetuned_accuracy

    def counted(bench: low_shot.Bench, subject: low_shot.Subject, job: Job) -> float:
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(job)
        return finetuned(bench, subject, job)

    monkeypatch.setattr(low_shot, "finetuned_accuracy", counted)
    with pytest.raises(KeyboardInterrupt):
        low_shot.main(words(run, folder, tmp_path))
    assert len(read(tmp_path / "r.csv")) == 2  # a fine-tuning and the probe before it
    monkeypatch.setattr(low_shot, "finetuned_accuracy", finetuned)
    assert low_shot.main(words(run, folder, tmp_path)) == 0
    rows = read(tmp_path / "r.csv")
    assert len(rows) == len({row.key for row in rows}) == 6
    monkeypatch.setattr(low_shot, "finetuned_accuracy", None)
    monkeypatch.setattr(low_shot, "Probe", None)
    assert low_shot.main(words(run, folder, tmp_path)) == 0
    assert read(tmp_path / "r.csv") == rows

    assert {row.model for row in rows} == {"run:byol-resnet18quarter-shades", NETWORK}
    assert {(row.protocol, row.n_train) for row in rows} == {
        (f"low_shot-{kind}-{part}", count)
        for kind in ("probe", "finetune")
        for part, count in (("20%", 8), ("100%", 40))
    }
    assert {row.n_test for row in rows} == {20}
    fine = next(row for row in rows if "finetune" in row.protocol)
    assert fine.settings.startswith("steps=3 batch_size=4 lr=")
    text = capsys.readouterr().out
    assert "| from scratch |" in text
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > 500


def test_other_settings_or_weights_are_measured_again(folder: Path, run: Path, tmp_path: Path) -> None:
    only = ("--kinds", "scratch", "--fractions", "1")
    assert low_shot.main(words(run, folder, tmp_path, *only)) == 0
    assert low_shot.main(words(run, folder, tmp_path, *only, "--steps", "2")) == 0
    rows = read(tmp_path / "r.csv")
    assert [row.settings.split()[0] for row in rows] == ["steps=3", "steps=2"]


def test_one_number_is_what_one_gets_by_hand(folder: Path, run: Path) -> None:
    train, test = (in_memory(images) for images in open_splits(folder))
    bench = low_shot.Bench(str(run), "shades", train, test, 20, 8, 1, "cpu")
    job = Job("finetune", 0.5, 0)
    part = bench.part(job)
    assert train.labels is not None
    assert np.bincount(train.labels[part]).tolist() == [10, 10]
    assert not np.array_equal(part, bench.part(replace(job, seed=1)))
    assert low_shot.finetuned_accuracy(bench, bench.trial(job).subject, job) == 1.0  # bright and dark: easy
    shifted = in_memory(test)
    assert test.labels is not None
    shifted.labels = 1 - test.labels
    wrong = replace(bench, test=shifted)
    assert low_shot.finetuned_accuracy(wrong, wrong.trial(job).subject, job) == 0.0
    accuracy, chosen = low_shot.Probe(bench, bench.trial(job).subject).accuracy(replace(job, kind="probe"))
    assert accuracy == 1.0
    assert chosen.startswith("weight_decay=")


def test_from_scratch_is_the_same_network_with_weights_of_its_seed(folder: Path, run: Path) -> None:
    train, test = open_splits(folder)
    bench = low_shot.Bench(str(run), "shades", train, test, 1, 4, 1, "cpu")
    scratch, pretrained = (bench.trial(Job(kind, 1, 3)).subject for kind in ("scratch", "finetune"))
    assert isinstance(scratch.encode, Encoder)
    assert isinstance(pretrained.encode, Encoder)
    assert scratch.name == NETWORK
    assert scratch.encode.input_size == pretrained.encode.input_size
    expected = sslzoo.create("resnet18quarter", seed=3, image_size=32)
    assert torch.equal(scratch.encode.model.conv1[0].weight, expected.model.conv1[0].weight)  # type: ignore[index,union-attr]
    assert scratch.sha256 != bench.trial(Job("scratch", 1, 4)).subject.sha256


def test_the_table_has_mean_and_standard_deviation() -> None:
    rows = [replace(ROW, seed=seed, value=value) for seed, value in enumerate((0.5, 0.6, 0.7))]
    rows += [replace(ROW, protocol="low_shot-finetune-100%", n_train=50000, value=0.9)]
    rows += [replace(ROW, model=NETWORK, value=0.2), replace(ROW, protocol="low_shot-probe-100%", n_train=50000)]
    rows += [replace(ROW, model="another"), replace(ROW, protocol="linear", value=0.99)]
    assert table(rows, {"m": NETWORK}).splitlines() == [
        "| `m`: top-1 accuracy on CIFAR-10, test | 500 labels | 50 000 labels |",
        "| --- | ---: | ---: |",
        "| fine-tuned | 60.0 % ± 10.0 | 90.0 % |",
        "| linear probe, frozen | – | 50.0 % |",
        "| from scratch | 20.0 % | – |",
    ]
    assert table([ROW], {}) == ""
    assert curves(rows, "m", NETWORK, "mnist") == {}


@pytest.mark.parametrize(
    ("model", "message"), [("pixels", "no weights to fine-tune"), ("nonsense", "Unknown model 'nonsense'")]
)
def test_what_cannot_be_fine_tuned(
    folder: Path, tmp_path: Path, model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.csv"
    assert main(["low_shot", model, "--data", str(folder), "--results", str(file), "--device", "cpu"]) == 1
    assert message in capsys.readouterr().err
    assert not file.exists()


def test_a_broken_image_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no")
    with pytest.raises(EvaluationError, match=r"b\.png.*whole data set"):
        in_memory(sslzoo.open_images(tmp_path))
