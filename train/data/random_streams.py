"""Random generators named by (seed, stream, keys), so that no generator state is saved in a checkpoint."""

import numpy as np

# Numbers of the streams: no two of them share random numbers.
ORDER, CAPTION, CROP, REPLACEMENT, COMPOSITION = range(5)


def generator(seed: int, stream: int, *keys: int) -> np.random.Generator:
    """A counter-based generator named by its keys (Philox through numpy's SeedSequence): the same keys, the same numbers, anywhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, stream, *keys])))
