"""Model cards: README.md of a run or a zoo entry, from its config.json and measured results. Nothing in it is typed.

Results are plain mappings with the columns of evaluations/results.csv.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sslzoo.zoo import ModelInfo

Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Data:
    """What a card says of a data set: its name, its id on the Hugging Face Hub, and what its images limit."""

    title: str
    hub_id: str
    limits: str


_DATA = {
    "cifar10": _Data(
        "CIFAR-10",
        "uoft-cs/cifar10",
        "CIFAR-10 has 32×32-pixel photographs of ten classes, enlarged here: expect little of other images before "
        "you have fine-tuned or probed on yours. It states no licence and is used for research.",
    ),
}
_PROTOCOLS = {  # column title, and what it is
    "linear": (
        "linear probe",
        "Linear probe: multinomial logistic regression on the frozen features of the centre view and random crops of "
        "each training image, weight decay chosen on a tenth of the training images.",
    ),
    "knn": ("kNN", "kNN: cosine, k = 200, temperature 0.1, features of centre views, nothing chosen."),
}
# Networks with the key names of torchvision's; others (variants with model_args, deep stems) have no twin there.
_TORCHVISION = frozenset(
    ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "wide_resnet50_2"]
)
_SMP = ("resnet", "resnext", "wide_resnet", "convnext", "vgg")  # those whose maps have strides 2 or 4, 8, 16, 32


def render_card(name: str, config: Row, results: Sequence[Row] = (), info: ModelInfo | None = None) -> str:
    """Text of a card.

    Args:
        name: What the encoder is called: a zoo id, or method-arch-data of a run.
        config: Its config.json.
        results: Latest rows of results.csv about it, and of random weights and raw pixels on the same data.
        info: Its row of the zoo; None for a run that is not in the zoo.
    """
    sections = [
        f"# {name}\n\n{_introduction(config, info)}",
        f"## Use\n\n{_use(name, config, in_zoo=info is not None)}",
        f"## Training\n\n{_training(config, info)}",
        f"## Measured\n\n{_measured(name, results)}",
        f"## Limits\n\n{_limits(config)}",
        f"## Licence\n\n{_licence(info)}",
    ]
    if paper := config["sslzoo"].get("paper"):
        sections.append(f"## Citation\n\n{_bibtex(config['sslzoo']['method'], paper)}")
    return f"---\n{_metadata(name, config, results, info)}\n---\n\n" + "\n\n".join(sections) + "\n"


def results_table(results: Sequence[Row]) -> str:
    """Markdown: accuracies by encoder and protocol, best linear probe first, a table for each data set.

    Several seeds become mean, smallest and largest.
    """
    tables = []
    for data in dict.fromkeys(row["data"] for row in results):
        rows = [row for row in results if row["data"] == data]
        protocols = [p for p in _PROTOCOLS if any(row["protocol"] == p for row in rows)]
        models = sorted({row["model"] for row in rows}, key=lambda model: _rank(model, rows, protocols))
        lines = [
            f"| top-1 accuracy on {data_title(data)}, test | {' | '.join(_PROTOCOLS[p][0] for p in protocols)} |",
            f"| --- |{' ---: |' * len(protocols)}",
            *(f"| {_title(m)} | {' | '.join(_cell(_values(rows, m, p)) for p in protocols)} |" for m in models),
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def data_title(data: str) -> str:
    """How texts write the name of a data set: cifar10 -> CIFAR-10."""
    return _DATA[data].title if data in _DATA else data


def trained_on(recipe: Row, data: str) -> str:
    """What the images of a run are, in words.

    Args:
        recipe: All settings of the run.
        data: Name of the data set.
    """
    title = data_title(data)
    return f"random crops of one photograph ({title})" if recipe.get("single_image") else title


def _rank(model: str, rows: Sequence[Row], protocols: Sequence[str]) -> tuple[Any, ...]:
    means = (mean(_values(rows, model, p) or [0.0]) for p in protocols)
    return (*(-value for value in means), model)


def _values(rows: Iterable[Row], model: str, protocol: str) -> list[float]:
    return [float(row["value"]) for row in rows if row["model"] == model and row["protocol"] == protocol]


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ({min(values):.1%}–{max(values):.1%}, {len(values)} seeds)" if len(values) > 1 else ""
    return f"{mean(values):.1%}{spread}".replace("%", " %")


def _title(model: str) -> str:
    if model == "pixels":
        return "raw pixels"
    kind, _, rest = model.partition(":")
    if kind == "random":
        arch, _, size = rest.partition("@")
        return f"random weights ({arch}, {size} px)"
    return f"`{model}`"


def _introduction(config: Row, info: ModelInfo | None) -> str:
    block, size = config["sslzoo"], config["pretrained_cfg"]["input_size"]
    recipe = block["recipe"]
    params = f", {info.params / 1e6:.2f} M parameters" if info else ""
    origin = (
        info.summary
        if info
        else f"Pretrained by {block['method']}, without labels, on {trained_on(recipe, block['dataset'])} for "
        f"{recipe['epochs']} epochs."
    )
    return (
        f"{origin} Image encoder ({recipe['arch']}{params}): images of {size[1]}×{size[2]} pixels or another size in, "
        f"{config['num_features']} features or feature maps out."
    )


def _use(name: str, config: Row, *, in_zoo: bool) -> str:
    found = f'from sslzoo.weights import locate\n\nfolder = locate("{name}")' if in_zoo else 'folder = "."  # this one'
    snippets = [
        f'import sslzoo\n\nencoder = sslzoo.load("{name if in_zoo else "."}")\n'
        "features = encoder(encoder.transform(image)[None])  # (1, D), from a PIL image\n"
        "maps = encoder.feature_maps(images)  # [(B, C, h, w), ...]",
        "Other libraries read the same folder:",
        found,
        'import timm\n\nmodel = timm.create_model(f"local-dir:{folder}", pretrained=True)',
        "from transformers import AutoImageProcessor, AutoModel\n\n"
        "model = AutoModel.from_pretrained(folder)\nprocessor = AutoImageProcessor.from_pretrained(folder)",
    ]
    arch = config["architecture"]
    if arch in _TORCHVISION and not config["model_args"]:
        snippets.append(
            "import torchvision\nfrom safetensors.torch import load_file\n\n"
            f"model = torchvision.models.{arch}()\n"
            'model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=False)  # lacks fc only'
        )
    if arch.startswith(_SMP):
        arguments = "".join(f",\n    {key}={_python(value)}" for key, value in config["model_args"].items())
        snippets.append(
            "import segmentation_models_pytorch as smp\n\n"
            f'model = smp.Unet(\n    "tu-{arch}",\n    encoder_weights=True,\n'
            '    pretrained_cfg_overlay={"file": f"{folder}/model.safetensors", "num_classes": 0}'
            f"{arguments},\n)"
        )
    return "\n\n".join(s if s.endswith(":") else f"```python\n{s}\n```" for s in snippets)


def _python(value: Any) -> str:
    """A literal, with double quotes."""
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _training(config: Row, info: ModelInfo | None) -> str:
    block = config["sslzoo"]
    recipe, run = block["recipe"], block.get("run", {})
    commit = run.get("commit")
    facts = {
        "method": f"{block['method']}{_paper_link(block.get('paper'))}",
        "data": f"{trained_on(recipe, block['dataset'])}, {_count(run.get('images'))} images, no labels",
        "schedule": f"{recipe['epochs']} epochs, {_count(run.get('steps'))} steps of {recipe['batch_size']} images",
        "seed": recipe["seed"],
        "time": _duration(run["seconds"]) if "seconds" in run else None,
        "hardware": info.hardware if info else _hardware(run),
        "torch": run.get("torch"),
        "code": f"commit {commit}" if commit else None,
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value is not None)
    text = f"| | |\n| --- | --- |\n{table}"
    if command := block.get("command"):
        text += f"\n\n```bash\n{command}\n```"
    return f'{text}\n\nEvery setting, those of the augmentations too, is in `config.json` under `"sslzoo"`, `"recipe"`.'


def _duration(seconds: float) -> str:
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _hardware(run: Row) -> str | None:
    if "device" not in run:
        return None
    processes = run.get("processes", 1)
    return f"{processes} × {run['device']}" if processes > 1 else str(run["device"])


def _count(number: int | None) -> str:
    return "an unrecorded number of" if number is None else f"{number:,}".replace(",", " ")


def _paper_link(paper: Row | None) -> str:
    return f" ([{paper['title']}]({paper['url']}), {paper['year']})" if paper else ""


def _measured(name: str, results: Sequence[Row]) -> str:
    own = [row for row in results if row["model"] == name]
    if not own:
        return "Not measured yet. `python -m sslzoo_evaluations linear FOLDER --data DATA` does it."
    protocols = [text for p, (_, text) in _PROTOCOLS.items() if any(row["protocol"] == p for row in own)]
    counts = {(row["n_train"], row["n_test"]) for row in results}
    sizes = " or ".join(f"{_count(int(n))} training and {_count(int(m))} test images" for n, m in sorted(counts))
    commits = sorted({row["commit"] for row in own if row["commit"]})
    measured = f"Measured {max(row['date'] for row in own)}" + (f", commit {', '.join(commits)}" if commits else "")
    return (
        f"{results_table(results)}\n\nThe same protocol for all rows, with {sizes}; the test images decided nothing. "
        f"{' '.join(protocols)} Raw pixels have their mirror image instead of crops. {measured}."
    )


def _limits(config: Row) -> str:
    block, size = config["sslzoo"], config["pretrained_cfg"]["input_size"]
    known = _DATA.get(block["dataset"])
    limits = [known.limits] if known else []
    if size[1] < 128:
        limits.append(f"It was trained on views of {size[1]} pixels: larger images work, finer detail was never seen.")
    if block["dataset"] == "cifar10" and block["recipe"]["epochs"] < 200:
        limits.append(
            f"{block['recipe']['epochs']} epochs are few: published results on CIFAR-10 come from 200 to 1000, mostly "
            "of larger networks."
        )
    limits.append("What its training images lack or favour, its features lack or favour too.")
    return "\n".join(f"- {line}" for line in limits)


def _licence(info: ModelInfo | None) -> str:
    if info is None:
        return "Whoever trained it decides; nothing is stated here."
    return f"Weights: {info.licence}. The training images keep their own terms."


def _bibtex(method: str, paper: Row) -> str:
    key = f"{paper['authors'].split(',')[0].lower()}{paper['year']}{method.replace('_', '')}"
    fields = {"author": "authors", "title": "title", "year": "year", "url": "url"}
    lines = "".join(f"  {field} = {{{paper[name]}}},\n" for field, name in fields.items())
    return f"```bibtex\n@misc{{{key},\n{lines}}}\n```"


def _metadata(name: str, config: Row, results: Sequence[Row], info: ModelInfo | None) -> str:
    block = config["sslzoo"]
    known = _DATA.get(block["dataset"])
    own = [row for row in results if row["model"] == name]
    return ModelCardData(
        library_name="timm",  # with a name of our own, transformers' pipeline(model=...) without a task would refuse
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transformers", "sslzoo", "self-supervised", str(block["method"])],
        license=info.licence if info else None,
        datasets=[known.hub_id] if known else None,
        model_name=name if own else None,
        eval_results=_eval_results(own) if own else None,
    ).to_yaml()


def _eval_results(own: Sequence[Row]) -> list[EvalResult]:
    """One for each protocol and data set; the Hub merges those that share their data set's configuration."""
    groups = dict.fromkeys((row["data"], row["protocol"]) for row in own)
    return [
        EvalResult(
            task_type="image-classification",
            task_name=f"{_PROTOCOLS[protocol][0]} on frozen features",
            dataset_name=data_title(data),
            dataset_type=_DATA[data].hub_id if data in _DATA else data,
            dataset_config=protocol,
            dataset_split="test",
            metric_type="accuracy",
            metric_name="top-1 accuracy",
            metric_value=round(
                mean(float(r["value"]) for r in own if (r["data"], r["protocol"]) == (data, protocol)), 4
            ),
        )
        for data, protocol in groups
    ]
