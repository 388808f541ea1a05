"""A split of given captions, without pictures, that the tests of expansions share."""

from pathlib import Path

from eval.dataset.retrieval_set import RetrievalSet
from eval.manifest.manifest import ManifestImage


def split_of(*captions: list[str], texts: list[list[list[str]]] | None = None) -> RetrievalSet:
    """Images i0, i1, ... with these captions; `texts`: of each image, beside each caption, what its column `said` holds."""
    rows = [
        ManifestImage(
            f"i{number}", "test", Path("none"), None, 0, None, list(own), "made", {}, {} if texts is None else {"said": texts[number]}
        )
        for number, own in enumerate(captions)
    ]
    return RetrievalSet(rows, None, source="made", split="test")
