"""Heads on an encoder: one file a task, with its model, loss, prediction and metric.

`sslzoo.finetune` names no task. Of a model, which is an `nn.Module`, it asks:

    task, encoder, metric               its name here, its `Encoder`, and what tells the best epoch (more is better)
    open_training(source)               labelled images, checked; the model may take its class names from them
    open_validation(source)             the same with the classes as they are
    split(images, fraction, seed)       positions to train on and to validate on
    weigh(images, class_weights)        how much each class counts in the loss
    samples(images, seed)               data set to train on, with set_epoch(n); seed None: to evaluate on
    collate(samples)                    arguments of forward, which returns a dict with "loss" and "logits"
    compute_metrics(prediction)         transformers' EvalPrediction -> name: value
    save_pretrained(folder, finetuning) settings and results of the run, for its config.json

A head's file also has `build(encoder, source)`, a model for the classes of labelled data, and `load(folder, device)`.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

TASKS = {"classification": "classifier"}  # task -> file of this folder


def head_module(task: str) -> ModuleType:
    """Import the file of a task.

    Raises:
        ValueError: There is no such task.
    """
    if task not in TASKS:
        raise ValueError(f"Unknown task {task!r}. There is: {', '.join(TASKS)}.")
    return import_module(f"sslzoo.heads.{TASKS[task]}")


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
