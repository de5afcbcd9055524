"""Model cards: README.md of a run, a zoo entry or a repository, from config.json and measured results, nothing typed.

Results are plain mappings with the columns of evaluations/results.csv.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sslzoo import snippets
from sslzoo.resnets import OWN
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
    "mnist": _Data(
        "MNIST",
        "ylecun/mnist",
        "MNIST has 28×28-pixel grey digits, white on black: expect nothing of other images. It is under CC BY-SA 3.0.",
    ),
    "imagenet": _Data(
        "ImageNet",
        "ILSVRC/imagenet-1k",
        "ImageNet has photographs of a thousand classes, most with one subject in the middle, gathered from the "
        "web; it may be used for research and education.",
    ),
    "imagenet22k": _Data(
        "ImageNet-22k",
        "timm/imagenet-22k-wds",
        "ImageNet-22k has photographs of 22 thousand classes, gathered from the web; it may be used for research and "
        "education.",
    ),
}
_EVALUATED = {"camvid": "CamVid", "bccd": "BCCD"}  # and nothing was trained on them
_PROTOCOLS = {  # column title, and what it is
    "linear": (
        "linear probe",
        "Linear probe: multinomial logistic regression on the frozen features of the centre view{views} of each "
        "training image, weight decay chosen on a tenth of the training images.",
    ),
    "knn": ("kNN", "kNN: cosine, k = 200, temperature 0.1, features of centre views, nothing chosen."),
}


def render_card(
    name: str,
    config: Row,
    results: Sequence[Row] = (),
    info: ModelInfo | None = None,
    *,
    repository: str | None = None,
    licence: str | None = None,
) -> str:
    """Text of a card.

    Args:
        name: What the encoder is called: a zoo id, or method-arch-data of a run.
        config: Its config.json.
        results: Latest rows of results.csv about it, and of random weights and raw pixels on the same data.
        info: Its row of the zoo; None for a run that is not in the zoo.
        repository: "org/name" on the Hugging Face Hub that the card goes to; the code then loads from there. Without
            it, from the zoo if `info` is given, and otherwise from the folder that the card lies in.
        licence: Of the weights, an SPDX identifier such as "apache-2.0"; None takes that of `info`.
    """
    results = _known(results)
    licence = licence or (info.licence if info else config["sslzoo"].get("licence"))
    place = snippets.hub_repository(repository) if repository else snippets.zoo_entry(name) if info else snippets.HERE
    sections = [
        f"# {name}\n\n{_introduction(config, info)}",
        f"## Use\n\n{code_blocks(snippets.encoder_snippets(config, place))}",
        f"## Training\n\n{_training(config, info)}",
        *([f"## Published\n\n{_published(config)}"] if _upstream(config) else []),
        f"## Measured\n\n{_measured(name, results)}",
        f"## Limits\n\n{_limits(config)}",
        f"## Licence\n\n{_licence(licence, config)}",
    ]
    if paper := config["sslzoo"].get("paper"):
        sections.append(f"## Citation\n\n{bibtex(config['sslzoo']['method'], paper)}")
    return f"---\n{_metadata(name, config, results, licence)}\n---\n\n" + "\n\n".join(sections) + "\n"


def results_table(results: Sequence[Row]) -> str:
    """Markdown: accuracies by encoder and protocol, best linear probe first, a table for each data set.

    Several seeds become mean, smallest and largest.
    """
    tables, results = [], _known(results)
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


def _known(results: Sequence[Row]) -> list[Row]:
    """Those of the protocols that cards explain."""
    return [row for row in results if row["protocol"] in _PROTOCOLS]


def data_title(data: str) -> str:
    """How texts write the name of a data set: cifar10 -> CIFAR-10."""
    return _DATA[data].title if data in _DATA else _EVALUATED.get(data, data)


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
    kind, _, rest = model.partition(":")
    if kind == "pixels":
        return "raw pixels of the top half" if rest else "raw pixels"
    if kind == "random":
        arch, _, size = rest.partition("@")
        return f"random weights ({arch}, {size} px)"
    return f"`{model}`"


def _introduction(config: Row, info: ModelInfo | None) -> str:
    block, size = config["sslzoo"], config["pretrained_cfg"]["input_size"]
    recipe = block.get("recipe") or {}
    params = f", {info.params / 1e6:.2f} M parameters" if info else ""
    if info:
        origin = info.summary
    elif upstream := _upstream(config):
        origin = upstream["summary"]
    elif recipe:
        origin = (
            f"Pretrained by {block['method']}, without labels, on {trained_on(recipe, block['dataset'])} for "
            f"{recipe['epochs']} epochs."
        )
    else:
        origin = "How it was trained is not recorded."
    return (
        f"{origin} Image encoder ({recipe.get('arch', config['architecture'])}{params}): images of {size[1]}×{size[2]} "
        f"pixels{'' if _fixed_size(config) else ' or another size'} in, "
        f"{config['num_features']} features{'' if snippets.sees_top_half(config) else ' or feature maps'} out."
    )


def _fixed_size(config: Row) -> bool:
    return bool(config["pretrained_cfg"].get("fixed_input_size")) and not config["model_args"].get("dynamic_img_size")


def code_blocks(codes: Iterable[str]) -> str:
    """Markdown: each a block of Python."""
    return "\n\n".join(f"```python\n{code}\n```" for code in codes)


def _training(config: Row, info: ModelInfo | None) -> str:
    block = config["sslzoo"]
    recipe, run = block.get("recipe"), block.get("run", {})
    if upstream := _upstream(config):
        return _trained_elsewhere(block, upstream)
    if not recipe:
        return "`config.json` says nothing of it."
    facts = {
        "method": f"{block['method']}{_paper_link(block.get('paper'))}",
        "data": f"{trained_on(recipe, block['dataset'])}, {count(run.get('images'))} images, no labels",
        "schedule": f"{recipe['epochs']} epochs, {count(run.get('steps'))} steps of {recipe['batch_size']} images",
        "recipe": _recipe(recipe),
        "seed": recipe["seed"],
        "cost": duration(run["seconds"]) if "seconds" in run else None,
        "hardware": info.hardware if info else hardware(run),
        "torch": run.get("torch"),
        "code": f"commit {run['commit']}" if run.get("commit") else None,
    }
    text = facts_table(facts)
    if command := block.get("command"):
        text += f"\n\n```bash\n{command}\n```"
    return f'{text}\n\nEvery setting, those of the augmentations too, is in `config.json` under `"sslzoo"`, `"recipe"`.'


def _upstream(config: Row) -> Row | None:
    """What config.json says of weights that others have trained."""
    return config["sslzoo"].get("upstream")


def _trained_elsewhere(block: Row, upstream: Row) -> str:
    facts = {
        "method": f"{block['method']} ([{upstream['paper']}]({upstream['paper_url']}))",
        "data": f"{data_title(block['dataset'])}, no labels",
        "schedule": f"{upstream['epochs']} epochs" if upstream["epochs"] else None,
        "hardware": upstream["hardware"] or None,
        "published by": upstream["authors"],
        "their file": f"{upstream['file']}, SHA-256 {upstream['sha256']}" if "file" in upstream else None,
        "not taken over": ", ".join(f"`{name}`" for name in upstream.get("dropped", [])) or None,
    }
    return (
        f"{facts_table(facts)}\n\nIt was not trained by this project. sslzoo downloads the file of its authors on the "
        "machine that loads it, and converts it: every tensor of the encoder, with other names, and nothing else."
    )


def _published(config: Row) -> str:
    """The authors' own figure, which is no measurement of this project: it stays out of tables and metadata."""
    published = config["sslzoo"]["upstream"]["published"]
    if published is None:
        return "No accuracy of a linear probe on ImageNet is known of it."
    return (
        f"Its authors state {published['linear_top1_percent']} % top-1 on {data_title(published['data'])} for a linear "
        f"probe ({published['source']}). That is their figure, of their protocol: it was not measured here, and should "
        "not be compared with figures that were."
    )


def _recipe(recipe: Row) -> str | None:
    """The settings that one looks for first, in a line."""
    words = {"optimizer": "{}", "lr": "lr {} per 256 images", "momentum": "momentum {}"}
    words |= {"weight_decay": "weight decay {}", "warmup_epochs": "{} epochs of warm-up", "precision": "precision {}"}
    words |= {"image_size": "views of {} pixels"}
    if recipe.get("early_size"):
        words |= {"early_size": "before that of {}", "early_part": "for {:.0%} of the steps"}
    return ", ".join(text.format(recipe[key]) for key, text in words.items() if key in recipe) or None


def facts_table(facts: Row) -> str:
    """Markdown: a line for each fact that is not None."""
    lines = "\n".join(f"| {key} | {value} |" for key, value in facts.items() if value is not None)
    return f"| | |\n| --- | --- |\n{lines}"


def duration(seconds: float) -> str:
    """How texts write a time: 5977 -> 1.7 hours."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def hardware(run: Row) -> str | None:
    """What a run recorded of its device, and how many there were."""
    if "device" not in run:
        return None
    processes = run.get("processes", 1)
    return f"{processes} × {run['device']}" if processes > 1 else str(run["device"])


def count(number: int | None) -> str:
    """How texts write a number: 50000 -> 50 000."""
    return "an unrecorded number of" if number is None else f"{number:,}".replace(",", " ")


def _paper_link(paper: Row | None) -> str:
    return f" ([{paper['title']}]({paper['url']}), {paper['year']})" if paper else ""


def _measured(name: str, results: Sequence[Row]) -> str:
    own = [row for row in results if row["model"] == name]
    if not own:
        return "Not measured yet. `python -m sslzoo_evaluations linear FOLDER --data DATA` does it."
    cropped = any("views=" in row["settings"] for row in own)
    views = " and random crops" if cropped else ""
    protocols = [t.format(views=views) for p, (_, t) in _PROTOCOLS.items() if any(row["protocol"] == p for row in own)]
    mirrored = " Raw pixels have their mirror image instead of crops." if cropped else ""
    counts = {(row["n_train"], row["n_test"]) for row in results}
    sizes = " or ".join(f"{count(int(n))} training and {count(int(m))} test images" for n, m in sorted(counts))
    commits = sorted({row["commit"] for row in own if row["commit"]})
    measured = f"Measured {max(row['date'] for row in own)}" + (f", commit {', '.join(commits)}" if commits else "")
    return (
        f"{results_table(results)}\n\nThe same protocol for all rows, with {sizes}; the test images decided nothing. "
        f"{' '.join(protocols)}{mirrored} {measured}."
    )


def _limits(config: Row) -> str:
    block, size = config["sslzoo"], config["pretrained_cfg"]["input_size"]
    known = _DATA.get(block.get("dataset"))
    epochs = (block.get("recipe") or {}).get("epochs")
    limits = [known.limits] if known else []
    if size[1] < 128 and epochs and not _fixed_size(config):
        limits.append(f"It was trained on views of {size[1]} pixels: larger images work, finer detail was never seen.")
    if block.get("dataset") == "cifar10" and epochs and epochs < 200:
        limits.append(
            f"{epochs} epochs are few: published results on CIFAR-10 come from 200 to 1000, mostly of larger networks."
        )
    if _upstream(config):
        limits += _limits_elsewhere(config)
    if _fixed_size(config):
        limits.append(f"It takes images of {size[1]}×{size[2]} pixels only.")
    if snippets.sees_top_half(config):
        limits.append(
            "It sees the top half of an image alone, and that in grey. Of other libraries only timm loads it, and only "
            "where sslzoo is installed: it is the network of a paper, not one of a library."
        )
    limits.append("What its training images lack or favour, its features lack or favour too.")
    return "\n".join(f"- {line}" for line in limits)


def _limits_elsewhere(config: Row) -> list[str]:
    block = config["sslzoo"]
    limits = [block["upstream"]["note"]] if block["upstream"]["note"] else []
    if block.get("padding"):
        limits.append(
            "Its layers of stride 2 pad as TensorFlow does, an even image by one pixel more at its right and bottom. "
            "sslzoo builds it so. Other libraries read the same folder but pad both sides alike: at 224 pixels their "
            "features differ by some 20 % (L2), and a probe of BYOL's largest network that was measured so has 78.3 % "
            "instead of 79.6 % (VISSL's model zoo). `sslzoo.resnets.adapt` mends their network; at sizes of 32 n + 1 "
            "pixels, such as 225, both are equal."
        )
    if block.get("last_stride"):
        limits.append(
            "Its last stage keeps the resolution of the one before it. sslzoo builds it so. Other libraries read the "
            "same folder but halve the resolution there: their features differ by some 15 % (L2). "
            "`sslzoo.resnets.adapt` mends their network."
        )
    if block.get("sobel"):
        limits.append(
            "It sees the edges of an image: two Sobel filters of its grey values, which its authors have inside of the "
            "network. sslzoo has them there too, and takes colour images. Other libraries read the same folder but "
            "build a network of two channels, which refuses colour images. `sslzoo.resnets.adapt` mends their network."
        )
    if own := OWN.get(config["architecture"]):
        limits.append(
            "Other libraries have no such network; timm knows it where `sslzoo.resnets` is imported. "
            f"It is timm's {own}."
        )
    limits.append(
        "The conversion is tested on files of the published structure with random weights, not on its authors' own."
    )
    return limits


def _licence(licence: str | None, config: Row) -> str:
    if licence is None:
        return "Whoever trained it decides; nothing is stated here."
    text = f"Weights: {licence}. The training images keep their own terms."
    if upstream := _upstream(config):
        text += f" The weights are by {upstream['authors']}; sslzoo changed their names and format only."
    if "-nc" in licence.lower():
        text += " They may not be used commercially: SSLZOO_COMMERCIAL=1 makes `sslzoo.load` refuse them."
    return text


def bibtex(method: str, paper: Row) -> str:
    """Markdown: the paper's entry."""
    key = f"{paper['authors'].split(',')[0].lower()}{paper['year']}{method.replace('_', '')}"
    fields = {"author": "authors", "title": "title", "year": "year", "url": "url"}
    lines = "".join(f"  {field} = {{{paper[name]}}},\n" for field, name in fields.items())
    return f"```bibtex\n@misc{{{key},\n{lines}}}\n```"


def _metadata(name: str, config: Row, results: Sequence[Row], licence: str | None) -> str:
    block = config["sslzoo"]
    known = _DATA.get(block.get("dataset"))
    method = block.get("method")
    own = [row for row in results if row["model"] == name]
    return ModelCardData(
        library_name="timm",  # with a name of our own, transformers' pipeline(model=...) without a task would refuse
        pipeline_tag="image-feature-extraction",
        tags=["timm", "transformers", "sslzoo", *(["self-supervised", method] if method else [])],
        license=licence,
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
