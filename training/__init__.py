"""Pretraining of encoders on unlabelled images: `pretrain()`, `sslzoo pretrain`, one file for each method."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loop import Outcome, pretrain

__all__ = ["Outcome", "pretrain"]


def __getattr__(name: str) -> Any:
    """`pretrain` and `Outcome`, imported on first use: the command line's help needs no torch."""
    if name in __all__:
        import importlib

        module = importlib.import_module(".loop", __name__)
        globals().update({n: getattr(module, n) for n in __all__})
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
