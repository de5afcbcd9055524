"""Heads on an encoder: one file a task, with its model, loss, prediction and metric.

`sslzoo.finetune` names no task. Of a model, a `common.TaskModel`, which has what all tasks share, it asks:

    task, encoder, origin               its name here, its `Encoder`, and how many of whose tensors are pretrained
    defaults                            `Defaults` for what the caller leaves open
    metric                              what tells the best epoch (more is better): a name that the meter gives
    open_training(source)               labelled images, checked; the model may take its class names from them
    open_validation(source)             the same with the classes as they are
    remarks(images)                     lines on what is odd about them or was left out
    split(images, fraction, seed)       positions to train on and to validate on
    weigh(images, class_weights)        how much each class counts in the loss
    freeze(frozen)                      whether the encoder learns; frozen, train() leaves it in eval mode
    samples(images, seed)               data set to train on, with set_epoch(n); seed None: to evaluate on
    collate(samples)                    arguments of forward, which returns a dict with "loss"
    validate(**collated)                loss or None, and two tensors with a row an image: what the meter counts
    meter()                             update(predictions, targets), batch by batch; compute() -> name: value
    save_pretrained(folder, finetuning) settings and results of the run, for its config.json

Labelled images have a length, `names`, `root`, `subset(positions)`, and `read(i, min_size)`, which raises an
`UnreadableImageError` for one that is damaged. Values of a meter that belong to one class are called "name/class".

A head's file also has `build(encoder, source, *, …)`, a model for the classes of labelled data, with its own options by
keyword; `load(folder, device)`; and `card(config, place)`, its part of a model card, a `TaskCard`.
"""

import inspect
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

# task -> file of this folder
TASKS = {"classification": "classifier", "segmentation": "segmenter", "detection": "detector"}


class Defaults(NamedTuple):
    """Settings of fine-tuning that suit a task.

    Attributes:
        lr: At its peak, of the head; the layers of an encoder that learns have less.
        lr_frozen: The same for a frozen encoder.
        batch_size: Images a step.
    """

    lr: float
    lr_frozen: float
    batch_size: int


class TaskCard(NamedTuple):
    """What a head says of itself on a model card.

    Attributes:
        what: Sentences that end with what stands on the encoder: "Image classifier: …. A linear layer on".
        snippets: Code that loads it and uses photo.jpg, a library at a time.
        limit: A sentence on what it cannot do by its nature.
        pipeline_tag: The Hub's name of the task.
        library: The library that the Hub shows.
        tags: The Hub's.
    """

    what: str
    snippets: list[str]
    limit: str
    pipeline_tag: str
    library: str
    tags: list[str]


def head_module(task: str) -> ModuleType:
    """Import the file of a task.

    Raises:
        ValueError: There is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}. There is: {', '.join(TASKS)}.")
    return import_module(f"sslzoo.heads.{TASKS[task]}")


def build(task: str, encoder: Any, source: Any, *, seed: int = 0, **options: Any) -> Any:
    """Make a model for the classes of labelled data.

    Args:
        task: Such as "classification".
        encoder: Zoo id, model folder, or an `Encoder`.
        source: The data, of a kind that the task knows.
        seed: Of weights that are random at first.
        options: Of the task, such as `head`.

    Raises:
        ValueError: No such task, or it has no such option.
    """
    make = head_module(task).build
    known = [name for name, p in inspect.signature(make).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if "seed" in known:
        known.remove("seed")
        make = partial(make, seed=seed)
    if strange := [name for name in options if name not in known]:
        has = f"its options are {', '.join(known)}" if known else "it has no options"
        raise ValueError(f"{task.capitalize()} knows no {', '.join(strange)}: {has}.")
    return make(encoder, source, **options)


def load_model(name_or_folder: str | Path, *, revision: str | None = None, device: Any = "cpu") -> Any:
    """Load a model that `save_pretrained` of a head or `finetune` wrote, in eval mode.

    Args:
        name_or_folder: Its folder, or "org/name" on the Hugging Face Hub; an existing folder wins.
        revision: Branch, tag or commit of the repository.
        device: Where to put it, such as "cuda".

    Returns:
        A model with its task, encoder, class names and transform, such as a `Classifier`.

    Raises:
        sslzoo.weights.WeightsError: A file is missing, damaged, does not fit, or is an encoder's.
        sslzoo.weights.LicenceError: SSLZOO_COMMERCIAL is set, and its encoder's licence forbids commercial use.
        sslzoo.hub.HubError: The repository cannot be had; says why and what to do.
    """
    from sslzoo import weights  # reads with torch, which the command line starts without

    folder = weights.locate(name_or_folder, revision=revision)
    block = weights.read_model_config(folder)["sslzoo"]
    task = block.get("task")
    if task is None:
        raise weights.WeightsError(f"{folder} has no task: it holds an encoder. sslzoo.load opens it.")
    weights.check_licence(str(name_or_folder), (block.get("encoder") or {}).get("licence"))
    return head_module(task).load(folder, device=device)
