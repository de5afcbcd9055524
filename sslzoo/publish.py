"""Models to the Hugging Face Hub, each with a card that names its repository: `push_to_hub` and `sslzoo publish`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from sslzoo import hub, weights
from sslzoo.card import render_card
from sslzoo.encoder import load
from sslzoo.heads import load_model
from sslzoo.model_card import render_model_card


def publish(
    folder: Path,
    repo_id: str,
    *,
    card: str | None = None,
    licence: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> hub.Push:
    """Push a model folder as it is, but for its card; only what changed, in one commit.

    Args:
        folder: A finished run of pretraining or fine-tuning, or what `save_pretrained` wrote. Nothing in it changes.
        repo_id: "org/name"; made if it is not there.
        card: Text of README.md; None renders one whose code loads from the repository.
        licence: Of the weights, for that card: an SPDX identifier such as "apache-2.0"; None states nothing.
        private: Make it private. An existing public repository is refused.
        dry_run: Only compare: the result tells what would be uploaded.

    Raises:
        sslzoo.weights.WeightsError: It is no model folder, or a damaged one.
        sslzoo.hub.HubError: It cannot be pushed; says why and what to do.
    """
    opened = load_model if _has_task(weights.locate(folder)) else load
    opened(folder)  # what cannot be loaded here would not load from the Hub either
    with TemporaryDirectory(prefix="sslzoo-publish-") as name:
        staged = Path(name)
        for file in (weights.CONFIG, weights.WEIGHTS):
            shutil.copyfile(folder / file, staged / file)
        _write_card(staged, repo_id, card, licence)
        return hub.push_folder(staged, repo_id, private=private, dry_run=dry_run)


def push_saved(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    card: str | None = None,
    licence: str | None = None,
    private: bool = False,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Push what a model saves of itself; `push_to_hub` of every model is this.

    Args:
        save: Writes config.json and model.safetensors into the folder it is given: `model.save_pretrained`.
        repo_id: "org/name"; made if it is not there.
        card: Text of README.md; None renders one whose code loads from the repository.
        licence: Of the weights, for that card: an SPDX identifier such as "apache-2.0"; None states nothing.
        private: Make it private. An existing public repository is refused.
        message: Of the commit.
        token: With write access; None takes HF_TOKEN or that of `hf auth login`.

    Returns:
        URL of the commit.

    Raises:
        sslzoo.hub.HubError: It cannot be pushed; says why and what to do.
    """
    with TemporaryDirectory(prefix="sslzoo-push-") as name:
        folder = Path(name)
        save(folder)
        _write_card(folder, repo_id, card, licence)
        return hub.push_folder(folder, repo_id, private=private, message=message, token=token).url


def _has_task(folder: Path) -> bool:
    """Tell a model for a task, such as a classifier, from an encoder."""
    return bool(weights.read_model_config(folder)["sslzoo"].get("task"))


def _write_card(folder: Path, repo_id: str, card: str | None, licence: str | None) -> None:
    if card is None:
        render = render_model_card if _has_task(folder) else render_card
        name, config = repo_id.rpartition("/")[2], weights.read_model_config(folder)
        card = render(name, config, repository=repo_id, licence=licence)
    (folder / weights.CARD).write_text(card, encoding="utf-8", newline="\n")
