"""ALBEF as a cross-encoder of (image, caption) pairs, in a module of our own (transformers has none).

    scorer = AlbefScorer.load("models/albef-coco")          # python -m rerank.convert mscoco.pth --output models/albef-coco
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

An image goes through the vision tower once, and each fusion layer's keys and values of it are computed once for all its captions. The six
layers that read a caption alone run once per caption, not per pair, as long as its state is cached. The score is the logit of
"match", as ALBEF's evaluation ranks (Retrieval.py).

Shape letters: C captions of a batch, L tokens of the longest among them, D width of the text tower.
"""

import re
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from eval.processes import sent
from rerank.scorers.albef.checkpoint import load_albef
from rerank.scorers.base import CrossEncoder, padded
from rerank.scorers.scorer import InputLimits, match_scores

MAX_WORDS = 30
MAX_TOKENS = 30
CACHED_CAPTIONS = 24_000  # whose states are cached: some 1 GiB at base size and 14 tokens
_PADDING_ID = 0  # always masked, so any id would do
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")


def clean_caption(caption: str) -> str:
    """The caption as ALBEF was trained and evaluated on it: lower case, `,.'!?"()*#:;~` dropped, `-` and `/` to blanks, at most 30 words.

    BLIP cleans differently: it replaces punctuation by blanks, and keeps commas, apostrophes and hyphens.
    Source: Salesforce ALBEF, dataset/utils.py, `pre_caption`; a rewrite, not a copy (any white space counts as a blank here).
    """
    words = _DROPPED.sub("", caption.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person").split()
    return " ".join(words[:MAX_WORDS])


class AlbefScorer(CrossEncoder):
    """Scores one image against many captions (a `PairScorer`)."""

    name = "albef"
    fixed = {"clean_captions": True, "max_tokens": MAX_TOKENS, "sep_token": False}
    _read = staticmethod(load_albef)

    @property
    def reads(self) -> InputLimits:
        """Images resized to the vision tower's square, captions cut to 30 tokens."""
        size = self._model.config.vision.image_size
        return InputLimits(size, size, min(MAX_TOKENS, self._model.config.text.max_position_embeddings))

    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        """[CLS] and the words, without [SEP].

        ALBEF's own tokenizer ends a single text without [SEP], as the text tower was trained (Salesforce ALBEF,
        models/tokenization_bert.py, `build_inputs_with_special_tokens`); transformers' BertTokenizer always adds one.
        """
        tokenizer, num_words = self._checkpoint.tokenizer, self.reads.max_tokens - 1
        texts = [clean_caption(caption) for caption in captions]
        encoded = tokenizer(texts, add_special_tokens=False, padding=False, return_token_type_ids=False)["input_ids"]
        return [(tokenizer.cls_token_id, *ids[:num_words]) for ids in encoded]

    @cached_property
    def _states(self) -> Callable[[tuple[int, ...]], torch.Tensor]:
        return lru_cache(CACHED_CAPTIONS)(self._caption_state)

    def _caption_state(self, ids: tuple[int, ...]) -> torch.Tensor:
        """One caption after the layers that read it alone, float32, shape (L, D).

        It is encoded by itself, so its state is the same bits whatever else is encoded: a scoring that is divided among processes, or
        resumed, gives the same scores.
        """
        input_ids_1L = sent(torch.tensor([ids]), self.device)
        with self._autocast():
            return self._model.caption_states(input_ids_1L, torch.ones_like(input_ids_1L, dtype=torch.bool))[0].float()

    def _encode_image(self, pixels_1CHW: torch.Tensor) -> Any:
        return self._model.image_keys_values(pixels_1CHW)

    def _scores(self, encoded: Any, ids: list[tuple[int, ...]]) -> torch.Tensor:
        _, mask_CL = padded(ids, _PADDING_ID)
        states_CLD = pad_sequence([self._states(caption) for caption in ids], batch_first=True)
        with self._autocast():
            read_CD = self._model.match_states(states_CLD, sent(mask_CL.bool(), self.device), encoded)
        return match_scores(self._model.itm_head(read_CD.float()), self.settings.score_kind)
