"""A cross-encoder scores mined pairs: a high score means a likely false negative, a true caption that the data does not state.

Denoising of mined negatives by a cross-encoder: RocketQA (Qu et al. 2021, arXiv 2010.08191). Shape letters: N pairs.
"""

from dataclasses import replace

import numpy as np
import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import named
from eval.execution import ONE_PROCESS, Execution
from rerank.scorers.load import load_scorer, read_scorer
from rerank.scorers.scorer import PairScorer, ScorerSettings
from rerank.scoring.candidates import CandidateLists, pair_keys
from rerank.scoring.pair_scores import complete_scores
from rerank.scoring.score_cache import ScoreCache
from train.config.job import JobConfig
from train.config.mining import DistilConfig
from train.data.caption_pool import CaptionPool
from train.data.negatives import Negatives

_LISTS_AT_ONCE = 256  # images between two synchronisations of the processes
SETTINGS = ScorerSettings(score_kind="margin")


def load_mining_cross_encoder(config: JobConfig, device: torch.device | str) -> PairScorer | None:
    """The cross-encoder of mining.denoise and mining.distil; None where neither is set. Its score is the margin: match logit less no-match
    logit. It is not probed at every mining: `cross_encoder_fingerprint` did so before the first step.

    Raises:
        UserError: it cannot be read.
    """
    with named({"reranker": config.cross_encoder_key}):
        return None if config.cross_encoder_model is None else read_scorer(config.cross_encoder_model, device=device, settings=SETTINGS)


def cross_encoder_fingerprint(config: JobConfig) -> str | None:
    """Hash of the cross-encoder of mining.denoise and mining.distil; None where neither is set.

    Raises:
        UserError: it cannot score (image, caption) pairs.
    """
    model = config.cross_encoder_model
    with named({"reranker": config.cross_encoder_key}):
        return None if model is None else load_scorer(model, device="cpu", settings=SETTINGS).fingerprint


class MiningCrossEncoder:
    """Scores pairs of an image and a caption of the pool; the work is divided among the processes, and each gets every score.

    Attributes:
        scorer: the cross-encoder.
        num_judged: distinct pairs scored; a pair asked for again is not scored again.
    """

    def __init__(
        self, scorer: PairScorer, pool: CaptionPool, *, cache: ScoreCache | None = None, execution: Execution = ONE_PROCESS
    ) -> None:
        """cache: scores of earlier minings, and where new ones go; on_progress is called with 0 between images, to handle signals."""
        self.scorer, self._pool, self._cache, self._execution = scorer, pool, cache, execution
        self.num_judged = 0
        self._keys_N, self._logits_N = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)  # of the scored pairs, keys ascending

    def probabilities(self, images_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
        """Probability of a match, the sigmoid of the scorer's margin, float32 of shape (N,).

        Raises:
            UserError: a score is not finite.
        """
        return sigmoid(self.logits(images_N, captions_N))

    def logits(self, images_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
        """The scorer's margin of each pair, match logit less no-match logit, float32 of shape (N,).

        Raises:
            UserError: a score is not finite.
        """
        keys_N = pair_keys(images_N, captions_N)
        new_N = np.flatnonzero(~np.isin(keys_N, self._keys_N))
        if len(new_N):  # a pair that came twice is stored once
            scored = np.concatenate([self._logits_N, self._scored(images_N[new_N], captions_N[new_N])])
            self._keys_N, first_N = np.unique(np.concatenate([self._keys_N, keys_N[new_N]]), return_index=True)
            self.num_judged += len(first_N) - len(self._logits_N)
            self._logits_N = scored[first_N]
        return self._logits_N[np.searchsorted(self._keys_N, keys_N)]

    def _scored(self, images_N: np.ndarray, captions_N: np.ndarray) -> np.ndarray:
        """The margins of pairs, block by block of images."""
        execution = replace(self._execution, on_progress=lambda pairs: self._execution.on_progress(0))
        logits_N = np.empty(len(images_N), dtype=np.float32)
        distinct_I, list_N = np.unique(images_N, return_inverse=True)
        for start in range(0, len(distinct_I), _LISTS_AT_ONCE):
            part_n = np.flatnonzero((list_N >= start) & (list_N < start + _LISTS_AT_ONCE))
            lists = CandidateLists.of_pairs(images_N[part_n], captions_N[part_n])
            scores = complete_scores(self.scorer, self._pool, lists, cache=self._cache, execution=execution)
            logits_N[part_n] = scores.lookup(images_N[part_n], captions_N[part_n])
        return logits_N


def sigmoid(logits_N: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logit)), computed in float64, which float32 logits cannot overflow; float32."""
    with np.errstate(over="ignore"):
        probabilities_N: np.ndarray = (1 / (1 + np.exp(-logits_N.astype(np.float64)))).astype(np.float32)
    return probabilities_N


def with_cross_encoder_logits(
    negatives: Negatives, cross_encoder: MiningCrossEncoder, dataset: RetrievalSet, config: DistilConfig
) -> Negatives:
    """The table with teacher logits: the cross-encoder's logit of every row and, in the form `lists`, of the own captions of its images.

    A pair that denoising scored is not scored again.

    Raises:
        UserError: a score is not finite.
    """
    images_N, captions_N, owners_C = negatives.image_N, negatives.captions_N, dataset.caption_image_C
    own_P = np.flatnonzero(np.isin(owners_C, images_N)) if config.form == "lists" else np.empty(0, dtype=np.int64)
    logits = cross_encoder.logits(np.concatenate([images_N, owners_C[own_P]]), np.concatenate([captions_N, own_P]))
    logits_N, own_C = logits[: len(images_N)], None
    if config.form == "lists":
        own_C = np.full(dataset.num_captions, np.nan, dtype=np.float32)
        own_C[own_P] = logits[len(images_N) :]
    return replace(negatives, match_N=sigmoid(logits_N), teacher_logits_N=logits_N, own_teacher_logits_C=own_C)
