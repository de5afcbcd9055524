"""Model cards: README.md of a run or a zoo entry, from its config and the measured results."""

from collections.abc import Mapping, Sequence
from typing import Any


def render_card(name: str, config: Mapping[str, Any], results: Sequence[Mapping[str, Any]] = ()) -> str:
    """Text of a card.

    Args:
        name: What the encoder is called: a zoo id, or method-arch-data of a run.
        config: The encoder's config.json.
        results: Rows of results.csv about it.
    """
    block = config["sslzoo"]
    return f"# {name}\n\n{block['method']} on {block['dataset']}\n"
