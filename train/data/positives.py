"""The positive (image, caption) pairs of the loss: those of the data, and those relabelled by a cross-encoder in the current table.

Shape letters: N rows of the table, C captions of the pool, D doubtful pairs, b images of this process.
"""

import numpy as np

from eval.dataset.retrieval_set import GroupHashes
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives
from train.loss.positives import BatchPositives


class TruePairs:
    """Looks up positive pairs by the hash of the caption's normalised text.

    A relabelled pair is positive wherever that image and that text meet: in its mined column, in another's, or in the batch.
    """

    def __init__(self, pool: CaptionPool, negatives: Negatives | None = None, *, near_duplicates: bool = False) -> None:
        """near_duplicates: leave near-duplicates of an image's positives out of the loss."""
        self._pool, self._dataset, self._hash_C = pool, pool.dataset, pool.hash_C
        self._near = pool.near_duplicate_positives if near_duplicates else None
        self._relabelled: GroupHashes | None = None
        self._doubtful: GroupHashes | None = None
        if negatives is not None and negatives.doubtful_2D is not None:
            images_D, captions_D = negatives.doubtful_2D
            self._doubtful = GroupHashes(images_D, self._hash_C[captions_D], self._dataset.num_images)
        if negatives is not None and negatives.relabelled_N is not None:
            chosen_N = negatives.relabelled_N
            hashes_N = self._hash_C[negatives.captions_N[chosen_N]]
            self._relabelled = GroupHashes(negatives.image_N[chosen_N], hashes_N, self._dataset.num_images)

    def hashes(self, captions: np.ndarray) -> np.ndarray:
        """Hash of each caption of the pool, int64 of the same shape."""
        return self._hash_C[captions]

    def of_batch(self, images_b: np.ndarray, texts: list[np.ndarray]) -> BatchPositives:
        """The positive pairs between this process's images and the texts of each process, given as pool indices."""
        truths = [(self._dataset.group_I[images_b], self._dataset.true_hashes)]
        if self._relabelled is not None:
            truths.append((images_b, self._relabelled))
        hashes = [self.hashes(captions) for captions in texts]
        left_out = [] if self._doubtful is None else [(images_b, hashes, self._doubtful)]
        if self._near is not None:
            keys_C, true = self._near
            left_out.append((self._dataset.group_I[images_b], [keys_C[captions] for captions in texts], true))
        return BatchPositives(hashes, truths, left_out)

    def contains(self, images: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """Whether each (image, caption) pair is positive, bool; arguments broadcast."""
        known = self._dataset.is_positive(images, hashes)
        return known if self._relabelled is None else known | self._relabelled.contains(images, hashes)
