"""What heads of all tasks do alike: name their encoder, check class names, freeze, and say where tensors came from."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sslzoo import zoo
from sslzoo.encoder import Encoder
from sslzoo.modes import evaluating


def encoder_name(name_or_folder: str | Path) -> str:
    """Full name of an encoder: aliases may come to point at other weights."""
    try:
        return zoo.info(str(name_or_folder)).id
    except zoo.UnknownModelError:
        return Path(name_or_folder).name if Path(name_or_folder).is_dir() else str(name_or_folder)


def origin(encoder: Encoder, encoder_id: str | None) -> str:
    """How many of the encoder's tensors came from where, in words."""
    count = len(encoder.model.state_dict())
    if encoder.config["sslzoo"].get("source") == "random":
        return f"0 of {count} encoder tensors are pretrained: {encoder.arch} with random weights"
    return f"{count} of {count} encoder tensors from {encoder_id or 'a pretrained ' + encoder.arch}"


def is_frozen(encoder: Encoder) -> bool:
    """Whether nothing of the encoder learns."""
    return not any(parameter.requires_grad for parameter in encoder.parameters())


def freeze(encoder: Encoder, frozen: bool, *, maps: bool) -> None:
    """Freeze an encoder, or have it learn; what its output does not depend on stays frozen, since DDP stops at that.

    Args:
        encoder: The encoder.
        frozen: Whether to freeze all of it.
        maps: The output is the coarsest of its feature maps, instead of its features.
    """
    encoder.requires_grad_(not frozen)
    if frozen:
        return
    if not maps:
        if encoder.mean_of_maps:
            encoder.model.pre_logits.requires_grad_(False)
        return
    parameter = next(encoder.parameters())
    images = parameter.new_zeros(1, *encoder.input_size)
    parameters = list(encoder.parameters())
    with evaluating(encoder), torch.enable_grad():
        output = encoder.feature_maps(images)[-1].sum()
        gradients = torch.autograd.grad(output, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


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


def checked_weights(class_weights: str | Sequence[float] | None, num_classes: int) -> torch.Tensor | None:
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
    values = torch.tensor(class_weights, dtype=torch.float32)
    if values.shape != (num_classes,) or not (values.isfinite() & (values >= 0)).all() or values.sum() == 0:
        raise ValueError(f"class_weights needs {num_classes} numbers of at least 0, got {class_weights}.")
    return values


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in quotation marks for a message, no more than `most` of them."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
