"""New."""

import numpy as np

# Streams of random numbers, so that none of them is ever the same as another.
_ORDER, _CAPTION, _CROP, _REPLACEMENT, COMPOSITION = range(5)


def generator(seed: int, stream: int, *keys: int) -> np.random.Generator:
    """A counter-based generator named by its keys (Philox through numpy's SeedSequence): the same keys, the same numbers, anywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, *keys])))
