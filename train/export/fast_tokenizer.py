"""SigLIP's SentencePiece tokenizer as the tokenizer.json that transformers.js wants: transformers itself has no conversion of it."""

import re
import string
from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformers import SiglipTokenizer

_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED = 1, 2, 3, 5
"""Values of sentencepiece_model.proto: kinds of models, and of pieces."""
FINAL_SIGMA = r"(?<=\p{L})Σ(?!\p{L})"
"""Python lowers it by its place in the word, and tokenizers letter by letter."""
PROBES = (
    *("", " ", "A RED Square.", "don't! (stop); it's 50%", "...", "a . b", "a\u00a0b\u2003c\u3000d", "tab\there\nline", "a\x00b\x1c d"),
    *("naïve café", "e\u0301 o\u0308", "\u0301abc", "ΟΔΟΣ ΣΑΣ", "İstanbul", "ﬁne ﬂuﬀy Ⅷ", "½ ² ™ ①", "…—–“quotes”", "ＡＢＣ １２３"),
    *("日本語 の 写真", "한국어", "नमस्ते", "👩‍👩‍👧 🏳️‍🌈", "a\u200bb\u200dc", "\ufeffa", "▁a▁b", "the quick brown fox " * 20),
)
"""Texts whose ids are compared, besides every piece of the vocabulary."""


def fast_tokenizer(tokenizer: SiglipTokenizer) -> Tokenizer | None:
    """The same tokenizer for the library tokenizers; None where it cannot give the same ids.

    The ids are compared here, for `PROBES` and for every piece of the vocabulary. They differ for captions that spell out the special
    tokens, such as "</s>", and may differ for letters that are newer than Python's Unicode tables.
    """
    proto: Any = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.sp_model.serialized_model_proto())
    rules, trained = proto.normalizer_spec, proto.trainer_spec
    is_usual = rules.add_dummy_prefix and rules.remove_extra_whitespaces and rules.escape_whitespaces and not trained.byte_fallback
    kinds = {piece.type for piece in proto.pieces}
    if not is_usual or trained.treat_whitespace_as_suffix or not kinds <= {_NORMAL, _UNKNOWN, _CONTROL, _UNUSED}:
        return None
    if trained.model_type not in (_UNIGRAM, _BPE):
        return None
    fast = Tokenizer(_unigram(proto) if trained.model_type == _UNIGRAM else _merges(proto))
    fast.normalizer = _normalizer(rules.precompiled_charsmap, lower_case=tokenizer.do_lower_case)
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    eos, unknown = str(tokenizer.eos_token), str(tokenizer.unk_token)
    fast.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B {eos}", special_tokens=[(eos, tokenizer.eos_token_id)]
    )
    fast.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (eos, unknown)])
    texts = [*PROBES, *(piece.piece.replace("▁", " ") for piece in proto.pieces if piece.type == _NORMAL)]
    slow = [tokenizer(text, padding=False, truncation=False, verbose=False)["input_ids"] for text in texts]
    return fast if [encoding.ids for encoding in fast.encode_batch(texts)] == slow else None


def _unigram(proto: Any) -> Unigram:
    return Unigram([(piece.piece, piece.score) for piece in proto.pieces], unk_id=proto.trainer_spec.unk_id, byte_fallback=False)


def _merges(proto: Any) -> BPE:
    """SentencePiece merges the two neighbours that make the piece of the best score: each way to make a piece is a merge, best first."""
    ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
    found = []
    for piece in proto.pieces:
        halves = [(piece.piece[:cut], piece.piece[cut:]) for cut in range(1, len(piece.piece)) if piece.type == _NORMAL]
        found += [(-piece.score, ids[left], ids[right], left, right) for left, right in halves if left in ids and right in ids]
    merges = [(left, right) for _, _, _, left, right in sorted(found)]
    return BPE(ids, merges, unk_token=proto.pieces[proto.trainer_spec.unk_id].piece, fuse_unk=True)


def _normalizer(charsmap: bytes, *, lower_case: bool) -> normalizers.Normalizer:
    """What `SiglipTokenizer.canonicalize_text` does, then SentencePiece's own table."""
    lower = [normalizers.Replace(Regex(FINAL_SIGMA), "ς"), normalizers.Lowercase()] if lower_case else []
    marks = [normalizers.Replace(Regex("[" + re.escape(string.punctuation) + "]"), ""), normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " ")]
    table = [normalizers.Precompiled(charsmap)] if charsmap else []
    blanks = [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    return normalizers.Sequence([normalizers.Replace("▁", " "), *lower, *marks, normalizers.Strip(), *table, *blanks])
