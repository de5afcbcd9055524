"""Model folders to the Hugging Face Hub, each with a card that names its repository: what `sslzoo publish` does."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from sslzoo import hub, weights
from sslzoo.card import render_card
from sslzoo.encoder import load


def publish(
    folder: Path, repo_id: str, *, card: str | None = None, private: bool = False, dry_run: bool = False
) -> hub.Push:
    """Push a model folder as it is, but for its card; only what changed, in one commit.

    Args:
        folder: A finished pretraining run, or what `save_pretrained` wrote. Nothing in it changes.
        repo_id: "org/name"; made if it is not there.
        card: Text of README.md; None renders one whose code loads from the repository.
        private: Make it private. An existing public repository is refused.
        dry_run: Only compare: the result tells what would be uploaded.

    Raises:
        sslzoo.weights.WeightsError: It is no model folder, or a damaged one.
        sslzoo.hub.HubError: It cannot be pushed; says why and what to do.
    """
    encoder = load(folder)  # what cannot be loaded here would not load from the Hub either
    if card is None:
        card = render_card(repo_id.rpartition("/")[2], encoder.config, repository=repo_id)
    with TemporaryDirectory(prefix="sslzoo-publish-") as name:
        staged = Path(name)
        for file in (weights.CONFIG, weights.WEIGHTS):
            shutil.copyfile(folder / file, staged / file)
        (staged / weights.CARD).write_text(card, encoding="utf-8")
        return hub.push_folder(staged, repo_id, private=private, dry_run=dry_run)
