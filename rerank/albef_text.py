"""Captions as ALBEF reads them: the original's cleaning, and tokens that begin with [CLS] and end without [SEP]."""

import re
from collections.abc import Sequence
from typing import Any

MAX_WORDS = 30
MAX_TOKENS = 30
_DROPPED = re.compile(r"[,.'!?\"()*#:;~]")


def clean_caption(caption: str) -> str:
    """The caption as ALBEF was trained and evaluated on it: lower case, `,.'!?"()*#:;~` dropped, `-` and `/` to blanks, at most 30 words.

    BLIP's cleaning is another one: it puts blanks in the place of punctuation, and keeps commas, apostrophes and hyphens.
    Source: Salesforce ALBEF, dataset/utils.py, `pre_caption`; a rewrite, not a copy (any white space counts as a blank here).
    """
    words = _DROPPED.sub("", caption.lower()).replace("-", " ").replace("/", " ").replace("<person>", "person").split()
    return " ".join(words[:MAX_WORDS])


def token_ids(tokenizer: Any, captions: Sequence[str], *, sep_token: bool, max_tokens: int) -> list[tuple[int, ...]]:
    """Token ids of each caption, at most `max_tokens` with [CLS], and with [SEP] where asked for.

    The tokenizer that ALBEF brings along ends a single text without [SEP], as the text tower was trained (Salesforce ALBEF,
    models/tokenization_bert.py, `build_inputs_with_special_tokens`); transformers' BertTokenizer always adds one.
    """
    last = [tokenizer.sep_token_id] if sep_token else []
    num_words = max_tokens - 1 - len(last)
    encoded = tokenizer(list(captions), add_special_tokens=False, padding=False, return_token_type_ids=False)["input_ids"]
    return [(tokenizer.cls_token_id, *ids[:num_words], *last) for ids in encoded]
