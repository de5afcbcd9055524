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
    data: Annotated[
        str, typer.Option(help="Folder of images, .npy or .npz array, saved HF data set, or a photo.")
    ] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = ...,  # type: ignore[assignment]
    recipe: Annotated[str, typer.Option(help="Recipe of the package, or a TOML file.")] = "imagenet",
    arch: Annotated[str | None, typer.Option(help="timm architecture, or resnet18quarter.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the views, pixels.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, over all processes.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    single_image: Annotated[
        bool, typer.Option("--single-image", help="DATA is one photograph: train on random crops of it.")
    ] = False,
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
    if single_image:
        overrides["single_image"] = True
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


@app.command()
def publish(
    target: Annotated[str, typer.Argument(metavar="RUN", help="Finished run; with --upstream: org/name on the Hub.")],
    id_: Annotated[str | None, typer.Option("--id", help="Id of the run in the zoo: method-arch-data.")] = None,
    data_name: Annotated[str | None, typer.Option(help="Name of the data set, such as cifar10.")] = None,
    licence: Annotated[str, typer.Option(help="SPDX identifier, of the weights.")] = "apache-2.0",
    hardware: Annotated[str | None, typer.Option(help="What it was trained on, if the run knows less.")] = None,
    summary: Annotated[str | None, typer.Option(help="One sentence about it.")] = None,
    upstream: Annotated[str | None, typer.Option(metavar="ID", help="Push this encoder of others to the Hub.")] = None,
    private: Annotated[bool, typer.Option("--private", help="With --upstream: make the repository private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --upstream: only list what would be pushed.")
    ] = False,
) -> None:
    """Bundle a finished run with the package, in a checkout; or push an encoder of others to the Hub."""
    from .publish import publish as bundle
    from .publish import publish_upstream

    if upstream is not None:
        push = publish_upstream(upstream, target, private=private, dry_run=dry_run)
        print(f"{push}\n{push.url}")
        return
    if id_ is None or data_name is None:
        raise typer.BadParameter("a run needs --id and --data-name.")
    info = bundle(Path(target), id_, data=data_name, licence=licence, hardware=hardware, summary=summary)
    print(f"{info}\n\nbundled. Commit it, then: python -m sslzoo_evaluations linear {id_} --data FOLDER")


@app.command()
def zoo(
    ids: Annotated[list[str] | None, typer.Argument(help="Only these entries of the queue.")] = None,
    data: Annotated[Path, typer.Option(help="Root of the data: cifar10/train and others are below it.")] = ...,  # type: ignore[assignment]
    out: Annotated[Path, typer.Option(help="Folder of the runs.")] = ...,  # type: ignore[assignment]
    device: Annotated[str, typer.Option(help="cpu or cuda: each has its own recipes.")] = "cpu",
    time_limit: Annotated[str | None, typer.Option(help="Save and stop after, for example, 9m.")] = None,
    monitor: Annotated[str, typer.Option(help="Labelled folder below DATA for kNN while training.")] = "",
    show: Annotated[bool, typer.Option("--list", help="Only say how far each entry is.")] = False,
) -> None:
    """Train the zoo's entries, one after the other: the next unfinished one goes on where it was stopped."""
    from . import queue

    entries = queue.choose(queue.read_queue(), ids or [], device)
    if not show:
        limit = None if time_limit is None else parse_duration(time_limit)
        outcomes = queue.run_queue(entries, data, out, device=device, time_limit=limit, monitor=monitor)
    for entry in entries:
        folder = entry.folder(out, device)
        print(f"{entry.id:45} {queue.state(folder):12} {folder}")
    if not show and outcomes and outcomes[-1].signal is not None:
        raise typer.Exit(128 + outcomes[-1].signal)


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
