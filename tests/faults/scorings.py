"""python -m tests.faults.scorings CACHE LOG OUTPUT: one scoring of some thousand pairs with a score cache, to be killed.

{rank} in CACHE and LOG becomes the process's rank. The log gets a line for every image before its captions are scored.
"""

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from eval.execution import Execution
from eval.process_group import joined_processes
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import PairScores, complete_scores
from rerank.scoring.score_cache import ScoreCache

NUM_IMAGES, NUM_CAPTIONS = 70, 90


class LoggingScorer:
    """A formula of image and text that depends, in its last bits, on which captions it is given at once, as a network's may."""

    name, fingerprint = "formula", "formula-1"

    def __init__(self, log: Path | None = None, seconds: float = 0.0) -> None:
        self._log, self._seconds = log, seconds

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        """Shape (len(captions),)."""
        number = image.getpixel((0, 0))[0]
        if self._log is not None:
            with self._log.open("a") as file:
                file.write(f"{number}\n")
        time.sleep(self._seconds)
        return np.array([np.sin(number * len(caption)) + 1e-3 * np.cos(sum(map(len, captions))) for caption in captions], dtype=np.float32)


class Numbers:
    """Image i is of colour i, caption c is c letters long."""

    captions = caption_ids = ["x" * number for number in range(1, NUM_CAPTIONS + 1)]
    image_ids = [str(number) for number in range(NUM_IMAGES)]

    def load_image(self, image: int) -> Image.Image:
        """An image of one colour."""
        return Image.new("RGB", (1, 1), (image, 0, 0))

    def image_digest(self, image: int) -> bytes:
        """Of what it shows."""
        return hashlib.sha256(self.load_image(image).tobytes()).digest()


def lists() -> CandidateLists:
    """About two thirds of all pairs."""
    images_N, captions_N = np.nonzero(np.random.default_rng(0).random((NUM_IMAGES, NUM_CAPTIONS)) < 0.65)
    return CandidateLists.of_pairs(images_N, captions_N)


def straight() -> PairScores:
    """The scores of an undisturbed scoring without a cache."""
    return complete_scores(LoggingScorer(), Numbers(), lists())


if __name__ == "__main__":
    cache, log, output = sys.argv[1:]
    with joined_processes() as (processes, _):
        here = {"rank": processes.rank}
        scorer = LoggingScorer(Path(log.format(**here)), seconds=0.002)
        execution = Execution(processes=processes)
        scores = complete_scores(scorer, Numbers(), lists(), cache=ScoreCache(cache.format(**here)), execution=execution)
        np.savez(Path(output) / f"{os.environ.get('RANK', '0')}.npz", keys_N=scores.lists.keys_N, scores_N=scores.scores_N)
