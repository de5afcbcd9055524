import re
import struct
from pathlib import Path

import numpy as np
import pytest

from sslzoo.data import open_images
from sslzoo_training.method import list_methods
from sslzoo_training.recipe import RECIPES, RecipeError, list_recipes, make_plan, parse_overrides


@pytest.mark.parametrize(
    ("method", "recipe"), [(method, name) for method in list_methods() for name in list_recipes(method)]
)
def test_the_recipes_of_a_method_give_plans(method: str, recipe: str) -> None:
    plan = make_plan(method, recipe, {})
    assert all(view.size == plan.settings.image_size for view in plan.views)
    assert plan.to_dict()["method"] == method


def test_a_recipe_for_other_methods_is_refused(tmp_path: Path) -> None:
    assert "cifar10_resnet50_cpu" in list_recipes("byol")
    assert {"cifar10", "cifar10_cpu", "imagenet"} <= set(list_recipes("simsiam")) < set(list_recipes())
    with pytest.raises(
        RecipeError, match=r"settings for byol only.*\[simsiam\].*one of: cifar10, cifar10_cpu, imagenet"
    ):
        make_plan("simsiam", "cifar10_resnet50_cpu", {})
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(RecipeError, match="settings for nothing only"):
        make_plan("simsiam", tmp_path / "empty.toml", {})


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[default]\nlr = 1\nepochs = 3\n[byol]\nlr = 2.0\ntau = 0.5\n")
    plan = make_plan("byol", file, {"epochs": 7})
    assert (plan.settings.lr, plan.settings.epochs, plan.method_settings["tau"]) == (2.0, 7, 0.5)
    assert make_plan("simsiam", file, {}).settings.lr == 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"epoch": 3}, "has no setting 'epoch'; did you mean .*epochs"),
        ({"hiden_dim": 3}, "did you mean hidden_dim"),
        ({"zzzzzzzz": 1}, "settings are: .*weight_decay"),
        ({"epochs": "many"}, "epochs = 'many': needs a int, got a str"),
        ({"epochs": True}, "needs a int, got a bool"),
        ({"epochs": 0}, "at least 1"),
        ({"optimizer": "adamw"}, "needs one of sgd, lars, adam"),
        ({"accumulate": 3}, "cannot be cut"),
        ({"views": [{}]}, "views has 1 tables; BYOL takes 2"),
        ({"views": [{"blurr": 1.0}, {}]}, "did you mean blur"),
        ({"views": [{"flip": 2.0}, {}]}, "flip is 2.0"),
    ],
)
def test_wrong_settings_are_named(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_plan("byol", "cifar10", overrides)


def test_a_recipe_with_an_unknown_table_or_name_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[byoll]\nlr = 1\n")
    with pytest.raises(RecipeError, match=re.escape("[byoll]")):
        make_plan("byol", file, {})
    with pytest.raises(RecipeError, match="cifar10"):
        make_plan("byol", "cifar100", {})


def test_view_changes_are_merged_into_the_methods_views() -> None:
    plan = make_plan("byol", "cifar10", {"views": [{"blur": 0.25}, {"scale": [0.5, 1.0]}], "image_size": 48})
    assert plan.views[0].blur == 0.25
    assert plan.views[0].grayscale == 0.2
    assert plan.views[1].scale == (0.5, 1.0)
    assert plan.views[1].solarize == 0.2
    assert plan.views[0].size == 48


def test_overrides_are_toml_and_bare_words_are_strings() -> None:
    got = parse_overrides(["lr=0.1", "epochs=3", "optimizer=lars", "nesterov=true", "views=[{blur=0.0},{}]"])
    assert got == {"lr": 0.1, "epochs": 3, "optimizer": "lars", "nesterov": True, "views": [{"blur": 0.0}, {}]}
    with pytest.raises(RecipeError, match="key=value"):
        parse_overrides(["epochs"])


def test_one_table_changes_all_views_where_they_are_alike() -> None:
    plan = make_plan("simsiam", "cifar10", {"views": [{"blur": 0.25}]})
    assert [view.blur for view in plan.views] == [0.25, 0.25]


def test_the_command_of_the_mnist_recipe_makes_folders_of_mnists_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(2, 28, 28), dtype=np.uint8)
    (raw := tmp_path / "mnist" / "MNIST" / "raw").mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 2, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 2) + bytes([7, 0]))
    command = re.search(r'python -c "(.*)"', (RECIPES / "mnist.toml").read_text(encoding="utf-8"))
    assert command is not None
    monkeypatch.chdir(tmp_path)
    exec(command[1], {})
    for split in ("train", "test"):
        images = open_images(Path("mnist", split))
        assert images.classes == ["0", "7"]
        assert images.names == ["0/00001.png", "7/00000.png"]
        assert np.array_equal(np.asarray(images[0])[..., 0], pixels[1])
