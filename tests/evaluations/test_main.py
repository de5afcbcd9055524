import pytest

from sslzoo_evaluations.__main__ import evaluations, main


def test_the_folder_is_the_registry(tmp_path):
    (tmp_path / "good.py").write_text('"""What it does.\n\nMore."""\ndef main(argv): ...\n')
    (tmp_path / "helper.py").write_text('"""No main."""\n')
    assert evaluations(tmp_path) == {"good": "What it does."}


def test_without_a_name_all_are_listed(capsys):
    assert main([]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"cards", "knn", "linear", "speed"} <= set(listed)
    assert "protocol" not in listed
    assert "results" not in listed


@pytest.mark.parametrize("argv", [["liner"], ["speed", "liner"]])
def test_an_unknown_name_says_which_there_are(capsys, argv):
    assert main(argv) == 2
    assert "no evaluation 'liner'. There are:" in capsys.readouterr().err


def test_arguments_reach_the_evaluation(capsys):
    assert main(["knn", "pixels", "--data", "/nowhere"]) == 1
    assert "/nowhere has no folder train/" in capsys.readouterr().err
