"""The contract between a method and the loop: a method turns views into a loss, and says what to publish.

A method is one file in `methods/`, whose subclass of `Method` is found by the file's name: the folder is the registry.
The constructor is the schema of its settings: what a recipe or the command line may set, with the paper's defaults.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from . import methods
from .views import Part, View

if TYPE_CHECKING:
    from .sweep import Sweeps


class Backbone(nn.Module):
    """What methods train, for the type checker: a timm network without classifier, (B, 3, H, W) -> (B, D)."""

    num_features: int


@dataclass(frozen=True)
class Paper:
    """Where a method comes from; cards cite it.

    Attributes:
        title: In full.
        authors: As BibTeX has them: "Chen, Xinlei and He, Kaiming"; "and others" at the end for more.
        year: Of publication.
        url: Where to read it.
    """

    title: str
    authors: str
    year: int
    url: str

    def __str__(self) -> str:
        names = [author.split(",")[0] for author in self.authors.split(" and ")]
        if len(names) > 2 or names[-1] == "others":
            names = [f"{names[0]} et al."]
        return f"{self.title}. {' & '.join(names)} {self.year}"


class Method(nn.Module):
    """A pretraining method around an encoder. Inherit once, never to share code: shared code is a function in `blocks`.

    Attributes:
        encoder: The network being trained.
        PAPER: Where it comes from.
        VIEWS: One entry for each random view of an image that `forward` takes, with the paper's augmentation.
        LIGHTNESS: The encoder has one channel, the lightness L of Lab, which `forward` makes of the views.
    """

    PAPER: ClassVar[Paper]
    VIEWS: ClassVar[tuple[View, ...]]
    LIGHTNESS: ClassVar[bool] = False
    encoder: Backbone

    @classmethod
    def published_as(cls, settings: Mapping[str, Any]) -> str:
        """First part of the zoo id of a run with these settings; by default the name of the method's file.

        Args:
            settings: All settings of the run, as `Plan.to_dict` gives them.
        """
        return cls.__module__.rpartition(".")[2]

    def forward(self, views: list[Tensor], index: Tensor) -> dict[str, Tensor]:
        """One step on this process's share of the batch.

        Args:
            views: One normalised image batch (B, 3, H, W) for each entry of `VIEWS`, of which `part` it asked for;
                after them what `draw` gave for these images, if anything.
            index: (B,) position of each image in the data set.

        Returns:
            `loss`, a scalar to minimise; `embedding` (N, D), detached: what must not collapse; other scalars to show.
        """
        raise NotImplementedError

    def draw(self, images: int, generator: torch.Generator) -> Tensor | None:
        """Random numbers of one step beside those of the views: (images, ...), one row an image, on the CPU.

        Drawn for the images of all processes, which then share the rows: two processes train as one would. Random
        numbers that `forward` draws itself differ from process to process.
        """
        return None

    def part(self, view: int) -> Part:
        """Which half of each image of a view `forward` looks at: the other one is not made. `view`: from 0."""
        return "all"

    def begin(self, images: int) -> None:
        """Called once, before the first step and before a checkpoint is read: make what has an entry for each image.

        As buffers, which checkpoints keep. `images`: of the data set.
        """

    def prepare(self, step: int, sweeps: "Sweeps") -> None:
        """Called before each step, 0 the first: label the data set, where it is due.

        What it does may depend on the method's state, on `step` and on `sweeps` only, so that a resumed run, which
        calls it for the step it goes on with, does the same.
        """

    def order(self, count: int, generator: torch.Generator) -> Tensor | None:
        """(count,) positions in the data set to train on in the coming epoch; None: every image once.

        Called at the start of an epoch, after `prepare`, and again when a run resumes within it. The generator is on
        the CPU, and in the same state in all processes each time.
        """
        return None

    def after_step(self, progress: float) -> None:
        """Called after each optimizer step. `progress`: 0 at the first step, 1 at the end."""

    def constant_lr(self) -> Iterable[nn.Module]:
        """Modules whose learning rate stays at its base value instead of following the schedule."""
        return ()

    def without_momentum(self) -> Iterable[nn.Module]:
        """Modules that the optimizer moves without momentum: those that start anew now and then."""
        return ()

    def encoder_to_publish(self) -> nn.Module:
        """The network that users of the finished run load."""
        return self.encoder


def list_methods() -> list[str]:
    """Names of all methods: the files of `methods/`."""
    return sorted(module.name for module in pkgutil.iter_modules(methods.__path__))


def find_method(name: str) -> type[Method]:
    """The method class of `methods/<name>.py`.

    Raises:
        ValueError: There is no such method; says which ones there are.
    """
    if name not in list_methods():
        raise ValueError(f"unknown method {name!r}. Methods are: {', '.join(list_methods())}.")
    module = importlib.import_module(f".methods.{name}", __package__)
    return next(
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing) and issubclass(thing, Method) and thing.__module__ == module.__name__
    )


def method_settings(method: type[Method]) -> dict[str, Any]:
    """Setting -> default of a method: its constructor's arguments after the encoder."""
    parameters = list(inspect.signature(method).parameters.values())[1:]
    return {p.name: p.default for p in parameters}
