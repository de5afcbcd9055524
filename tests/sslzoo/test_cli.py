import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from sslzoo import console, zoo
from sslzoo.cli import app
from sslzoo.encoder import create, load
from sslzoo.features import read_features
from sslzoo_training.__main__ import app as training_app

BYOL, ROTATION = "byol-resnet18quarter-cifar10", "rotation-resnet50-mnist"


@pytest.fixture
def table(use_zoo):
    use_zoo({BYOL: {}, ROTATION: {"licence": "cc-by-4.0"}}, {"short": ROTATION})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    create("resnet18quarter", seed=0, image_size=32).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two classes of twelve images, one bright, one dark."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 150)):
        (folder / name).mkdir()
        for i in range(12):
            Image.fromarray(rng.integers(low, low + 100, (20, 20, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return str(folder)


def call(*args):
    return CliRunner().invoke(app, list(args))


def assert_error(result, text, code=1):
    assert result.exit_code == code
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert text in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["pretrain", "--help"],
        ["finetune", "--help"],
        ["publish", "--help"],
        ["--version"],
        ["list"],
        ["info", "nothing"],
    ],
)
def test_quick_commands_import_nothing_heavy(args):
    code = (
        f"import sys; sys.argv = ['sslzoo', *{args}]\n"
        "import sslzoo.cli\n"
        "try: sslzoo.cli.main()\n"
        "except SystemExit: pass\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "sys.exit(repr(loaded & {'torch', 'timm', 'sklearn', 'matplotlib', 'numpy', 'PIL', 'rich'} or 0))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.stderr.splitlines()[-1:] == ["0"], ran.stderr


def test_help_names_every_command():
    result = call("--help")
    assert result.exit_code == 0
    early = ("list", "info", "fetch", "verify", "convert", "embed", "probe")
    for name in (*early, "finetune", "predict", "demo", "export", "pretrain", "publish"):
        assert f"\n  {name} " in result.stdout
    assert "..." not in result.stdout.partition("Commands:")[2]  # each is described in whole


def test_version():
    from importlib.metadata import version

    result = call("--version")
    assert (result.exit_code, result.stdout) == (0, f"sslzoo {version('sslzoo')}\n")


def test_list(table):
    assert call("list").stdout == f"{zoo.list_models()}\n"
    assert [row["id"] for row in json.loads(call("list", "--json").stdout)] == [BYOL, ROTATION]
    for option in (["--method", "rotation"], ["--arch", "resnet50"], ["--data", "mnist"], ["--licence", "cc-by-4.0"]):
        rows = json.loads(call("list", "--json", *option).stdout)
        assert [row["id"] for row in rows] == [ROTATION]
    assert_error(call("list", "--method", "simclr"), "No model has method='simclr'. There are: byol, rotation.")


def test_info(table):
    assert call("info", BYOL).stdout == f"{zoo.info(BYOL)}\n"
    assert json.loads(call("info", "short", "--json").stdout)["id"] == ROTATION
    assert_error(call("info", "boyl"), f"Unknown model 'boyl'. Did you mean '{BYOL}'")


@pytest.mark.parametrize("args", [["info"], ["embed", "a", "b"], ["probe", "a", "b", "--wrong"], ["nothing"]])
def test_wrong_usage_ends_with_2(args):
    result = call(*args)
    assert result.exit_code == 2
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


def test_embed(model, photos, tmp_path):
    out = tmp_path / "features.npz"
    result = call("embed", model, photos, "-o", str(out), "--workers", "0", "--batch-size", "5", "--no-resume")
    assert result.exit_code == 0, result.output
    assert "128 features of 24 images" in result.stdout
    np.testing.assert_allclose(read_features(out).X, load(model).embed(photos), atol=1e-5)


def test_embed_errors(table, model, photos, tmp_path):
    out = str(tmp_path / "x.npz")
    assert_error(call("embed", "no-such", photos, "-o", out), "Unknown model 'no-such'")
    assert_error(call("embed", str(tmp_path), photos, "-o", out), "has no config.json")
    assert_error(call("embed", model, str(tmp_path / "none"), "-o", out), "No such file or folder")
    assert_error(call("embed", model, photos, "-o", str(tmp_path / "x.csv")), ".csv")


def test_probe(model, photos, tmp_path):
    out = tmp_path / "new" / "probe"
    result = call("probe", model, photos, "--test-fraction", "0.25", "--seed", "3", "-o", str(out))
    assert result.exit_code == 0, result.output
    assert "18 training and 6 test images" in result.stdout
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert (report["linear"], report["n_train"], report["n_test"]) == (1.0, 18, 6)  # bright and dark: easy
    assert report["confusion"] == [[3, 0], [0, 3]]
    assert report["per_class"] == {"bright": 1.0, "dark": 1.0}
    assert len(report["names"]) == len(report["predictions"]) == 6
    with Image.open(out / "confusion.png") as picture:
        assert picture.width > 300
    result = call("probe", model, photos, "--test", photos)
    assert "24 training and 24 test images" in result.stdout


def test_probe_errors(model, photos, tmp_path):
    result = call("probe", model, photos, "--test-fraction", "2")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "error: test_fraction must lie between 0 and 1, got 2.0."
    result = call("probe", model, photos + "/dark")
    assert_error(result, "no labels")


def test_finetune_and_predict(photos, tmp_path):
    run, picture = tmp_path / "run", tmp_path / "said.png"
    words = ["finetune", "classification", BYOL, photos, "-o", str(run), "--epochs", "3", "--lr", "2e-3",
             "--batch-size", "8", "--workers", "0", "--device", "cpu", "--balanced"]  # fmt: skip
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "4 of the 24 images, since none were given" in result.stdout
    assert f"132 of 132 encoder tensors from {BYOL}" in result.stderr
    assert_error(call(*words), "already holds a run")
    assert call(*words, "--resume").exit_code == 0

    result = call("predict", str(run), photos, "-o", str(picture))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith("bright/0.png")
    assert picture.is_file()
    one, other = f"{photos}/dark/3.png", f"{photos}/bright"
    rows = json.loads(call("predict", str(run), one, other, "--json").stdout)
    assert [row["image"] for row in rows] == [one, *(f"{other}/{i}.png" for i in range(12))]
    assert sum(row["label"] in row["image"] for row in rows) >= 9
    lines = call("predict", str(run), one, "--csv").stdout.splitlines()
    assert lines[0] == "image,label,probability,bright,dark"
    assert len(lines) == 2


def test_finetune_and_predict_segmentation(scenes, tmp_path):
    data = scenes(5)
    for name, arrays in (("images", data.images), ("masks", data.masks)):
        (tmp_path / "scenes" / name).mkdir(parents=True)
        for n, pixels in enumerate(arrays):
            Image.fromarray(pixels).save(tmp_path / "scenes" / name / f"{n}.png")
    (tmp_path / "scenes" / "classes.txt").write_text("photograph\nzero\none\n")
    run = str(tmp_path / "run")
    words = ["finetune", "segmentation", BYOL, str(tmp_path / "scenes"), "-o", run, "--steps", "2", "--batch-size", "2",
             "--head", "fcn8s", "--image-size", "48x64", "--loss", "dice", "--device", "cpu"]  # fmt: skip
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "132 of 132 encoder tensors" in result.output
    assert "sslzoo predict" in result.stdout
    for out in ("m.png", "m.json", "masks"):
        result = call("predict", run, str(tmp_path / "scenes" / "images"), "-o", str(tmp_path / out))
        assert result.exit_code == 0, result.output
        assert "0.png" in result.stdout
    assert len(list((tmp_path / "masks").glob("*.png"))) == 5
    assert_error(call(*words[:2], *words[2:-2], "--output-stride", "8"), "Head fcn8s takes output_stride 32, got 8")
    wrong = [word if word != "48x64" else "big" for word in words]
    assert call(*wrong).exit_code == 2
    assert_error(call("finetune", "classification", *words[2:]), "Classification knows no head, image_size, loss")


def test_finetune_and_predict_detection(scenes, tmp_path):
    data = scenes(4)
    for name in ("JPEGImages", "Annotations"):
        (tmp_path / "scenes" / name).mkdir(parents=True)
    for n, pixels in enumerate(data.images):
        Image.fromarray(pixels).save(tmp_path / "scenes" / "JPEGImages" / f"{n}.png")
        corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), data.boxes[n][0].astype(int).tolist(), strict=True))
        box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in corners.items())
        text = f"<a><object><name>zero</name><bndbox>{box}</bndbox></object></a>"
        (tmp_path / "scenes" / "Annotations" / f"{n}.xml").write_text(text)
    run, images = str(tmp_path / "run"), str(tmp_path / "scenes" / "JPEGImages")
    words = ["finetune", "detection", BYOL, str(tmp_path / "scenes"), "-o", run, "--steps", "1", "--batch-size", "2",
             "--head", "fcos", "--image-size", "64", "--device", "cpu"]  # fmt: skip
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "132 of 132 encoder tensors" in result.output
    for out in ("m.png", "m.json", "m.coco.json", "m.csv"):
        result = call("predict", run, images, "-o", str(tmp_path / out))
        assert result.exit_code == 0, result.output
        assert "0.png" in result.stdout
        assert (tmp_path / out).stat().st_size
    wrong = [word if word != "64" else "48x64" for word in words]
    assert_error(call(*wrong, "--resume"), "image_size is one number, of at least 32 pixels, got (48, 64)")
    assert_error(call("finetune", "detection", BYOL, images, "-o", run), "Found no boxes in")


def test_finetune_and_predict_errors(model, photos, tmp_path):
    run = str(tmp_path / "run")
    assert_error(call("finetune", "classifying", model, photos, "-o", run), "Unknown task 'classifying'. There is: cla")
    assert_error(call("finetune", "classification", "no-such", photos, "-o", run), "Unknown model 'no-such'")
    assert_error(call("finetune", "classification", model, f"{photos}/dark", "-o", run), "no labels")
    assert_error(call("predict", model, photos), "sslzoo.load opens it")
    assert_error(call("predict", run, photos), "There is no folder")


def test_pretrain_is_the_command_of_training(photos, tmp_path):
    ours = call("pretrain", "--help").stdout
    theirs = CliRunner().invoke(training_app, ["pretrain", "--help"]).stdout
    assert ours.partition("\n")[2] == theirs.partition("\n")[2]
    assert ours.startswith("Usage: sslzoo pretrain [OPTIONS]")
    assert "--time-limit" in ours
    assert call("pretrain", "byol").exit_code == 2
    for start in (call, lambda *args: CliRunner().invoke(training_app, list(args))):
        result = start("pretrain", "byol", "lrr=1", "--data", photos, "--out", str(tmp_path / "run"))
        assert_error(result, "lrr")


def crash(error):
    """Run a command that raises from this module, which is none of ours."""
    own = console.new_app()

    @own.callback()
    def main():
        pass

    @own.command()
    def fail():
        raise error

    return CliRunner().invoke(own, ["fail"])


def test_errors_that_users_can_mend_take_one_line():
    assert_error(crash(zoo.UnknownModelError("no such")), "error: no such")
    assert_error(crash(PermissionError(13, "Permission denied", "x.png")), "error: Permission denied: x.png")
    assert_error(crash(OSError(28, "No space left on device")), "error: No space left on device")
    assert_error(crash(OSError("odd")), "error: odd")


@pytest.mark.parametrize("error", [ValueError("from NumPy"), TypeError("t"), KeyError("k"), RuntimeError("r")])
def test_bugs_keep_their_traceback(error):
    result = crash(error)
    assert result.exception is error
    assert result.stderr == ""


def test_a_value_error_is_the_users_where_we_raise_it(table):
    with pytest.raises(ValueError) as ours:
        zoo.list_models(method="simclr")
    with pytest.raises(ValueError) as numpys:
        np.zeros(2).reshape(3)
    assert type(ours.value) is type(numpys.value) is ValueError
    assert console.is_users(ours.value)
    assert not console.is_users(numpys.value)


def test_a_closed_pipe_is_left_to_typer():
    assert not console.is_users(BrokenPipeError(32, "Broken pipe"))


def test_exit_codes_of_commands_stay():
    own = console.new_app()

    @own.callback()
    def main():
        pass

    @own.command()
    def stop():
        raise typer.Exit(143)

    assert CliRunner().invoke(own, ["stop"]).exit_code == 143


def test_a_warning_is_one_line_without_a_line_of_code():
    own = console.new_app()
    own.callback()(lambda: None)
    own.command("warn")(lambda: print(warnings.formatwarning("No commercial use.", UserWarning, "typer/main.py", 1445)))
    before = warnings.formatwarning
    assert CliRunner().invoke(own, ["warn"]).output.strip() == "warning: No commercial use."
    assert warnings.formatwarning is before
