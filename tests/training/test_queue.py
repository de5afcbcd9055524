"""The zoo's training queue: what is next, stopping and going on, runners beside each other."""

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from sslzoo.weights import read_config
from sslzoo_training import queue
from sslzoo_training.method import find_method
from sslzoo_training.publish import data_name
from sslzoo_training.queue import Entry, QueueError, choose, claimed, is_finished, read_queue, run_queue, state
from sslzoo_training.recipe import make_plan

SMALL = {"arch": "resnet18quarter", "image_size": 32, "batch_size": 8, "epochs": 1, "precision": "no", "log_every": 1}


def entries(photo_folder: Path) -> list[Entry]:
    first = Entry("a", "rotation", photo_folder.name, cpu="cifar10_cpu", settings=SMALL)
    return [first, replace(first, id="b", settings=SMALL | {"seed": 1})]


@pytest.mark.parametrize("entry", read_queue(), ids=lambda entry: entry.id)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_entry_of_the_table_has_a_plan_that_its_id_tells(entry: Entry, device: str) -> None:
    if not entry.recipe(device):
        pytest.skip(f"{entry.id} is not trained on {device}")
    plan = make_plan(entry.method, entry.recipe(device), entry.settings)
    name = find_method(entry.method).published_as(plan.method_settings)
    assert entry.id == f"{name}-{plan.settings.arch}-{data_name(entry.source(Path('data')))}"
    assert plan.settings.single_image == entry.data.startswith(queue.PHOTOS)


def test_scikit_learns_photographs_need_no_data_folder(tmp_path: Path) -> None:
    settings = SMALL | {"crops": 16}
    entry = Entry("a", "rotation", "sklearn:china.jpg", cpu="single_image", settings=settings)
    (outcome,) = run_queue([entry], tmp_path / "nowhere", tmp_path / "runs", device="cpu")
    assert outcome.finished
    assert read_config(outcome.folder)["sslzoo"]["dataset"] == "china"


def test_the_queue_trains_in_order_and_skips_what_is_finished(photo_folder: Path, tmp_path: Path) -> None:
    todo = entries(photo_folder)
    outcomes = run_queue(todo, photo_folder.parent, tmp_path, device="cpu")
    assert [o.folder for o in outcomes] == [tmp_path / "cifar10_cpu" / "a", tmp_path / "cifar10_cpu" / "b"]
    assert all(o.finished for o in outcomes)
    assert [state(o.folder) for o in outcomes] == ["finished", "finished"]
    assert run_queue(todo, photo_folder.parent, tmp_path, device="cpu") == []


def test_time_ends_it_and_the_next_call_goes_on(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    todo = entries(photo_folder)
    (first,) = run_queue(todo, photo_folder.parent, tmp_path, device="cpu", time_limit=0)
    assert not first.finished
    assert first.step == 1  # a step is the least that a call does
    assert state(first.folder) == "step 1"
    monkeypatch.setattr(queue, "LEAST_SECONDS", 1e9)  # as if the rest were too short for another start
    (again,) = run_queue(todo, photo_folder.parent, tmp_path, device="cpu", time_limit=100)
    assert again.folder == first.folder
    assert again.finished
    assert state(todo[1].folder(tmp_path, "cpu")) == "not begun"


def hold(folder: Path, held: "multiprocessing.synchronize.Event", done: "multiprocessing.synchronize.Event") -> None:
    with claimed(folder) as mine:
        assert mine
        held.set()
        done.wait(60)


def test_a_runner_leaves_what_another_one_trains_until_that_one_is_gone(photo_folder: Path, tmp_path: Path) -> None:
    todo = entries(photo_folder)
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(todo[0].folder(tmp_path, "cpu"), held, done))
    other.start()
    assert held.wait(60)
    outcomes = run_queue(todo, photo_folder.parent, tmp_path, device="cpu")
    assert [o.folder.name for o in outcomes] == ["b"]
    other.kill()
    other.join()
    outcomes = run_queue(todo, photo_folder.parent, tmp_path, device="cpu")
    assert [o.folder.name for o in outcomes] == ["a"]
    assert is_finished(outcomes[0].folder)


def test_entries_are_chosen_by_id_and_device() -> None:
    table = [Entry("x", "byol", "d", cpu="c", cuda="g"), Entry("y", "byol", "d", cuda="g")]
    assert [entry.id for entry in choose(table, [], "cpu")] == ["x"]
    assert [entry.id for entry in choose(table, ["y"], "cuda")] == ["y"]
    with pytest.raises(QueueError, match="no 'y' for cpu"):
        choose(table, ["y"], "cpu")


def test_wrong_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "queue.toml"
    path.write_text('[entries.x]\nmethod = "byol"\ndata = "d"\nrecipes = "c"\n')
    with pytest.raises(QueueError, match="x: no key 'recipes'"):
        read_queue(path)
    path.write_text('[entries.x]\nmethod = "byol"\n')
    with pytest.raises(QueueError, match="x: lacks data"):
        read_queue(path)
