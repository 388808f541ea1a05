"""The lines that the command prints: what was read, what was left out, and the results."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.dataset.broken import Skipped
from eval.search.ranking import Direction
from rerank.answers.answers import Answers
from rerank.answers.collection import Collection
from rerank.answers.first_stage import FirstAnswers
from rerank.scoring.pair_scores import PairScores

WORDS: dict[Direction, tuple[str, str]] = {"image_to_text": ("picture", "captions"), "text_to_image": ("caption", "pictures")}
_MOST_NAMED = 5


def reading_lines(collection: Collection, directions: Sequence[Direction], top_k: int) -> list[str]:
    """What was read (captions where there are some) and skipped, and where there are fewer answers than top_k."""
    captions, skipped = collection.captions_read, collection.pictures.skipped.in_words()
    counts = collection.pictures.counts
    odd = [f"{captions.num_blank:,} blank"] if captions.num_blank else []
    odd += [f"{captions.num_repeated:,} repeated"] if captions.num_repeated else []
    read = f" ({'; '.join(odd)})" if odd else ""
    lines = [
        f"pictures   {collection.num_images:,} in {collection.pictures.source}" + (f" (skipped: {skipped})" if skipped else ""),
        *(f"columns    {note}" for note in (*collection.pictures.notes, *captions.notes)),
        *([f"rows       {counts.joined:,} of {counts.given:,} joined to an earlier row's picture"] if counts.joined else []),
        *([f"left out   {counts.skipped:,} of {counts.given:,} rows, whose picture is missing"] if counts.skipped else []),
        *([f"left out   {collection.pictures.left_out}"] if collection.pictures.left_out else []),
        *([f"captions   {collection.num_captions:,} in {captions.source}{read}"] if captions.ids else []),
    ]
    for direction in directions:
        query, answers = WORDS[direction]
        if (size := collection.gallery_size(direction)) < top_k:
            lines.append(f"note       there are {size:,} {answers}, fewer than --top-k {top_k}: each {query} gets them all")
    return lines


def broken_lines(skipped: Sequence[Skipped], path: Path | None = None) -> list[str]:
    """The images that were left out, each with the reason; or, of a file that lists them all, the first few."""
    if not skipped:
        return []
    most = len(skipped) if path is None else _MOST_NAMED
    more = [f"  and {len(skipped) - most:,} more"] if len(skipped) > most else []
    listed = f" ({path})" if path is not None else ""
    return [f"left out   {len(skipped):,} pictures that do not decode{listed}", *(f"  {one.reason}" for one in skipped[:most]), *more]


def closing_lines(found: FirstAnswers, answers: Sequence[Answers], scores: PairScores | None, output: Path, page: Path | None) -> list[str]:
    """Run times, number of changed first answers, and the files."""
    lines = []
    for one in answers:
        query, candidates = WORDS[one.direction]
        changed = f"; another first answer for {_share(one.num_changed, one.num_queries)}" if scores is not None else ""
        lines.append(f"answers    {one.depth:,} {candidates} for each of {one.num_queries:,} {query}s{changed}")
    for one in answers:
        if one.num_matches_Q is not None:
            query = WORDS[one.direction][0]
            without = _share(int((one.num_matches_Q == 0).sum()), one.num_queries)
            lines.append(f"matches    {int(one.num_matches_Q.sum()):,} for {query}s; no match for {without}")
    lines.append(f"seconds    {found.embedding_seconds:.1f} embedding, {found.search_seconds:.1f} searching" + _reranking(scores))
    lines.append(f"table      {output} ({sum(int(np.maximum(one.shown_Q, 1).sum()) for one in answers):,} rows)")
    return lines + ([f"page       {page}"] if page is not None else [])


def _reranking(scores: PairScores | None) -> str:
    if scores is None:
        return ""
    cost, num_cached = scores.cost, scores.cached.num_pairs
    rate = f", {cost.pairs_scored / cost.seconds:,.1f} pairs/s" if cost.pairs_scored and cost.seconds > 0 else ""
    cached = f"; {num_cached:,} pairs were scored by an earlier run" if num_cached else ""
    return f", {cost.seconds:.1f} reranking ({cost.pairs_scored:,} pairs of {cost.images_encoded:,} pictures{rate}{cached})"


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({100 * count / total:.1f}%)"
