"""ALBEF as a cross-encoder of (image, caption) pairs, in a module of our own (transformers has none).

    scorer = AlbefScorer.load("models/albef-coco")          # python -m rerank.convert mscoco.pth --output models/albef-coco
    scores = scorer.score(image, ["a dog runs on grass", "two cats on a sofa"])

An image goes through the vision tower once, and each fusion layer's keys and values of it are computed once for all its captions. The six
layers that read a caption alone run once per caption, not per pair, as long as its state is cached. The score is the logit of
"match", as ALBEF's evaluation ranks (Retrieval.py).

Shape letters: N captions, C captions of a batch, L tokens of the longest among them, D width of the text tower.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from rerank.scorers.albef.checkpoint import AlbefCheckpoint, load_albef
from rerank.scorers.base import CaptionStates, CrossEncoder, caption_batches
from rerank.scorers.scorer import InputLimits, ScorerSettings, match_scores

MAX_WORDS = 30
MAX_TOKENS = 30
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")


def clean_caption(caption: str) -> str:
    """The caption as ALBEF was trained and evaluated on it: lower case, `,.'!?"()*#:;~` dropped, `-` and `/` to blanks, at most 30 words.

    BLIP cleans differently: it replaces punctuation by blanks, and keeps commas, apostrophes and hyphens.
    Source: Salesforce ALBEF, dataset/utils.py, `pre_caption`; a rewrite, not a copy (any white space counts as a blank here).
    """
    words = _DROPPED.sub("", caption.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person").split()
    return " ".join(words[:MAX_WORDS])


def token_ids(tokenizer: Any, captions: Sequence[str], *, sep_token: bool, max_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of each caption, at most `max_tokens` with [CLS], and with [SEP] if `sep_token`.

    ALBEF's own tokenizer ends a single text without [SEP], as the text tower was trained (Salesforce ALBEF,
    models/tokenization_bert.py, `build_inputs_with_special_tokens`); transformers' BertTokenizer always adds one.
    """
    last = [tokenizer.sep_token_id] if sep_token else []
    num_words = max_tokens - 1 - len(last)
    encoded = tokenizer(list(captions), add_special_tokens=False, padding=False, return_token_type_ids=False)["input_ids"]
    return [(tokenizer.cls_token_id, *ids[:num_words], *last) for ids in encoded]


_PADDING_ID = 0  # always masked, so any id would do


@dataclass(frozen=True)
class AlbefSettings(ScorerSettings):
    """The defaults are the original ALBEF's evaluation, in float32.

    Attributes:
        clean_captions: the original's caption cleaning.
        max_tokens: longer captions are cut to this many tokens.
        sep_token: end each caption with [SEP], which the original does not.
        caption_states_mib: MiB of cached caption states; 1,024 hold some 24,000 captions of 14 tokens at base size. Changes no score.
    """

    clean_captions: bool = True
    max_tokens: int = MAX_TOKENS
    sep_token: bool = False
    caption_states_mib: int = 1024

    def __post_init__(self) -> None:
        """Raises ValueError for a value that is none of the above."""
        super().__post_init__()
        if self.max_tokens < 3:
            raise ValueError(f"max_tokens: expected at least 3; found {self.max_tokens}.")
        if self.caption_states_mib < 0:
            raise ValueError(f"caption_states_mib: expected at least 0; found {self.caption_states_mib}.")

    def identity(self) -> dict[str, Any]:
        """The settings that change scores beyond float noise."""
        return {key: value for key, value in super().identity().items() if key != "caption_states_mib"}


class AlbefScorer(CrossEncoder[AlbefSettings]):
    """Scores one image against many captions (a `PairScorer`)."""

    name = "albef"
    settings_class = AlbefSettings

    def __init__(
        self, checkpoint: AlbefCheckpoint, *, device: torch.device | str | None = None, settings: ScorerSettings | None = None
    ) -> None:
        """Moves the checkpoint's model to `device`, by default a GPU if there is one."""
        super().__init__(checkpoint, device=device, settings=settings)
        self._max_tokens = min(self.settings.max_tokens, checkpoint.model.config.text.max_position_embeddings)
        self._states = CaptionStates(self._caption_state, self.settings.caption_states_mib * 2**20)

    @property
    def reads(self) -> InputLimits:
        """Images resized to the vision tower's square, captions cut to `max_tokens`."""
        size = self._model.config.vision.image_size
        return InputLimits(size, size, self._max_tokens)

    @classmethod
    def _read(cls, model: str) -> AlbefCheckpoint:
        return load_albef(model)

    def _token_ids(self, captions: Sequence[str]) -> list[tuple[int, ...]]:
        texts = [clean_caption(caption) for caption in captions] if self.settings.clean_captions else list(captions)
        return token_ids(self._checkpoint.tokenizer, texts, sep_token=self.settings.sep_token, max_tokens=self._max_tokens)

    def _caption_state(self, ids: tuple[int, ...]) -> torch.Tensor:
        """One caption after the layers that read it alone, float32, shape (L, D)."""
        input_ids_1L = torch.tensor([ids], device=self.device)
        with self._autocast():
            return self._model.caption_states(input_ids_1L, torch.ones_like(input_ids_1L, dtype=torch.bool))[0].float()

    def _score_distinct(self, image: Image.Image, ids: list[tuple[int, ...]]) -> np.ndarray:
        scores_N = np.empty(len(ids), dtype=np.float32)
        with self._autocast():
            keys_values = self._model.image_keys_values(self._pixels(image))
        for batch in caption_batches(ids, self.settings.chunk_size, _PADDING_ID):
            states_CLD = pad_sequence([self._states.of(ids[position]) for position in batch.positions_C], batch_first=True)
            with self._autocast():
                read_CD = self._model.match_states(states_CLD, batch.attention_mask_CL.bool().to(self.device), keys_values)
            scores_C = match_scores(self._model.itm_head(read_CD.float()), self.settings.score_kind)
            scores_N[batch.positions_C] = scores_C.cpu().numpy()
        return scores_N
