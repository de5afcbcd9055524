"""Cards of fine-tuned models: README.md of a model for a task, from its config.json alone."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sslzoo import snippets, zoo
from sslzoo.card import bibtex, code_blocks, count, data_title, duration, facts_table, hardware
from sslzoo.heads import TaskCard, head_module

Config = Mapping[str, Any]
SHOWN = 20  # class names; a card need not list a thousand
# Settings of `finetune` that are said in a line each, where they were set: key -> words
_SETTINGS = {
    "epochs": "epochs",
    "steps": "steps",
    "batch_size": "images a step",
    "lr": "peak learning rate",
    "weight_decay": "weight decay",
    "layer_decay": "learning rate of each layer, as a part of the next one's",
    "class_weights": "class weights",
    "seed": "seed",
}


def render_model_card(name: str, config: Config, *, repository: str | None = None, licence: str | None = None) -> str:
    """Text of the card of a model for a task; what belongs to the task is told by its head.

    Args:
        name: What it is called, such as the name of its run or repository.
        config: Its config.json.
        repository: "org/name" on the Hugging Face Hub that the card goes to; the code then loads from there, and
            otherwise from the folder that the card lies in.
        licence: Of the weights, an SPDX identifier such as "apache-2.0"; None states nothing.
    """
    place = snippets.hub_repository(repository) if repository else snippets.HERE
    head: TaskCard = head_module(config["sslzoo"]["task"]).card(config, place)
    sections = [
        f"# {name}\n\n{_introduction(config, head.what)}",
        f"## Use\n\n{code_blocks(head.snippets)}",
        f"## Classes\n\n{_classes(config)}",
        f"## Training\n\n{_training(config)}",
        f"## Measured\n\n{_measured(config)}",
        f"## Limits\n\n{_limits(config, head.limit)}",
        f"## Licence\n\n{_licence(config, licence)}",
    ]
    encoder = _encoder(config)
    if paper := encoder.get("paper"):
        sections.append(f"## Citation\n\nOf the encoder's method:\n\n{bibtex(encoder['method'], paper)}")
    return f"---\n{_metadata(name, config, licence, head)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _encoder(config: Config) -> dict[str, Any]:
    """The block "sslzoo" of the encoder that it started from."""
    return config["sslzoo"].get("encoder") or {}


def _finetuning(config: Config) -> dict[str, Any]:
    return config["sslzoo"].get("finetuning") or {}


def _introduction(config: Config, what: str) -> str:
    parent, encoder = config["sslzoo"].get("encoder_id"), _encoder(config)
    origin = f"`{parent}`" if parent else "an encoder without a name"
    if method := encoder.get("method"):
        arch = (encoder.get("recipe") or {}).get("arch") or config["architecture"]  # not every encoder has a recipe
        data = f" on {data_title(encoder['dataset'])}" if encoder.get("dataset") else ""
        origin += f" ({arch}, pretrained by {method}{data})"
    how = "which was not changed" if _finetuning(config).get("freeze_encoder") else "fine-tuned as a whole"
    return f"{what} {origin}, {how}."


def _classes(config: Config) -> str:
    names = [f"`{name}`" for name in config["label_names"][:SHOWN]]
    more = len(config["label_names"]) - len(names)
    return ", ".join(names) + (f" and {more} more, in `config.json` under `label_names`" if more else "") + "."


def _training(config: Config) -> str:
    run = _finetuning(config)
    if not run:
        return "It has not been fine-tuned: its head is as it was made."
    facts: dict[str, Any] = {
        "encoder": config["sslzoo"].get("encoder_id"),
        "data": f"{run.get('data') or 'unnamed'}, {count(run.get('n_train'))} images with labels",
        "encoder learns": "no" if run.get("freeze_encoder") else "yes",
    }
    facts |= {words: run.get(key) for key, words in _SETTINGS.items()}
    facts |= {
        "precision": "bf16" if run.get("bf16") else "float32",
        "cost": duration(run["seconds"]) if "seconds" in run else None,
        "hardware": hardware(run),
        "torch": run.get("torch"),
        "code": f"commit {run['commit']}" if run.get("commit") else None,
    }
    return f'{facts_table(facts)}\n\nEvery setting is in `config.json` under `"sslzoo"`, `"finetuning"`.'


def _measured(config: Config) -> str:
    run = _finetuning(config)
    metrics = run.get("metrics")
    if not metrics:
        return "Not measured: there were no validation images."
    lines = "\n".join(f"| {key.replace('_', ' ')} | {_figure(key, value)} |" for key, value in metrics.items())
    return (
        f"| validation, {count(run.get('n_val'))} images | |\n| --- | ---: |\n{lines}\n\n"
        f"Of epoch {run.get('best_epoch')}, which these images chose: on other images expect a little less."
    )


def _figure(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric == "loss" else f"{100 * value:.1f} %"


def _limits(config: Config, limit: str) -> str:
    run = _finetuning(config)
    limits = [limit]
    if run.get("n_train") is not None:
        limits.append(
            f"It has seen {count(run['n_train'])} labelled images: what these lack or favour, it lacks or favours too."
        )
    if run.get("n_val"):
        limits.append(
            f"It was measured on {count(run['n_val'])} images, and the figures are as uncertain as these are few."
        )
    return "\n".join(f"- {line}" for line in limits)


def _licence(config: Config, licence: str | None) -> str:
    own = f"Weights: {licence}." if licence else "Whoever fine-tuned it decides; nothing is stated here."
    parent = _parent_licence(config)
    return own + (f" The encoder that it started from: {parent}." if parent else "")


def _parent_licence(config: Config) -> str | None:
    try:
        return zoo.info(config["sslzoo"].get("encoder_id") or "").licence
    except zoo.UnknownModelError:
        return None


def _metadata(name: str, config: Config, licence: str | None, head: TaskCard) -> str:
    run, parent = _finetuning(config), config["sslzoo"].get("encoder_id")
    known = bool(parent) and bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", parent)) and not Path(parent).exists()
    metrics = run.get("metrics") or {}
    return ModelCardData(
        library_name=head.library,
        pipeline_tag=head.pipeline_tag,
        tags=head.tags,
        base_model=parent if known else None,
        base_model_relation="finetune" if known else None,
        license=licence,
        model_name=name if metrics else None,
        eval_results=[
            EvalResult(
                task_type=head.pipeline_tag,
                task_name=head.pipeline_tag.replace("-", " "),
                dataset_name=run.get("data") or "unnamed",
                dataset_type=run.get("data") or "unnamed",
                dataset_split="validation",
                metric_type=key,
                metric_name=key.replace("_", " "),
                metric_value=round(float(value), 4),
            )
            for key, value in metrics.items()
            if key != "loss" and "/" not in key  # leader boards compare the others
        ]
        or None,
    ).to_yaml()
