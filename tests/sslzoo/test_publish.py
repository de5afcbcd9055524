"""`sslzoo publish`: folders and the zoo to a stand-in for the Hub, with cards; and --dry-run, which touches nothing."""

from pathlib import Path

import pytest
from hub_server import Fault, Hub
from huggingface_hub import ModelCard
from typer.testing import CliRunner, Result

import sslzoo
from sslzoo import hub, weights, zoo
from sslzoo.cli import app
from sslzoo.publish import publish

NAME = "org/thin"


@pytest.fixture(autouse=True)
def client(hub_client: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here talks to the stand-in, with a token that may write."""
    monkeypatch.setenv("HF_TOKEN", "writer")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: a model folder, with a log and a checkpoint beside it."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    entry = zoo.list_models()[0]
    sslzoo.load(entry.id).save_pretrained(folder, card="---\nlicense: mit\n---\n# My own words")
    (folder / "log.jsonl").write_text("{}")
    (folder / "checkpoint.pt").write_bytes(b"a pickle")
    return folder


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["publish", *map(str, args)])


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_is_published_with_a_card_of_its_repository(run: Path, server: Hub) -> None:
    before = content(run)
    result = call(run, NAME)
    assert result.exit_code == 0, result.output
    files = server.repositories[NAME].files
    assert set(files) == {*hub.FILES, ".gitattributes"}
    assert files["model.safetensors"] == before["model.safetensors"]
    assert files["config.json"] == before["config.json"]
    card = files["README.md"].decode()
    assert ModelCard(card).data.library_name == "timm"
    assert 'sslzoo.load("org/thin")' in card
    assert content(run) == before
    assert result.stdout.splitlines()[0] == "org/thin: 3 of 3 files differ"
    assert result.stdout.splitlines()[-1] == f"{server.url}/org/thin/commit/{server.repositories[NAME].refs['main']}"
    assert sslzoo.load(NAME).num_features == 128

    assert ModelCard(card).data.license is None  # nobody has said it
    licensed = call(run, NAME, "--licence", "cc-by-4.0")
    assert licensed.stdout.splitlines()[0] == "org/thin: 1 of 3 files differ"
    assert ModelCard(server.repositories[NAME].files["README.md"].decode()).data.license == "cc-by-4.0"
    call(run, NAME)

    again = call(run, NAME)
    assert again.stdout.splitlines()[0] == "org/thin: 0 of 3 files differ"
    newest = f"{server.url}/org/thin/commit/{server.repositories[NAME].refs['main']}"
    assert again.stdout.splitlines()[-1] == newest
    assert len(server.repositories[NAME].messages) == 4


def test_a_dry_run_lists_and_touches_nothing(run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed() -> list[list[str]]:
        result = call(run, NAME, "--dry-run")
        assert result.exit_code == 0, result.output
        assert not server.count("POST|PUT")
        return [line.split() for line in result.stdout.splitlines()[1:]]

    monkeypatch.delenv("HF_TOKEN")  # looking needs none
    size = f"{(run / 'model.safetensors').stat().st_size:,}"
    assert ["model.safetensors", size, "bytes", "new"] in listed()
    server.add(NAME, {name: (run / name).read_bytes() for name in hub.FILES[:2]} | {"README.md": b"old"})
    assert {line[0]: line[3] for line in listed()} == {
        "config.json": "unchanged",
        "model.safetensors": "unchanged",
        "README.md": "changed",
    }
    assert list(server.repositories) == [NAME]


def test_private_is_private(run: Path, server: Hub) -> None:
    assert call(run, NAME, "--private").exit_code == 0
    assert server.repositories[NAME].private
    server.add("org/open", {})
    result = call(run, "org/open", "--private")
    assert result.exit_code == 1
    assert "org/open is public, and pushing does not change that" in result.stderr


def test_the_zoo_is_published_with_its_measured_cards_and_only_what_changed(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = zoo.list_models()[:2]
    monkeypatch.setattr(zoo, "list_models", lambda **_: zoo.ModelTable(entries))
    result = call("--zoo", "org")
    assert result.exit_code == 0, result.output
    assert sorted(server.repositories) == sorted(f"org/{entry.id}" for entry in entries)
    for entry in entries:
        files = server.repositories[f"org/{entry.id}"].files
        assert files["model.safetensors"] == (weights.locate(entry.id) / "model.safetensors").read_bytes()
        card = ModelCard(files["README.md"].decode())
        assert card.data.license == entry.licence
        assert card.data.model_name == entry.id
        assert {found.metric_type for found in card.data.eval_results} == {"accuracy"}
        assert f'sslzoo.load("org/{entry.id}")' in card.content

    changed = server.repositories[f"org/{entries[1].id}"]
    changed.commit(changed.files | {"README.md": b"vandalised"}, "vandal")
    server.requests.clear()
    result = call("--zoo", "org")
    assert "0 of 3 files differ" in result.stdout
    assert "1 of 3 files differ" in result.stdout
    assert server.count("POST .*commit") == 1
    assert not server.count("PUT")
    assert "vandalised" not in changed.files["README.md"].decode()


@pytest.mark.parametrize("args", [[], ["run"], ["run", NAME, "--zoo", "org"], ["run", "--zoo", "org"]])
def test_wrong_usage(args: list[str]) -> None:
    result = call(*args)
    assert result.exit_code == 2
    assert "needs either RUN and ORG/NAME, or --zoo ORG" in result.stderr


def test_what_cannot_be_published_says_so_in_a_line(
    run: Path, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(text: str, *args: str | Path) -> None:
        result = call(*args)
        assert result.exit_code == 1, result.output
        assert text in result.stderr.splitlines()[-1]
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert result.stdout == ""

    failed("There is no folder", tmp_path / "none", NAME)
    failed("has no config.json", tmp_path, NAME)
    failed("is no name of a repository", run, "thin")
    server.faults = [Fault("POST .*commit", 502)]
    failed("it answers 502", run, NAME)
    assert len(server.repositories[NAME].messages) == 1
    monkeypatch.delenv("HF_TOKEN")
    failed("needs a token with write access", run, "org/other")
    damaged = tmp_path / "damaged"
    sslzoo.load(run).save_pretrained(damaged)
    (damaged / "model.safetensors").write_bytes(b"")
    failed("is truncated or not a safetensors file", damaged, NAME)


def test_a_classifier_is_published_with_a_card_that_names_its_encoder(server: Hub, tmp_path: Path) -> None:
    entry = zoo.list_models()[0]
    model = sslzoo.classifier(entry.id, classes=["cat", "dog"])
    model.save_pretrained(tmp_path / "run", finetuning={"data": "pets", "n_val": 9, "metrics": {"accuracy": 0.75}})
    result = call(tmp_path / "run", "org/pets")
    assert result.exit_code == 0, result.output
    card = ModelCard(server.repositories["org/pets"].files["README.md"].decode())
    assert card.data.base_model == entry.id
    assert [found.metric_value for found in card.data.eval_results] == [0.75]
    assert 'sslzoo.load_model("org/pets")' in card.content
    loaded = sslzoo.load_model("org/pets", revision=server.repositories["org/pets"].refs["main"])
    assert loaded.classes == ["cat", "dog"]
    server.requests.clear()
    assert loaded.push_to_hub("org/pets") == result.stdout.splitlines()[-1]  # the same bytes, the same card
    assert not server.count("POST|PUT")
    with pytest.raises(weights.WeightsError, match="load_model opens it"):
        sslzoo.load("org/pets")


def test_a_card_can_be_given(run: Path, server: Hub) -> None:
    done = publish(run, NAME, card="---\nlicense: mit\n---\n# Mine\n")
    assert done.changed == list(hub.FILES)
    assert server.repositories[NAME].files["README.md"] == b"---\nlicense: mit\n---\n# Mine\n"
