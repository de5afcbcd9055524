"""`python -m sslzoo_training …`: what `sslzoo pretrain …` calls, and the form for `accelerate launch -m`."""

import re
from pathlib import Path
from typing import Annotated

import typer

from sslzoo.console import new_app

app = new_app()


@app.callback()
def main() -> None:
    """Pretrain encoders and publish them."""


@app.command()
def pretrain(
    method: Annotated[str, typer.Argument(help="byol, simsiam, rotation, …: a file of training/methods/.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="key=value: any setting of the recipe or the method.")
    ] = None,
    data: Annotated[str, typer.Option(help="Folder of images, .npy or .npz array, or saved HF data set.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = ...,  # type: ignore[assignment]
    recipe: Annotated[str, typer.Option(help="Recipe of the package, or a TOML file.")] = "imagenet",
    arch: Annotated[str | None, typer.Option(help="timm architecture, or resnet18quarter.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the views, pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, over all processes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint, if any.")] = False,
    time_limit: Annotated[str | None, typer.Option(help="Save and stop after, for example, 9m, 1h30m or 45s.")] = None,
    monitor: Annotated[Path | None, typer.Option(help="Labelled folder for kNN while training.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files to OUT/tensorboard.")] = False,
) -> None:
    """Pretrain an encoder on unlabelled images."""
    from .loop import pretrain as run
    from .recipe import parse_overrides

    named = {"arch": arch, "image_size": image_size, "epochs": epochs, "batch_size": batch_size, "seed": seed}
    overrides = parse_overrides(settings or []) | {k: v for k, v in named.items() if v is not None}
    outcome = run(
        method, data, out, recipe=recipe, resume=resume, monitor=monitor, device=device, tensorboard=tensorboard,
        time_limit=None if time_limit is None else parse_duration(time_limit), **overrides,
    )  # fmt: skip
    if outcome.finished:
        print(f"finished: {outcome.folder}. Use it: sslzoo.load({str(outcome.folder)!r})")
    else:
        print(f"stopped at step {outcome.step} of {outcome.total}, saved. Go on with the same command and --resume.")
        if outcome.signal is not None:
            raise typer.Exit(128 + outcome.signal)


def parse_duration(text: str) -> float:
    """Seconds of "9m", "1h30m", "45s" or "540".

    Raises:
        ValueError: Not a duration.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"time limit {text!r} is not a duration such as 9m, 1h30m or 45s.")
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


if __name__ == "__main__":
    app()
