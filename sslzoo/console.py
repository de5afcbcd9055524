"""What the command lines share: plain help, and errors that users can mend as one line instead of a traceback."""

import warnings
from types import TracebackType
from typing import Any

import typer
from typer.core import TyperGroup

PACKAGES = ("sslzoo", "sslzoo_training", "sslzoo_evaluations")


def new_app(**settings: Any) -> typer.Typer:
    """Make an empty typer app. A user's error ends it with one line on stderr and exit code 1; a warning is a line."""
    return typer.Typer(
        cls=_Commands,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,  # rich would take half of the time of --help
        pretty_exceptions_enable=False,
        **settings,
    )


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        before, warnings.formatwarning = warnings.formatwarning, _one_line
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not is_users(error):
                raise
            typer.echo(f"error: {message(error)}", err=True)
            raise typer.Exit(1) from error
        finally:
            warnings.formatwarning = before


def _one_line(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning without a line of code, which says nothing to who calls a command."""
    return f"warning: {message}\n"


def is_users(error: Exception) -> bool:
    """Tell what users can mend (a wrong name, a damaged file, a full disk) from a bug, which deserves a traceback.

    It is one of our own exception classes, an `OSError`, or a `ValueError` or `ImportError` that came up in a line of
    ours. The same from deep within NumPy or torch means that we passed something wrong.
    """
    if isinstance(error, BrokenPipeError):  # `sslzoo list | head`: typer ends quietly
        return False
    if isinstance(error, OSError) or _is_ours(type(error).__module__):
        return True
    return isinstance(error, (ValueError, ImportError)) and _is_ours(_module_of(error.__traceback__))


def _module_of(traceback: TracebackType | None) -> str:
    """Name the module of the innermost frame."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def message(error: Exception) -> str:
    """What is told of a user's error, without the class of the exception."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    return str(error) or type(error).__name__
