"""Probes: scikit-learn's own checks, the classifiers against their definition, and what `probe` reports."""

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import validate_data

import sslzoo
from sslzoo import Encoder, EncoderFeatures, embed, probe
from sslzoo.probes import C_GRID, FEW_LABELS_C, fit_knn, fit_linear
from sslzoo.splits import few_labels, stratified_split


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return sslzoo.create("resnet18quarter", seed=0, image_size=32)


@pytest.fixture(scope="module")
def model(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder, as a user has it."""
    folder = tmp_path_factory.mktemp("models") / "thin"
    encoder.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    X, y = load_digits(return_X_y=True)
    return X[:600], y[:600]


# EncoderFeatures


class OfTables(EncoderFeatures):
    """Makes a grey image of each row of a table: scikit-learn's checks know no images."""

    def fit(self, X: Any, y: Any = None) -> "OfTables":
        return super().fit(self._to_images(validate_data(self, X)))

    def transform(self, X: Any) -> Any:
        return super().transform(self._to_images(validate_data(self, X, reset=False)))

    def _to_images(self, X: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-np.clip(X.astype(float), -50, 50)))[:, None, :, None]  # (N, 1, columns, 1) in [0, 1]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def test_scikit_learn_finds_nothing_wrong(model: str) -> None:
    results = check_estimator(OfTables(model), on_skip=None)  # raises at a failure
    assert sum(result["status"] == "passed" for result in results) > 30


def test_scikit_learn_finds_nothing_wrong_around_an_encoder(encoder: Encoder) -> None:
    unfit = {
        "check_estimators_overwrite_params": "compares joblib.hash, which differs between a module and its own deepcopy"
    }
    results = check_estimator(OfTables(encoder), expected_failed_checks=unfit, on_skip=None)
    assert sum(result["status"] == "passed" for result in results) > 30


def test_features_are_those_of_the_encoder_and_settings_stay(model: str, encoder: Encoder, photos: np.ndarray) -> None:
    features = EncoderFeatures(model, batch_size=5)
    assert set(vars(features)) == {"model", "batch_size", "num_workers", "device"}  # nothing loaded yet
    np.testing.assert_allclose(features.fit(photos).transform(photos), embed(encoder, photos), atol=1e-5)
    np.testing.assert_allclose(EncoderFeatures(encoder).transform(list(photos)), embed(encoder, photos), atol=1e-5)
    other = sslzoo.create("resnet18quarter", seed=1, image_size=32)
    np.testing.assert_allclose(
        features.set_params(model=other).transform(photos), embed(other, photos), atol=1e-5
    )  # not the encoder of the old setting


def test_clones_and_pickles_hold_settings_not_weights(model: str, photos: np.ndarray) -> None:
    features = EncoderFeatures(Path(model), batch_size=5)
    X = features.fit_transform(photos)
    assert clone(features).get_params() == features.get_params()
    assert not hasattr(clone(features), "_loaded")
    pickled = pickle.dumps(features)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).transform(photos), X)
    np.testing.assert_array_equal(features.transform(photos), X)  # pickling took nothing away


def test_names_and_pandas(model: str, photo_folder: Path) -> None:
    import pandas as pd

    paths = [str(path) for path in sorted(photo_folder.glob("*/*.png"))]
    features = EncoderFeatures(model).set_output(transform="pandas")
    names = [f"encoderfeatures{i}" for i in range(128)]
    assert features.get_feature_names_out().tolist() == names
    column = pd.Series(paths, index=range(100, 124))
    frame = features.fit_transform(column)
    assert frame.columns.tolist() == names
    assert frame.index.tolist() == column.index.tolist()
    for same in (paths, np.array(paths), np.array(paths, dtype=object), column.to_frame("file")):
        np.testing.assert_allclose(features.transform(same), frame, atol=1e-5)
    table = pd.DataFrame({"file": paths, "age": range(24)})
    both = ColumnTransformer([("image", EncoderFeatures(model), ["file"]), ("age", "passthrough", ["age"])])
    assert both.fit_transform(table).shape == (24, 129)
    assert both.get_feature_names_out()[[0, -1]].tolist() == ["image__encoderfeatures0", "age__age"]
    with pytest.raises(ValueError, match="one column of paths or images, got 2: file, age"):
        features.transform(table)


def test_grid_search_over_a_pipeline_in_two_processes(model: str, photo_folder: Path) -> None:
    paths = sorted(photo_folder.glob("*/*.png"))
    y = [path.parent.name for path in paths]
    pipeline = make_pipeline(EncoderFeatures(model), LogisticRegression())
    search = GridSearchCV(pipeline, {"logisticregression__C": [1e-6, 1.0]}, cv=2, n_jobs=2, error_score="raise")
    assert search.fit(paths, y).best_params_ == {"logisticregression__C": 1.0}
    assert search.score(paths, y) > 0.9


def test_fit_says_what_is_wrong(model: str, photos: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Unknown model 'no-such-model'"):
        EncoderFeatures("no-such-model").fit(photos)
    with pytest.raises(ValueError, match="Expected shape"):
        EncoderFeatures(model).fit(np.zeros((5, 3)))
    with pytest.raises(TypeError, match="Item 1 is int"):
        EncoderFeatures(model).fit([photos[0], 3])


# classifiers


def test_linear_probe_learns_and_is_deterministic(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    train, test = stratified_split(y, 0.3, seed=1)
    fitted = fit_linear(X[train], y[train], seed=3)
    assert fitted.score(X[test], y[test]) > 0.9
    again = fit_linear(X[train], y[train], seed=3)
    np.testing.assert_array_equal(fitted.predict_proba(X[test]), again.predict_proba(X[test]))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X[test]), fitted.predict(X[test]))
    assert fitted[0].n_samples_seen_ == len(train)  # refitted on all of them
    np.testing.assert_allclose(fitted[0].mean_, X[train].mean(axis=0))


def test_the_penalty_is_what_does_best_on_a_held_out_fifth(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    noisy = np.hstack([X / 16, np.random.default_rng(0).normal(size=(len(X), 200))])[:200]
    chosen = {}
    for name, data in {"clean": X[:200], "noisy": noisy}.items():
        part, held_out = stratified_split(y[:200], 0.2, seed=0)
        scaled = (data - data[part].mean(axis=0)) / np.where(data[part].std(axis=0) > 0, data[part].std(axis=0), 1)
        accuracy = {
            C: LogisticRegression(C=C, max_iter=1000).fit(scaled[part], y[part]).score(scaled[held_out], y[held_out])
            for C in C_GRID
        }
        chosen[name] = fit_linear(data, y[:200])[-1].C
        assert chosen[name] == min(C for C in C_GRID if accuracy[C] == max(accuracy.values()))
    assert chosen["clean"] != chosen["noisy"]


def test_few_labels_use_a_fixed_penalty(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    for per_class in (1, 4):
        index = few_labels(y, per_class, seed=0)
        assert fit_linear(X[index], y[index])[-1].C == FEW_LABELS_C


def test_knn_votes_with_exp_of_cosine(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:120], digits[1][:120].astype(str)
    fitted = fit_knn(X[:80], y[:80], k=7)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    for cosine, predicted in zip(unit[80:] @ unit[:80].T, fitted.predict(X[80:]), strict=True):
        votes: dict[str, float] = {}
        for i in np.argsort(-cosine)[:7]:
            votes[y[i]] = votes.get(y[i], 0.0) + float(np.exp(cosine[i] / 0.1))
        assert predicted == max(votes, key=lambda label: votes[label])
    assert fit_knn(X[:5], y[:5], k=20).predict(X[:5]).shape == (5,)  # never more neighbours than there are
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(X), fitted.predict(X))


def test_a_split_takes_the_same_share_of_every_class() -> None:
    y = np.repeat(["a", "b", "c"], [100, 10, 2])
    train, test = stratified_split(y, 0.2, seed=0)
    assert sorted([*train, *test]) == list(range(112))
    assert [int((y[test] == label).sum()) for label in "abc"] == [20, 2, 1]
    np.testing.assert_array_equal(stratified_split(y, 0.2, seed=0)[1], test)
    assert not np.array_equal(stratified_split(y, 0.2, seed=1)[1], test)
    assert [int((y[stratified_split(y, 0.99, seed=0)[0]] == label).sum()) for label in "abc"] == [1, 1, 1]
    with pytest.raises(ValueError, match="Class 'd' has a single image"):
        stratified_split([*y, "d"], 0.2, seed=0)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        stratified_split(y, 1, seed=0)


def test_few_labels_takes_so_many_of_every_class() -> None:
    y = np.tile([3, 5, 9], 20)
    index = few_labels(y, 4, seed=0)
    assert np.unique(y[index], return_counts=True)[1].tolist() == [4, 4, 4]
    assert len(set(index.tolist())) == 12
    np.testing.assert_array_equal(few_labels(y, 4, seed=0), index)
    assert not np.array_equal(few_labels(y, 4, seed=1), index)
    with pytest.raises(ValueError, match="Class 3 has 20 images, 21 of every class"):
        few_labels(y, 21, seed=0)


# probe


def test_probe_reports_what_its_classifiers_do(encoder: Encoder, photo_folder: Path) -> None:
    report = probe(encoder, photo_folder, test_fraction=0.25, seed=2)
    images = sslzoo.data.open_images(photo_folder)
    X, names = embed(encoder, photo_folder), np.array(images.names)
    y = np.array([name.split("/")[0] for name in images.names])
    train, test = stratified_split(y, 0.25, seed=2)
    predictions = fit_linear(X[train], y[train], seed=2).predict(X[test])
    assert (report.n_train, report.n_test, report.classes) == (18, 6, ["china", "flower"])
    assert report.names == names[test].tolist()
    assert report.targets.tolist() == y[test].tolist()
    assert report.predictions.tolist() == predictions.tolist()
    assert report.linear == np.mean(predictions == y[test])
    assert report.knn == fit_knn(X[train], y[train]).score(X[test], y[test])
    assert report.majority == 0.5
    assert report.confusion[0, 1] == np.sum((y[test] == "china") & (predictions == "flower"))
    assert report.confusion.sum(axis=1).tolist() == [3, 3]
    assert report.per_class["china"] == np.mean(predictions[y[test] == "china"] == "china")
    assert report.skipped == []
    assert f"{report.linear:.1%}" in str(report)
    assert "resnet18quarter: 18 training and 6 test images, 2 classes" in str(report)


def test_probe_on_a_test_folder_leaves_out_damaged_images(model: str, photo_folder: Path, tmp_path: Path) -> None:
    test = tmp_path / "test"
    for name in ("flower", "china"):  # other photos, and another number of each
        (test / name).mkdir(parents=True)
    for i, file in enumerate(sorted(photo_folder.glob("*/*.png"))[3:]):
        Image.open(file).rotate(2).save(test / file.parent.name / f"{i}.png")
    (test / "china" / "x.png").write_bytes(b"nothing")
    report = probe(model, photo_folder, test=test)
    assert (report.n_train, report.n_test) == (24, 21)
    assert [name for name, _ in report.skipped] == ["china/x.png"]
    assert "left out as unreadable: 1, such as china/x.png: " in str(report)
    assert report.model == model
    assert report.confusion.sum(axis=1).tolist() == [9, 12]
    assert report.linear > 0.8


def test_probe_tells_signal_from_chance(encoder: Encoder, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 60, (80, 8, 8, 3), dtype=np.uint8)
    labels = np.tile([4, 4, 4, 7], 20)
    images[labels == 7, ..., 0] += 150  # red
    np.savez(tmp_path / "red.npz", images=images, labels=labels)
    np.savez(tmp_path / "chance.npz", images=images, labels=rng.permutation(labels))
    red, chance = probe(encoder, tmp_path / "red.npz"), probe(encoder, tmp_path / "chance.npz")
    assert red.classes == ["4", "7"]
    assert (red.linear, red.knn, red.majority) == (1.0, 1.0, 0.75)
    assert chance.linear < 0.9
    assert chance.knn < 0.9


def test_probe_says_what_is_wrong(encoder: Encoder, photos: np.ndarray, photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"images in {photo_folder / 'china'} have no labels"):
        probe(encoder, photo_folder / "china")
    with pytest.raises(ValueError, match="The images have no labels"):
        probe(encoder, photos)
    one = tmp_path / "one"
    shutil.copytree(photo_folder / "china", one / "china")
    with pytest.raises(ValueError, match="at least two classes, got one: china"):
        probe(encoder, one)
    (one / "tree").mkdir()
    shutil.copy(photo_folder / "flower" / "01.png", one / "tree")
    with pytest.raises(ValueError, match="Class 'tree' has a single image"):
        probe(encoder, one)
    with pytest.raises(ValueError, match="there is flower only for training and tree only for testing"):
        probe(encoder, photo_folder, test=one)
    (one / "tree" / "01.png").write_bytes(b"nothing")
    shutil.rmtree(one / "china")
    with pytest.raises(ValueError, match=r"None of the 1 images could be read; tree/01\.png"):
        probe(encoder, one)
