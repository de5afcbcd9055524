import subprocess

import pytest

from sslzoo.provenance import commit


@pytest.fixture
def checkout(tmp_path):
    def git(*words):
        done = subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "code.py").write_text("1")
    (tmp_path / "part" / "results.csv").write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    return tmp_path, git("rev-parse", "--short", "HEAD")


def test_a_clean_checkout_has_its_commit(checkout):
    folder, head = checkout
    (folder / "untracked").write_text("2")
    assert commit(folder) == commit(folder / "part") == head


def test_changed_files_show_unless_they_do_not_count(checkout):
    folder, head = checkout
    (folder / "part" / "results.csv").write_text("2")
    assert commit(folder / "part") == f"{head}+"
    assert commit(folder / "part", ignore="results.csv") == head
    (folder / "part" / "code.py").write_text("2")
    assert commit(folder / "part", ignore="results.csv") == f"{head}+"


def test_outside_a_checkout_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit(tmp_path) == ""
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path) == ""
