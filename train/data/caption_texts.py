"""What of a run's captions a person should know before its first step, a line for each finding of each set (eval/report/texts.py)."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from eval.encoder.caption_tokens import CaptionTokens, token_key
from eval.encoder.inputs import SiglipInputs
from eval.processes import Processes
from eval.report.texts import text_lines, text_record
from train.data.caption_pool import CaptionPool
from train.data.splits import Splits

_TEXTS_AT_ONCE = 1024


def caption_lines(
    splits: Splits,
    pool: CaptionPool,
    inputs: SiglipInputs,
    processes: Processes,
    other_tokens: Callable[[list[str]], Sequence[Sequence[int]]] | None = None,
) -> list[str]:
    """Tokenise the captions of every set and of the pool, which then knows what is one to the model; what was found. Call on every process.

    Args:
        other_tokens: the token ids of captions by another model that learns from what is mined; None: there is none.
    """
    tokens = CaptionTokens.of(inputs, pool.captions, processes)
    keys = [tokens.key_C]
    if other_tokens is not None:
        keys.append(np.fromiter(_keys(pool.captions, other_tokens), dtype=np.int64, count=len(pool)))
    pool.compare_tokens(*keys)
    where = f"{splits.train.split or 'train'}{' and pool' if len(pool) > pool.num_captions else ''}"
    records = {where: text_record(pool.captions, pool.hash_C, {"": tokens})}
    measured = {str(split.split): split for split in (splits.val, splits.test) if split is not None}
    for name, dataset in (measured | {f"watch {watched.config.name}": watched.dataset for watched in splits.watch}).items():
        read = CaptionTokens.of(inputs, dataset.captions, processes)
        records[name] = text_record(dataset.captions, dataset.caption_hash_C, {"": read})
    return [f"texts     {name}: {line}" for name, record in records.items() for line in text_lines(record, measured=False)]


def _keys(captions: Sequence[str], tokens: Callable[[list[str]], Sequence[Sequence[int]]]) -> Iterator[int]:
    for start in range(0, len(captions), _TEXTS_AT_ONCE):
        yield from map(token_key, tokens(list(captions[start : start + _TEXTS_AT_ONCE])))
