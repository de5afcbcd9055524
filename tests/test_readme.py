"""Every snippet of the README runs, in its order, as a user would type it."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sslzoo
from sslzoo.cli import app
from sslzoo_training.method import list_methods

README = Path(__file__).parents[1] / "README.md"
SNIPPETS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
# the README's numbers of epochs take hours, and its heads are wide: the words are typed as they stand, these after them
QUICK = {
    "pretrain": ["--epochs", "1", "--batch-size", "8", "hidden_dim=32", "dim=32", "precision=no"],
    "finetune": ["--epochs", "1"],
}


@pytest.fixture
def desk(photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the README speaks of."""
    (tmp_path / "photos").symlink_to(photo_folder)
    sslzoo.read_image(photo_folder / "china" / "00.png").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    snippets = [code for language, code in SNIPPETS if language == "python"]
    assert len(snippets) >= 2
    for code in snippets:
        exec(compile(code, str(README), "exec"), names)
    assert names["X"].shape == (24, 128)  # type: ignore[attr-defined]
    assert len(names["maps"]) == 5  # type: ignore[arg-type]
    assert "byol-resnet18quarter-cifar10" in capsys.readouterr().out


def test_commands_run(desk: Path) -> None:
    lines = [line for language, code in SNIPPETS if language == "bash" for line in code.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("sslzoo ")]
    assert {words[0] for words in commands} == {"finetune", "predict", "probe", "embed", "pretrain"}
    for words in commands:
        done = CliRunner().invoke(app, [*words, *QUICK.get(words[0], [])])
        assert done.exit_code == 0, (words, done.output, done.exception)
    assert {"classifier", "report", "features.npz", "run"} <= {path.name for path in desk.iterdir()}
    assert sslzoo.load("run").arch == "resnet18"


def test_every_method_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in list_methods() if f"`{name}`" not in text] == []


def test_the_two_commands_of_the_first_screen_are_there() -> None:
    lines = [code.strip() for language, code in SNIPPETS if language == "bash"][:2]
    assert lines == ["pip install . && sslzoo demo", "pip install '.[test]' && pytest"]


def test_the_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (README.parent / target).exists(), target
