"""A SigLIP checkpoint's tokenizer, made to read captions as the text tower was trained on them.

SigLIP's own tokenizer (SentencePiece) lower-cases and strips punctuation by itself. SigLIP 2 uses Gemma's tokenizer on lower-cased text,
ended by <eos>; but transformers loads the tokenizer of a fixed-resolution SigLIP 2 folder as a plain Gemma one, which keeps capitals.
Without lower case COCO R@1 fell from 52.1 / 68.9 to 48.6 / 65.0 (big_vision#166).
"""

import json
import os
import re
import string
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers, processors
from transformers import AutoTokenizer, GemmaTokenizer, Siglip2Tokenizer, SiglipTokenizer

_WHERE_FROM = ("is_local", "local_files_only", "name_or_path")
"""Entries of tokenizer_config.json that transformers 5 writes: how the tokenizer was loaded, which is no property of it."""


def load_tokenizer(name: str, *, strip_punctuation: bool = False) -> Any:
    """The tokenizer of a checkpoint folder or hub id; SigLIP 2's strips punctuation if asked, as open_clip does (big_vision does not).

    Raises:
        Exception: it is missing or cannot be read; of many classes (see `using_files`).
    """
    # The loader's workers are forked; a tokenizer with threads of its own would warn and disable them there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if isinstance(tokenizer, GemmaTokenizer | Siglip2Tokenizer):
        backend, eos = tokenizer.backend_tokenizer, tokenizer.eos_token
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
        )
    if strip_punctuation and not isinstance(tokenizer, SiglipTokenizer):
        # SigLIP's text normalisation except the case: ASCII punctuation removed, blanks collapsed.
        marks = Regex("[" + re.escape(string.punctuation) + "]")
        stripped = [normalizers.Replace(marks, ""), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        backend = tokenizer.backend_tokenizer
        backend.normalizer = normalizers.Sequence([*stripped, *([backend.normalizer] if backend.normalizer else [])])
    return tokenizer


def save_tokenizer(tokenizer: Any, folder: str | os.PathLike[str], num_tokens: int | None = None) -> None:
    """Write a tokenizer in the hub's own format, so that plain transformers gives the same ids from it, and no mask.

    Gemma's classes rebuild or drop lower-casing, and transformers 4 does not know them; the generic class reads all of tokenizer.json.

    Args:
        num_tokens: the length to which `AutoProcessor` of transformers from 4.57 on pads and cuts captions, whatever `padding` it is asked
            for: a processor takes what a call leaves open from tokenizer_config.json (transformers 5.23, processing_utils.py,
            `_merge_kwargs`), and the longest caption of a batch, padded to a multiple of this, has this length. The tokenizer alone, and
            transformers 4.56, do as they are asked. None: no such length.
    """
    tokenizer.save_pretrained(folder)
    # save_pretrained drops this entry (transformers 5.23), and with a mask `model(**processor(...))` gives other embeddings.
    changes: dict[str, Any] = {"model_input_names": ["input_ids"]}
    if num_tokens is not None:
        changes |= {"padding": "max_length", "truncation": True, "max_length": num_tokens, "pad_to_multiple_of": num_tokens}
        changes |= {"model_max_length": num_tokens}
    if not isinstance(tokenizer, SiglipTokenizer):
        changes |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right"}
    rewrite_tokenizer_config(folder, **changes)


def rewrite_tokenizer_config(folder: str | os.PathLike[str], **changes: Any) -> None:
    """Rewrite the tokenizer_config.json that transformers 5 wrote to a folder, with these entries, so that transformers 4 reads it too, and
    without what says where the tokenizer was loaded from.

    Transformers 4 expects names in "extra_special_tokens", {"image_token": "<image>"}, and fails on the list that transformers 5 writes
    there, even an empty one. Tokens without names are its "additional_special_tokens", which transformers 5 reads as well.

    Raises:
        OSError: it cannot be read or written.
    """
    path = Path(folder) / "tokenizer_config.json"
    record = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key not in _WHERE_FROM} | changes
    extra = record.pop("extra_special_tokens", None)
    if extra:
        record["extra_special_tokens" if isinstance(extra, dict) else "additional_special_tokens"] = extra
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
