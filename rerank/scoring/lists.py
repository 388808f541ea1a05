"""Rerank candidate lists of your own: of each query the captions, or the pictures, that anything retrieved.

ranked = rerank_lists(load_scorer("Salesforce/blip-itm-base-coco"), {"a red kite": ["1.jpg", "2.jpg", "3.jpg"]})
ranked["a red kite"][0]  # ("2.jpg", 4.03), the best
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from eval.dataset.retrieval_set import StoredImages, StringColumn
from eval.errors import UserError
from eval.search.ranking import DIRECTIONS, Direction
from rerank.scorers.scorer import PairScorer
from rerank.scoring.candidates import CandidateLists
from rerank.scoring.pair_scores import complete_scores
from rerank.scoring.score_cache import ScoreCache


class _Listed(StoredImages):
    """The pictures and captions of some lists, each once; a picture's id is its path (a `rerank.scoring.cached_scoring.ScoringData`)."""

    def __init__(self, paths: Sequence[str], captions: Sequence[str]) -> None:
        names = StringColumn(paths)
        super().__init__(names, names, np.full(len(paths), -1), None, source="the lists")
        self.captions = self.caption_ids = captions


def rerank_lists(
    scorer: PairScorer,
    lists: Mapping[str, Sequence[str]],
    *,
    direction: Direction = "text_to_image",
    cache: str | Path | None = None,
) -> dict[str, list[tuple[str, float]]]:
    """Candidates of each query by a cross-encoder's score, best first; equal scores keep the order given.

    A picture is read and encoded once for all its captions, and a pair that is in several lists is scored once.

    Args:
        scorer: of `rerank.scorers.load.load_scorer`, or anything with its methods.
        lists: the candidates of each query. Captions are texts, pictures are paths.
        direction: "text_to_image": queries are captions, candidates pictures; "image_to_text": the other way round.
        cache: folder of scores, so that a second call scores only what is new; None: none.

    Returns:
        (candidate, score) of each query's candidates; higher is better, and only scores of one scorer compare.

    Raises:
        UserError: a direction is none, a picture is not there or does not decode, or a score is not finite.

    >>> from PIL import Image
    >>> class Redness:
    ...     name, fingerprint, reads = "redness", "0", None
    ...     def score(self, image, captions):
    ...         return np.full(len(captions), image.getpixel((0, 0))[0] / 255)
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> for name in ("blue", "red"):
    ...     Image.new("RGB", (8, 8), name).save(f"{folder.name}/{name}.png")
    >>> ranked = rerank_lists(Redness(), {"something red": [f"{folder.name}/blue.png", f"{folder.name}/red.png"]})
    >>> [(Path(path).name, score) for path, score in ranked["something red"]]
    [('red.png', 1.0), ('blue.png', 0.0)]
    """
    if direction not in DIRECTIONS:
        raise UserError(f"direction: expected {' or '.join(map(repr, DIRECTIONS))}; found {direction!r}")
    of_pictures = direction == "image_to_text"
    queries, candidates = list(lists), list(dict.fromkeys(item for row in lists.values() for item in row))
    paths, captions = (queries, candidates) if of_pictures else (candidates, queries)
    if missing := [path for path in paths if not Path(path).is_file()]:
        raise UserError(f"{len(missing)} of {len(paths)} pictures are not there, e.g. {missing[0]!r}")
    if not candidates:
        return {query: [] for query in queries}
    place = {item: number for number, item in enumerate(candidates)}
    query_N = np.repeat(np.arange(len(queries)), [len(row) for row in lists.values()])
    item_N = np.array([place[item] for row in lists.values() for item in row], dtype=np.int64)
    pairs = (query_N, item_N) if of_pictures else (item_N, query_N)
    store = ScoreCache(Path(cache)) if cache is not None else None
    scores_N = complete_scores(scorer, _Listed(paths, captions), CandidateLists.of_pairs(*pairs), cache=store).lookup(*pairs)
    found: dict[str, list[tuple[str, float]]] = {query: [] for query in queries}
    for number in np.lexsort((-scores_N, query_N)).tolist():  # stable
        found[queries[query_N[number]]].append((candidates[item_N[number]], float(scores_N[number])))
    return found
