"""Settings of a run: defaults, then a recipe's [default], then its [method], then what the user typed.

A recipe is a TOML file with one table for each method that differs from `[default]`. Every key is a setting of the run
(`Settings`), of the method (its constructor's arguments) or `views`: a list of tables that change the method's views,
one each, or one for all where they are alike.
"""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .method import Method, find_method, list_methods, method_settings
from .views import View

RECIPES = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe or a setting cannot be used; the message names it and says what is possible."""


@dataclass(frozen=True)
class Settings:
    """Settings of a run that no method knows of.

    Attributes:
        arch: A timm architecture, or "resnet18quarter".
        image_size: Side of the views, pixels.
        early_size: Their side in the first part of the run (progressive resizing, as in fast.ai and in EfficientNetV2,
            Sec. 4): small views cost little, and a last part at `image_size` makes the encoder at home there. 0: none.
        early_part: How much of the steps that is, in [0, 1).
        epochs: Passes over the data.
        batch_size: Images a step over all processes and accumulated parts.
        accumulate: Parts into which a batch is cut to save memory; batch norm sees one part at a time.
        optimizer: "sgd", "lars" or "adam" (weight decay added to the gradient, as in its paper).
        lr: Peak learning rate per 256 images of `batch_size`.
        momentum: Of the optimizer; Adam's first beta.
        beta2: Adam only: momentum of the squared gradients.
        nesterov: Nesterov's form of momentum.
        weight_decay: Not applied to norms and biases.
        trust_coefficient: LARS only.
        trust_clip: LARS only: a layer's step never exceeds that of SGD.
        warmup_epochs: Linear growth of the learning rate, before its cosine decay to 0.
        precision: "bf16" (mixed) or "no" (plain float32).
        seed: Of everything random.
        store_size: Side at which images of unequal sizes are kept, pixels; 0 means 1.5 times `image_size`.
        single_image: The data is one photograph: train on random crops of it.
        crops: How many, each of `store_size`; the default is the size of ImageNet.
        checkpoint_every: Steps between checkpoints; 0 means once an epoch.
        monitor_every: Epochs between looks at the features.
        log_every: Steps between lines of the log.
    """

    arch: str = "resnet18"
    image_size: int = 224
    early_size: int = 0
    early_part: float = 0.0
    epochs: int = 100
    batch_size: int = 256
    accumulate: int = 1
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    beta2: float = 0.999
    nesterov: bool = False
    weight_decay: float = 1e-4
    trust_coefficient: float = 0.001
    trust_clip: bool = False
    warmup_epochs: float = 0.0
    precision: str = "bf16"
    seed: int = 0
    store_size: int = 0
    single_image: bool = False
    crops: int = 1_281_167
    checkpoint_every: int = 0
    monitor_every: int = 1
    log_every: int = 10

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, ("sgd", "lars", "adam"))
        _one_of("precision", self.precision, ("bf16", "no"))
        for name in ("image_size", "epochs", "batch_size", "accumulate", "crops", "monitor_every", "log_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} = {getattr(self, name)}: needs to be at least 1.")
        if not 0 <= self.early_part < 1:
            raise RecipeError(f"early_part = {self.early_part}: needs to be a part of the run, in [0, 1).")
        if not 0 <= self.early_size < self.image_size or (self.early_size > 0) != (self.early_part > 0):
            raise RecipeError(
                f"early_size = {self.early_size} with early_part = {self.early_part} and image_size = "
                f"{self.image_size}: set both, the size below image_size, or neither."
            )
        if self.batch_size % self.accumulate:
            raise RecipeError(
                f"batch_size = {self.batch_size} cannot be cut into accumulate = {self.accumulate} equal parts."
            )

    @property
    def peak_lr(self) -> float:
        """Peak learning rate of this batch size."""
        return self.lr * self.batch_size / 256


@dataclass(frozen=True)
class Plan:
    """All that decides a run's result, but for the data."""

    method: str
    settings: Settings
    method_settings: dict[str, Any]
    views: tuple[View, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested data, as TOML and JSON take it."""
        views = [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(view).items()} for view in self.views]
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in self.method_settings.items()}
        return {"method": self.method, **asdict(self.settings), **settings, "views": views}


def list_recipes(method: str | None = None) -> list[str]:
    """Names of the recipes that come with the package: all, or those that a method can be run with."""
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    return names if method is None else [name for name in names if _serves(_read(name), method)]


def make_plan(method: str, recipe: str | Path, overrides: Mapping[str, Any]) -> Plan:
    """Put a run's settings together.

    Args:
        method: Name of a method.
        recipe: Name of a recipe of the package, or a TOML file.
        overrides: Settings typed by the user, the last word.

    Raises:
        RecipeError: An unknown key (names the nearest ones), a wrong type, a value out of range, or a recipe for other
            methods.
        ValueError: Unknown method.
    """
    kind = find_method(method)
    tables = _read(recipe)
    unknown = set(tables) - {"default", *list_methods()}
    if unknown:
        raise RecipeError(f"recipe {recipe}: table [{sorted(unknown)[0]}] is neither [default] nor a method.")
    if not _serves(tables, method):
        raise RecipeError(
            f"recipe {recipe} has settings for {', '.join(tables) or 'nothing'} only. Give it a table [{method}] or "
            f"[default], or take one of: {', '.join(list_recipes(method))}."
        )
    defaults: dict[str, Any] = {f.name: f.default for f in fields(Settings)} | method_settings(kind) | {"views": []}
    chosen = dict(defaults)
    for origin, table in (
        (f"recipe {recipe}", tables.get("default", {})),
        (f"recipe {recipe}", tables.get(method, {})),
    ):
        for key, value in table.items():
            chosen[key] = _checked(key, value, defaults, origin)
    for key, value in overrides.items():
        chosen[key] = _checked(key, value, defaults, f"method {method}")
    run = Settings(**{f.name: chosen[f.name] for f in fields(Settings)})
    return Plan(
        method, run, {k: chosen[k] for k in method_settings(kind)}, _views(kind, chosen["views"], run.image_size)
    )


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """["lr=0.1", "optimizer=lars"] -> {"lr": 0.1, "optimizer": "lars"}; values are TOML, bare words are strings.

    Raises:
        RecipeError: An item without "=".
    """
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"{pair!r} is not of the form key=value, such as lr=0.1.")
        try:
            overrides[key.strip()] = tomllib.loads(f"v = {value}")["v"]
        except tomllib.TOMLDecodeError:
            overrides[key.strip()] = value
    return overrides


def _serves(tables: Mapping[str, Any], method: str) -> bool:
    return "default" in tables or method in tables


def _read(recipe: str | Path) -> dict[str, dict[str, Any]]:
    path = RECIPES / f"{recipe}.toml" if str(recipe) in list_recipes() else Path(recipe)
    if not path.is_file():
        raise RecipeError(f"no recipe {str(recipe)!r}. Give a TOML file or one of: {', '.join(list_recipes())}.")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _checked(key: str, value: Any, defaults: Mapping[str, Any], origin: str) -> Any:
    if key not in defaults:
        near = difflib.get_close_matches(key, defaults, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"settings are: {', '.join(sorted(defaults))}."
        raise RecipeError(f"{origin} has no setting {key!r}; {hint}")
    wanted = type(defaults[key])
    if wanted is float and type(value) is int:
        return float(value)
    if wanted is tuple and type(value) is list:
        return tuple(value)
    if type(value) is not wanted:
        raise RecipeError(f"{key} = {value!r}: needs a {wanted.__name__}, got a {type(value).__name__}.")
    return value


def _one_of(key: str, value: str, possible: tuple[str, ...]) -> None:
    if value not in possible:
        raise RecipeError(f"{key} = {value!r}: needs one of {', '.join(possible)}.")


def _views(kind: type[Method], changes: list[dict[str, Any]], image_size: int) -> tuple[View, ...]:
    if len(changes) == 1 and len(set(kind.VIEWS)) == 1:
        changes = changes * len(kind.VIEWS)
    if changes and len(changes) != len(kind.VIEWS):
        raise RecipeError(
            f"views has {len(changes)} tables; {kind.__name__} takes {len(kind.VIEWS)} views, one table each."
        )
    known = {f.name: f.default for f in fields(View)}
    views = []
    for view, change in zip(kind.VIEWS, changes or [{}] * len(kind.VIEWS), strict=True):
        for key in change:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
                raise RecipeError(f"views has no setting {key!r}; did you mean {' or '.join(near or sorted(known))}?")
        try:
            views.append(replace(view, **({"size": image_size} | change)))
        except (TypeError, ValueError) as error:
            raise RecipeError(f"views: {error}") from error
    return tuple(views)
