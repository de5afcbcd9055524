"""Probes: how well simple classifiers do on frozen features. Everything here is scikit-learn's or fits into it.

report = probe("byol-resnet18quarter-cifar10", "photos")         # one sub-folder a class
pipeline = make_pipeline(EncoderFeatures("byol-resnet18quarter-cifar10"), LogisticRegression())
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags

from sslzoo.data import ImageSet, open_images
from sslzoo.encoder import Encoder, load
from sslzoo.encoding import Array
from sslzoo.features import embed, embed_readable
from sslzoo.splits import stratified_split

Labels = np.ndarray[Any, np.dtype[np.int64]]
Names = np.ndarray[Any, np.dtype[np.str_]]

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
FOLDS = 5
MANY = 2000  # rows from which one held-out fifth is enough: twenty images of it would choose C at random
FEW_LABELS = FOLDS  # with fewer of some class there is none of it in some fold
FEW_LABELS_C = (
    0.1  # within 0.02 of the best C with 1, 2 and 4 a class of digits and CIFAR-10, pixels and random features
)
TEMPERATURE = 0.1


class EncoderFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of a pretrained encoder, as a scikit-learn transformer. Nothing is fitted.

    X is a list, 1-D array or pandas column of paths, a list of PIL images, arrays or tensors, one array
    (N, H, W[, C]), or anything else that `sslzoo.data.open_images` takes.

    The encoder is loaded when it is first needed and is not part of a pickle, unless `model` is an `Encoder`.

    Args:
        model: Zoo id, model folder, or an `Encoder`.
        batch_size: Images a step.
        num_workers: Threads that read images beside this one; None chooses.
        device: Where to compute, such as "cuda"; None is the CPU, or where a given `Encoder` is.
    """

    def __init__(
        self,
        model: str | Path | Encoder,
        *,
        batch_size: int = 64,
        num_workers: int | None = None,
        device: str | None = None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.device = device

    def fit(self, X: Any, y: Any = None) -> Self:
        """Check the settings and X; images are not decoded.

        Raises:
            ValueError: No such model, or X is nothing that images can be taken from.
        """
        self._encoder()
        open_images(_as_images(X))
        return self

    def transform(self, X: Any) -> Array:
        """Return the features of images, (N, D) float32.

        Raises:
            sslzoo.data.UnreadableImageError: An image is damaged; names it.
        """
        return embed(
            self._encoder(),
            _as_images(X),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            device=self.device,
        )

    @property
    def _n_features_out(self) -> int:
        """What scikit-learn makes `get_feature_names_out` from."""
        return self._encoder().num_features

    def _encoder(self) -> Encoder:
        if isinstance(self.model, Encoder):
            return self.model
        wanted = (self.model, self.device)
        if getattr(self, "_loaded_from", None) != wanted:  # set_params may have changed it
            self._loaded = load(self.model, device=self.device or "cpu")
            self._loaded_from = wanted
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {key: value for key, value in state.items() if key not in ("_loaded", "_loaded_from")}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _as_images(X: Any) -> Any:
    """Turn columns of paths or images, which scikit-learn and pandas pass around, into lists."""
    if hasattr(X, "columns"):  # a DataFrame, as ColumnTransformer passes it
        if X.shape[1] != 1:
            raise ValueError(f"Expected one column of paths or images, got {X.shape[1]}: {', '.join(map(str, X))}.")
        X = X.iloc[:, 0]
    if hasattr(X, "to_list"):
        return X.to_list()
    if isinstance(X, np.ndarray) and X.dtype.kind in "UOT":
        return X.ravel().tolist()
    return X


def fit_linear(X: Any, y: Any, *, seed: int = 0) -> Pipeline:
    """Fit a linear probe: standardised features, multinomial logistic regression with an l2 penalty.

    Its strength is chosen by the accuracy on a held-out fifth of these training data (stratified), or on each fifth in
    turn where there are at most 2,000; then all are fitted. With fewer than five labels of some class it is fixed.

    Args:
        X: (N, D).
        y: (N,) labels, numbers or names.
        seed: Decides the fifths.

    Returns:
        A fitted `Pipeline` of `StandardScaler` and `LogisticRegression`.
    """
    X, y = np.asarray(X), np.asarray(y)
    C = FEW_LABELS_C
    if np.unique(y, return_counts=True)[1].min() >= FEW_LABELS:
        folds = list(StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(X, y))
        if len(X) > MANY:
            folds = folds[:1]
        accuracies = [cross_val_score(_linear(C), X, y, cv=folds).mean() for C in C_GRID]
        C = C_GRID[int(np.argmax(accuracies))]  # the strongest penalty among equals
    return _linear(C).fit(X, y)


def _linear(C: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))


def fit_knn(X: Any, y: Any, *, k: int = 20) -> KNeighborsClassifier:
    """Fit a kNN classifier: the k nearest by cosine vote, each with weight exp(cosine / 0.1).

    Args:
        X: (N, D).
        y: (N,) labels, numbers or names.
        k: Neighbours; at most N of them.
    """
    X = np.asarray(X)
    return KNeighborsClassifier(min(k, len(X)), metric="cosine", algorithm="brute", weights=votes).fit(X, y)


def votes(distances: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Weights of neighbours at these cosine distances (1 - cosine)."""
    return np.exp((1 - distances) / TEMPERATURE)


@dataclass(frozen=True, eq=False)
class ProbeReport:
    """What `probe` found. Accuracies lie in [0, 1], on the test images.

    Attributes:
        model: Zoo id or folder, or the architecture of an `Encoder`.
        classes: Names of the K classes, in the order of `confusion`.
        n_train: Images that the probes were fitted on.
        n_test: Images that they were tested on.
        linear: Accuracy of the linear probe.
        knn: Accuracy of kNN.
        majority: Accuracy of always answering the most frequent class of the training images.
        confusion: (K, K) test images by true class (rows) and the linear probe's answer (columns).
        names: Of the test images.
        targets: (n_test,) names of their classes.
        predictions: (n_test,) names of the classes that the linear probe answers.
        skipped: Name and reason of each image that could not be read.
    """

    model: str
    classes: list[str]
    n_train: int
    n_test: int
    linear: float
    knn: float
    majority: float
    confusion: Labels
    names: list[str]
    targets: Names
    predictions: Names
    skipped: list[tuple[str, str]]

    @property
    def per_class(self) -> dict[str, float]:
        """Share of each class's test images that the linear probe gets right."""
        right = self.confusion.diagonal() / self.confusion.sum(axis=1)
        return dict(zip(self.classes, right.tolist(), strict=True))

    def __str__(self) -> str:
        rows = [("linear probe", self.linear), ("kNN", self.knn), ("always the largest class", self.majority)]
        worst = sorted(self.per_class.items(), key=lambda item: item[1])[:3]
        rows += [(f"linear probe, class {name}", accuracy) for name, accuracy in worst]
        width = max(len(label) for label, _ in rows)
        title = f"{self.model}: {self.n_train:,} training and {self.n_test:,} test images, {len(self.classes)} classes"
        lines = [title, *(f"  {label:<{width}}  {accuracy:6.1%}" for label, accuracy in rows)]
        if self.skipped:
            lines.append(f"  left out as unreadable: {len(self.skipped):,}, such as {': '.join(self.skipped[0])}")
        return "\n".join(lines)


def probe(
    model: str | Path | Encoder,
    data: Any,
    *,
    test: Any = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    batch_size: int = 64,
    num_workers: int | None = None,
    progress: bool = False,
) -> ProbeReport:
    """Tell how well a linear classifier and kNN do on an encoder's features of labelled images.

    Unreadable images are left out and listed in the report.

    Args:
        model: Zoo id, model folder, or an `Encoder`.
        data: Labelled images: a folder with a sub-folder a class, or what else `open_images` finds labels in.
        test: The same, with the same classes, to test on. None holds out a part of `data`.
        test_fraction: How much of every class is held out then.
        seed: Decides which images are held out, for testing and for choosing the linear probe's penalty.
        batch_size: Images a step.
        num_workers: Threads that read images beside this one; None chooses.
        progress: Show progress bars.

    Raises:
        ValueError: No labels, fewer than two classes, a class with a single image, or a test set with other classes.
    """
    encoder = model if isinstance(model, Encoder) else load(model)
    loading = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    train = _labelled(encoder, open_images(data), loading)
    if len(train.classes) < 2:
        raise ValueError(f"A probe needs at least two classes, got one: {train.classes[0]}.")
    if test is None:
        where = stratified_split(train.targets, test_fraction, seed)
        train, held_out = (train.part(index) for index in where)
        skipped = train.skipped
    else:
        held_out = _labelled(encoder, open_images(test), loading)
        _same_classes(train.classes, held_out.classes)
        skipped = train.skipped + held_out.skipped
    name = encoder.arch if isinstance(model, Encoder) else str(model)
    return _report(name, train, held_out, skipped, seed)


@dataclass(frozen=True, eq=False)
class _Labelled:
    X: Array
    targets: Names  # (n,) class names
    classes: list[str]
    names: list[str]
    skipped: list[tuple[str, str]]

    def part(self, index: Labels) -> "_Labelled":
        names = [self.names[i] for i in index]
        return _Labelled(self.X[index], self.targets[index], self.classes, names, self.skipped)


def _labelled(encoder: Encoder, images: ImageSet, loading: Mapping[str, Any]) -> _Labelled:
    if images.labels is None:
        where = f"images in {images.root}" if images.root else "images"
        raise ValueError(
            f"The {where} have no labels. A probe needs a folder with a sub-folder for every class, an .npz file with "
            "'images' and 'labels', or a Hugging Face dataset with a label column."
        )
    X, index, skipped = embed_readable(encoder, images, **loading)
    numbers = images.labels[index]
    present = np.unique(numbers).tolist()
    if not present:
        raise ValueError(f"None of the {len(images):,} images could be read; {': '.join(skipped[0])}.")
    name_of = {number: images.classes[number] if images.classes else str(number) for number in present}
    targets = np.array([name_of[number] for number in numbers.tolist()])
    return _Labelled(X, targets, list(name_of.values()), [images.names[i] for i in index], skipped)


def _same_classes(train: list[str], test: list[str]) -> None:
    only_train, only_test = sorted(set(train) - set(test)), sorted(set(test) - set(train))
    if only_train or only_test:
        differences = [
            f"{', '.join(names)} only for {part}"
            for names, part in ((only_train, "training"), (only_test, "testing"))
            if names
        ]
        raise ValueError(f"Training and test images need the same classes; there is {' and '.join(differences)}.")


def _report(model: str, train: _Labelled, test: _Labelled, skipped: list[tuple[str, str]], seed: int) -> ProbeReport:
    predictions = fit_linear(train.X, train.targets, seed=seed).predict(test.X)
    classes, counts = np.unique(train.targets, return_counts=True)
    return ProbeReport(
        model=model,
        classes=train.classes,
        n_train=len(train.names),
        n_test=len(test.names),
        linear=float(np.mean(predictions == test.targets)),
        knn=float(fit_knn(train.X, train.targets).score(test.X, test.targets)),
        majority=float(np.mean(test.targets == classes[counts.argmax()])),
        confusion=confusion_matrix(test.targets, predictions, labels=train.classes),
        names=test.names,
        targets=test.targets,
        predictions=predictions,
        skipped=skipped,
    )
