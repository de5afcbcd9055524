"""What heads of all tasks do alike: name encoder and classes, freeze, save, push, and say where tensors came from."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sslzoo import weights, zoo
from sslzoo.encoder import Encoder, load
from sslzoo.heads import Defaults
from sslzoo.modes import evaluating


class TaskModel(nn.Module):
    """An encoder with a head: what the models of all tasks share of the contract in heads/__init__.py.

    A subclass sets `encoder` and the rest of its network, and says what its `contents` are.

    Args:
        num_classes: K.
        classes: Names of the K classes; None as long as nobody gave them names.
        encoder_id: Zoo id, or what else the encoder was loaded by; None for one without a name.
        finetuning: Settings and results of the run that trained it, as `finetune` writes them.

    Attributes:
        task: Its name in heads/__init__.py.
        defaults: Settings of `finetune` that suit it.
        on_maps: The head stands on the encoder's feature maps, instead of its features.
    """

    task: ClassVar[str]
    defaults: ClassVar[Defaults]
    on_maps: ClassVar[bool] = True
    encoder: Encoder

    def __init__(
        self,
        num_classes: int,
        classes: Sequence[str] | None,
        encoder_id: str | None,
        finetuning: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.encoder_id = encoder_id
        self.finetuning = dict(finetuning or {})
        self._classes = None if classes is None else checked_classes(classes, num_classes)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of their numbers, which stand for them as long as they have no names."""
        return [str(i) for i in range(self.num_classes)] if self._classes is None else list(self._classes)

    def name_classes(self, names: Sequence[str], what: str) -> None:
        """Give the classes the names that training data have.

        Args:
            names: One a class.
            what: The data, for a message: "images".

        Raises:
            ValueError: They are not as many.
        """
        if len(names) != self.num_classes:
            raise ValueError(
                f"The model has {self.num_classes} classes, the training {what} have {len(names)}: {listed(names)}. "
                "Make it with classes=[...] or that number."
            )
        self._classes = list(names)

    @property
    def frozen(self) -> bool:
        """Whether nothing of the encoder learns."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def freeze(self, frozen: bool = True) -> Self:
        """Freeze the encoder, statistics of batch norm included, or let it learn again.

        What the head does not depend on stays frozen, since DDP stops at that.
        """
        self.encoder.requires_grad_(not frozen)
        if not frozen:
            output = self.encoder.feature_maps if self.on_maps else self.encoder
            for parameter, used in parameters_of(self.encoder, output):
                parameter.requires_grad_(used)
        return self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    @property
    def origin(self) -> str:
        """How many of the encoder's tensors came from where, in words."""
        count = len(self.encoder.model.state_dict())
        if self.encoder.config["sslzoo"].get("source") == "random":
            return f"0 of {count} encoder tensors are pretrained: {self.encoder.arch} with random weights"
        return f"{count} of {count} encoder tensors from {self.encoder_id or 'a pretrained ' + self.encoder.arch}"

    def extra_repr(self) -> str:
        """One line about the model, within PyTorch's own listing."""
        return f"{self.num_classes} classes; {self.origin}"

    def contents(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        """What is saved: config.json but for the block "sslzoo", the tensors, and what that block has of its own."""
        raise NotImplementedError

    def save_pretrained(
        self, folder: str | Path, card: str | None = None, *, finetuning: Mapping[str, Any] | None = None
    ) -> None:
        """Save config.json, model.safetensors and, if a card is given, README.md. `sslzoo.load_model` reads it.

        Args:
            folder: Made if it is not there. Other files in it stay.
            card: Text of README.md.
            finetuning: Settings and results, instead of those that the model has.
        """
        if finetuning is not None:
            self.finetuning = dict(finetuning)
        config, state, own = self.contents()
        config["label_names"] = self.classes
        config["sslzoo"] = {
            "schema": weights.SCHEMA,
            "task": self.task,
            "named": self._classes is not None,
            **own,
            "encoder_id": self.encoder_id,
            "encoder": self.encoder.config["sslzoo"],
            "finetuning": self.finetuning,
        }
        weights.write_folder(Path(folder), config, state, card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        licence: str | None = None,
        private: bool = False,
        message: str | None = None,
        token: str | None = None,
    ) -> str:
        """Push to a repository of the Hugging Face Hub and return the URL of the commit: see `Encoder.push_to_hub`.

        Raises:
            sslzoo.hub.HubError: It cannot be done; says why and what to do.
        """
        from sslzoo.publish import push_saved  # a model needs no card until it is shown to others

        return push_saved(
            self.save_pretrained, repo_id, card=card, licence=licence, private=private, message=message, token=token
        )


def parameters_of(
    encoder: Encoder, output: Callable[[Tensor], Tensor | list[Tensor]]
) -> list[tuple[nn.Parameter, bool]]:
    """The parameters of an encoder that learn, and whether an output of it depends on each.

    Args:
        encoder: The encoder.
        output: Images (B, C, H, W) -> features, or maps of which the coarsest counts.
    """
    parameters = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    with evaluating(encoder), torch.enable_grad():
        found = output(parameters[0].new_zeros(1, *encoder.input_size))
        last = found if isinstance(found, Tensor) else found[-1]
        gradients = torch.autograd.grad(last.sum(), parameters, allow_unused=True)
    return [(parameter, gradient is not None) for parameter, gradient in zip(parameters, gradients, strict=True)]


def opened(encoder: Encoder | str | Path) -> tuple[Encoder, str | None]:
    """An encoder, loaded if it is a name or folder, and the full name that it was loaded by."""
    return (encoder, None) if isinstance(encoder, Encoder) else (load(encoder), encoder_name(encoder))


def saved(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's config.json has of every `TaskModel`: its arguments `classes`, `encoder_id`, `finetuning`."""
    block = config["sslzoo"]
    return {
        "classes": config.get("label_names") if block.get("named", True) else None,
        "encoder_id": block.get("encoder_id"),
        "finetuning": block.get("finetuning"),
    }


def sslzoo_config(encoder: Encoder) -> dict[str, Any]:
    """The config of an encoder for a model that other libraries have no class for."""
    # without a model type transformers would load it as an encoder, with random weights
    return {**copy.deepcopy(encoder.config), "model_type": "sslzoo"}


def encoder_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the encoder within a model's."""
    own = {key: value for key, value in config.items() if key not in ("label_names", "model_type")}
    return own | {"sslzoo": config["sslzoo"]["encoder"]}


@contextmanager
def described(folder: Path, what: str) -> Iterator[None]:
    """Build a model as its config.json describes it.

    Raises:
        sslzoo.weights.WeightsError: Something is missing there, or no such thing can be built.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise weights.WeightsError(f"{folder / weights.CONFIG} does not describe a {what}: {error!r}.") from error


def count_classes(num_classes: int | None, classes: Sequence[str] | None) -> int:
    """How many classes there are.

    Raises:
        ValueError: Neither number nor names.
    """
    if num_classes is None and classes is None:
        raise ValueError("Say how many classes there are, num_classes=3, or what they are called, classes=[...].")
    return len(classes or ()) if num_classes is None else num_classes


def encoder_name(name_or_folder: str | Path) -> str:
    """Full name of an encoder: aliases may come to point at other weights."""
    try:
        return zoo.info(str(name_or_folder)).id
    except zoo.UnknownModelError:
        return Path(name_or_folder).name if Path(name_or_folder).is_dir() else str(name_or_folder)


def checked_classes(classes: Sequence[str], num_classes: int) -> list[str]:
    """Names of the classes as a list.

    Raises:
        ValueError: Not one a class, or a name given twice.
    """
    names = [str(name) for name in classes]
    if len(names) != num_classes:
        raise ValueError(f"{num_classes} classes need {num_classes} names, got {len(names)}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Class names must differ, these come twice: {listed(twice)}.")
    return names


def checked_weights(
    class_weights: str | Sequence[float] | None, num_classes: int, device: torch.device
) -> Tensor | None:
    """Weights of the classes in a loss, (K,); None for none.

    Raises:
        ValueError: Not K numbers of at least 0, or all of them 0.
    """
    if class_weights is None:
        return None
    if isinstance(class_weights, str):
        raise ValueError(  # noqa: TRY004 (another text would do)
            f"class_weights are 'balanced' or one number a class, got {class_weights!r}."
        )
    values = torch.tensor(class_weights, dtype=torch.float32, device=device)
    if values.shape != (num_classes,) or not (values.isfinite() & (values >= 0)).all() or values.sum() == 0:
        raise ValueError(f"class_weights needs {num_classes} numbers of at least 0, got {class_weights}.")
    return values


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in quotation marks for a message, no more than `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
