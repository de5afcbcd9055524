"""Random numbers that depend on what they are for, not on what was drawn before: nothing to save, nothing to resume."""

import numpy as np
import torch

# Third parts that keep the streams of one step, or of one epoch, apart; parts of a batch are counted from 0.
ORDER, SWEEP, LABELS = 2**31, 2**31 + 1, 2**31 + 2


def seed_of(*parts: int) -> int:
    """One well mixed 63-bit seed from several small numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def generator_of(*parts: int) -> torch.Generator:
    """A generator on the CPU, seeded by `seed_of`."""
    return torch.Generator().manual_seed(seed_of(*parts))
