"""The command `sslzoo`: from `list` to `publish`.

Modules that need torch are imported by the commands, so that `sslzoo --help` and `sslzoo list` answer at once.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from sslzoo import console, zoo

app = console.new_app()

Model = Annotated[
    str, typer.Argument(help="Zoo id or alias (see `sslzoo list`), model folder, or org/name on the Hugging Face Hub.")
]
Data = Annotated[str, typer.Argument(help="Folder of images, .npy or .npz array, or saved HF data set.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Entry point of the command `sslzoo`."""
    app(prog_name="sslzoo")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"sslzoo {version('sslzoo')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Self-supervised image encoders: find, use, probe, fine-tune and pretrain them."""


@app.command("list")
def list_(
    method: Annotated[str | None, typer.Option(help="Only this pretraining method, such as byol.")] = None,
    arch: Annotated[str | None, typer.Option(help="Only this architecture, such as resnet50.")] = None,
    data: Annotated[str | None, typer.Option(help="Only pretrained on this, such as cifar10.")] = None,
    licence: Annotated[str | None, typer.Option(help="Only with this licence, such as apache-2.0.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the models of the zoo."""
    models = zoo.list_models(method=method, arch=arch, data=data, licence=licence)
    print(_json([asdict(model) for model in models]) if as_json else models)


@app.command()
def info(model: Annotated[str, typer.Argument(metavar="ID", help="Zoo id or alias.")], as_json: AsJson = False) -> None:
    """Show what is known about one model of the zoo."""
    row = zoo.info(model)
    print(_json(asdict(row)) if as_json else row)


@app.command()
def fetch(
    model: Annotated[
        str, typer.Argument(metavar="ID", help="Zoo id of an authors' encoder, such as byol-resnet50-imagenet.")
    ],
    from_file: Annotated[Path | None, typer.Option(help="Their file, if you have it: nothing is downloaded.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the download after it is converted.")] = False,
) -> None:
    """Download and convert an authors' encoder.

    It then loads without a network.
    """
    from sslzoo import originals, weights

    row = zoo.info(model)
    weights.check_licence(row.id, row.licence)
    print(originals.fetch(row, from_file=from_file, keep=keep))


@app.command()
def verify(
    models: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Zoo ids; default: all.")] = None,
) -> None:
    """Compare weights with their digests.

    Those of the zoo's table, and for the authors' encoders those of their first use. The exit code is 1 if any differ.
    """
    from sslzoo import originals

    verdicts = originals.verify([zoo.info(name) for name in models] if models else zoo.list_models())
    width = max(len(verdict.id) for verdict in verdicts)
    for verdict in verdicts:
        print(f"{verdict.id:<{width}}  {verdict.state:<7}  {verdict.detail}")
    if any(verdict.state == "changed" for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="An authors' checkpoint, as they published it.")],
    id_: Annotated[
        str, typer.Option("--as", metavar="ID", help="Zoo id of what it is, such as byol-resnet50-imagenet.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write: config, weights and card.")],
) -> None:
    """Convert an authors' checkpoint into a model folder."""
    from sslzoo.conversion import convert as run

    row = zoo.info(id_)
    dropped = run(file, row, out)
    print(f"wrote {out}: the encoder of {row.id}, {row.licence}. Not taken over: {', '.join(dropped) or 'nothing'}.")


@app.command()
def embed(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .npz, .npy or .parquet.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Images a step.")] = 64,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Threads that read images; default: chosen for you.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Such as cuda; default: the CPU, or what accelerate gives a process.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume/--no-resume", help="Go on with what an earlier run left.")] = True,
) -> None:
    """Write the features of images to a file.

    Their paths and labels go with them. Images that cannot be read are left out and listed.
    """
    from sslzoo.encoder import load
    from sslzoo.features import embed_to_file

    print(
        embed_to_file(load(model), data, out, batch_size=batch_size, num_workers=workers, device=device, resume=resume)
    )


@app.command()
def probe(
    model: Model,
    data: Data,
    test: Annotated[str | None, typer.Option(help="Labelled images to test on; default: a part of DATA.")] = None,
    test_fraction: Annotated[float, typer.Option(help="How much of DATA that is.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Decides which images are held out.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for report.json and confusion.png.")] = None,
) -> None:
    """Measure classifiers on frozen features.

    A linear one and kNN are fitted on features of labelled images and tested on others.
    """
    from sslzoo import probes

    report = probes.probe(model, data, test=test, test_fraction=test_fraction, seed=seed, progress=True)
    print(report)
    if out is not None:
        from sslzoo.plots import confusion_picture

        title = f"{report.model}, linear probe: {report.linear:.1%} right"
        confusion_picture(report.confusion, report.classes, out / "confusion.png", title)
        (out / "report.json").write_text(_json({**asdict(report), "per_class": report.per_class}), encoding="utf-8")
        print(f"wrote {out / 'report.json'} and {out / 'confusion.png'}")


@app.command()
def finetune(
    task: Annotated[str, typer.Argument(help="classification, segmentation or detection.")],
    model: Model,
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled images. Classification: a folder with a sub-folder a class, or a .csv of path,label. "
            "Segmentation: a folder with images/ and masks/, a list of Pascal VOC's, or a .json of COCO's. "
            "Detection: a list or folder of Pascal VOC's, a .json of COCO's, or a folder of YOLO's."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    val: Annotated[str | None, typer.Option(help="Images to validate on; default: a fifth of DATA.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the images.")] = 30,
    steps: Annotated[int | None, typer.Option(help="Train for so many steps instead.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step; default: the task's.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate; default: the task's, 0.001. Thin encoders want 0.003.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(help="Of matrices and convolutions.")] = 0.05,
    layer_decay: Annotated[float, typer.Option(help="Learning rate of a layer, over that of the next.")] = 0.8,
    freeze: Annotated[bool, typer.Option("--freeze", help="Train the head alone.")] = False,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weigh rare classes more.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's checkpoint, if any.")] = False,
    report_to: Annotated[str, typer.Option(help="tensorboard, wandb, ...: a logger of transformers.")] = "none",
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that read images; default: chosen for you.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Segmentation: fcn, fcn8s, deeplabv3, unet, ... Detection: faster-rcnn, retinanet, ..."),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Segmentation: HEIGHTxWIDTH or SIDE that images are scaled to fit into. Detection: their shorter side."
        ),
    ] = None,
    output_stride: Annotated[
        int | None, typer.Option(help="Segmentation: stride of the coarsest maps, for heads that dilate.")
    ] = None,
    proposals: Annotated[
        int | None, typer.Option(help="Detection: boxes an image that Faster R-CNN learns from in a step.")
    ] = None,
    loss: Annotated[str | None, typer.Option(help="Segmentation: cross_entropy, dice, focal, or a+b.")] = None,
    auxiliary: Annotated[bool, typer.Option("--auxiliary", help="Segmentation: a second head helps training.")] = False,
) -> None:
    """Train a model on a few labelled images.

    The epoch that does best on held-out images is kept. The same command with --resume goes on after a kill.
    """
    from sslzoo.finetuning import finetune as run
    from sslzoo.heads import build

    size = None if image_size is None else _size(image_size)
    options = {
        "head": head, "image_size": size, "output_stride": output_stride, "loss": loss, "auxiliary": auxiliary,
        "proposals": proposals,
    }  # fmt: skip
    given = {name: value for name, value in options.items() if value not in (None, False)}
    built = build(task, model, data, seed=seed, **given)
    report = run(
        built, data, val, out=out, epochs=epochs, steps=steps, batch_size=batch_size, lr=lr, weight_decay=weight_decay,
        layer_decay=layer_decay, freeze_encoder=freeze, class_weights="balanced" if balanced else None, seed=seed,
        bf16=bf16, resume=resume, report_to=report_to, num_workers=workers, device=device,
    )  # fmt: skip
    print(f"{report}\nUse it: sslzoo predict {out} IMAGE, or sslzoo.load_model({str(out)!r})")


@app.command()
def predict(
    model: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a fine-tuned model.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Also write a .json, .csv or picture file (.png, ...); masks to a folder."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images a step; default: the task's.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Threads that read images; default: chosen for you.")
    ] = None,
    device: Annotated[str, typer.Option(help="Such as cuda.")] = "cpu",
) -> None:
    """Say what is on images.

    Images that cannot be read are listed; the exit code is 1 if there is no other.
    """
    from sslzoo.data import open_images
    from sslzoo.heads import load_model

    source: Any = images[0]
    if len(images) > 1:
        opened = {path: open_images(path).names if path.is_dir() else [""] for path in images}
        source = [path / name for path, names in opened.items() for name in names]
    sized = {} if batch_size is None else {"batch_size": batch_size}
    found = load_model(model, device=device).predict(source, num_workers=workers, **sized)
    print(found.to_json() if as_json else found.to_csv().rstrip() if as_csv else found)
    if out is not None and len(found):
        found.save(out)
        typer.echo(f"wrote {out}", err=True)
    if not len(found):
        raise typer.Exit(1)


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option(help="Folder with a sub-folder of images a class; default: scikit-learn's digits.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("sslzoo-demo"),
    model: Annotated[
        list[str] | None, typer.Option(help="Zoo id, alias or model folder; may be repeated. Default: small ones.")
    ] = None,
) -> None:
    """See what encoders do with 10 labels a class.

    Encoders of the zoo beside the same networks with random weights and beside raw pixels.
    """
    from sslzoo.demo import run

    print(run(data, out, model or [], say=lambda text: typer.echo(text, err=True)))


@app.command()
def export(
    model: Model,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="File to write: NAME.onnx.")],
    opset: Annotated[int | None, typer.Option(help="Version of ONNX's operators; default: torch's choice.")] = None,
) -> None:
    """Write an encoder or a fine-tuned model as ONNX.

    The file is checked in onnxruntime against torch. Needs pip install 'sslzoo[onnx]'.
    """
    from sslzoo import weights
    from sslzoo.encoder import load
    from sslzoo.export import export_onnx
    from sslzoo.heads import load_model

    folder = weights.locate(model)
    has_task = weights.read_model_config(folder)["sslzoo"].get("task")
    print(export_onnx(load_model(folder) if has_task else load(folder), out, opset=opset))


@app.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def pretrain(words: Annotated[list[str] | None, typer.Argument()] = None) -> None:
    """Pretrain an encoder on unlabelled images."""
    # handed over as they are: the options of pretraining stand in one place
    from sslzoo_training.__main__ import app as training

    training(["pretrain", *(words or [])], prog_name="sslzoo")


@app.command()
def publish(
    run: Annotated[Path | None, typer.Argument(help="Finished run, or another model folder.")] = None,
    repository: Annotated[str | None, typer.Argument(metavar="ORG/NAME", help="Made if it is not there.")] = None,
    zoo_to: Annotated[
        str | None, typer.Option("--zoo", metavar="ORG", help="What this project has trained, to ORG/ID.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the card, such as apache-2.0.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make new repositories private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be uploaded.")] = False,
) -> None:
    """Push a model, or all of our own, to the Hugging Face Hub.

    Weights, configuration and a card; only what changed. Needs a token with write access: `hf auth login`, or HF_TOKEN.
    """
    if (zoo_to is None) == (run is None) or (run is None) != (repository is None):
        raise typer.BadParameter("needs either RUN and ORG/NAME, or --zoo ORG.")
    from sslzoo import weights
    from sslzoo.publish import publish as push

    jobs: list[tuple[Path, str, str | None]]
    if run is not None and repository is not None:
        jobs = [(run, repository, None)]
    else:
        from sslzoo_evaluations.cards import zoo_cards  # with the measured results

        jobs = [(weights.locate(id_), f"{zoo_to}/{id_}", card) for id_, card in zoo_cards(str(zoo_to)).items()]
    for folder, repo_id, card in jobs:
        done = push(folder, repo_id, card=card, licence=licence, private=private, dry_run=dry_run)
        print(done)
        if not dry_run:
            print(done.url)


def _size(text: str) -> int | tuple[int, int]:
    """Pixels: "256", or "192x256", height first."""
    height, times, width = text.replace("×", "x").partition("x")
    if not height.isdigit() or (times and not width.isdigit()):
        raise typer.BadParameter(f"{text!r} is neither SIDE nor HEIGHTxWIDTH, in pixels.", param_hint="--image-size")
    return (int(height), int(width)) if times else int(height)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=lambda array: array.tolist())
