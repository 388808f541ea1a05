"""Which rule of skipping holds its limit on queries it was not chosen on? Halvings of the demo's test set, from its committed rows.

    python -m benchmarks.skip_rules --write          # seconds; writes results/skip-rules.md

BLIP's scores of every candidate are in results/demo/queries.parquet, so nothing is scored. In each halving of the images a margin is
chosen on one half and measured on the other: the share of all pairs it saves, and by how much the mean R@1 of both directions falls there
against scoring everything. Shape letters: Q queries, T candidates of each, M margins, I images.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.conclusion import title_lines
from eval.dataset.retrieval_set import RetrievalSet, load_split
from eval.manifest.manifest import read_manifest
from eval.search.ranking import DIRECTIONS, Direction

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "results" / "skip-rules.md"
NUM_MARGINS, NUM_HALVINGS, LIMIT = 50, 200, 0.001


@dataclass(frozen=True)
class TopK:
    """The candidates of one direction, in first-stage order.

    Attributes:
        items_QT: gallery indices.
        trails_QT: by how much the first stage's score trails the query's first.
        match_QT: the reranker's scores.
        right_QT: bool, relevant items.
        image_Q: the image each query belongs to.
    """

    items_QT: np.ndarray
    trails_QT: np.ndarray
    match_QT: np.ndarray
    right_QT: np.ndarray
    image_Q: np.ndarray

    @classmethod
    def read(cls, dataset: RetrievalSet, stage: str, direction: Direction) -> "TopK":
        """Those of `stage` and `stage`+blip in the committed rows."""
        images, captions = list(dataset.image_ids), list(dataset.caption_ids)
        queries, gallery = (images, captions) if direction == "image_to_text" else (captions, images)
        number = {name: place for place, name in enumerate(gallery)}
        table = pq.read_table(ROOT / "results" / "demo" / "queries.parquet")
        rows = {}
        for name in (stage, f"{stage}+blip"):
            own = table.filter(pc.and_(pc.equal(table["stage"], name), pc.equal(table["direction"], direction)))
            assert own["query_id"].to_pylist() == queries
            rows[name] = [list(map(number.__getitem__, ids)) for ids in own["top_ids"].to_pylist()], np.stack(own["top_scores"].to_numpy())
        (items, first_QT), (order, said_QT) = rows[stage], rows[f"{stage}+blip"]
        said = [dict(zip(row, scores.tolist(), strict=True)) for row, scores in zip(order, said_QT, strict=True)]
        match_QT = np.array([[known[item] for item in row] for known, row in zip(said, items, strict=True)])
        positives = dataset.positives(direction)
        right_QT = np.array([np.isin(row, positives.of(query)) for query, row in enumerate(items)])
        trails_QT = first_QT[:, :1].astype(np.float64) - first_QT
        trails_QT[:, 0] = trails_QT[:, 1]
        image_Q = np.arange(len(images)) if direction == "image_to_text" else dataset.caption_image_C
        return cls(np.array(items), trails_QT, match_QT, right_QT, image_Q)

    def whole(self) -> "TopK":
        """The same, where a query is skipped whole or not at all: every candidate counts as trailing like the second."""
        return TopK(self.items_QT, np.broadcast_to(self.trails_QT[:, :1], self.trails_QT.shape), self.match_QT, self.right_QT, self.image_Q)

    def changes(self, margins_M: np.ndarray) -> np.ndarray:
        """int8, shape (M, Q): 1 where scoring everything is right and the margin is not, -1 the other way round."""
        rows, found = np.arange(len(self.items_QT)), []
        for margin in [*margins_M.tolist(), np.inf]:
            kept_QT = self.trails_QT < margin
            kept_QT[:, 0] = True
            found.append(self.right_QT[rows, np.where(kept_QT, self.match_QT, -np.inf).argmax(axis=1)].astype(np.int8))
        return found[-1] - np.stack(found[:-1])


def saved_shares(heads: tuple[TopK, TopK], margins_M: np.ndarray) -> np.ndarray:
    """Share of the pairs of both directions that neither needs, shape (M, M): by the margin of images that ask, and of captions that do."""
    first_needed: dict[tuple[int, int], list[int]] = {}
    for side, head in enumerate(heads):
        needed_QT = np.searchsorted(margins_M, head.trails_QT, side="right")  # the first margin above the trail
        for query, (items, places) in enumerate(zip(head.items_QT.tolist(), needed_QT.tolist(), strict=True)):
            for item, place in zip(items, places, strict=True):
                pair = (query, item) if side == 0 else (item, query)
                first_needed.setdefault(pair, [len(margins_M), len(margins_M)])[side] = place
    counts = np.zeros((len(margins_M) + 1,) * 2)
    np.add.at(counts, tuple(np.array(list(first_needed.values())).T), 1)
    at_least = counts[::-1, ::-1].cumsum(axis=0).cumsum(axis=1)[::-1, ::-1]
    return at_least[1:, 1:] / len(first_needed)


def choose(limited_MM: np.ndarray, saved_MM: np.ndarray, one_margin: bool) -> tuple[int, int]:
    """The places of the margins that save most where the limit is kept by them and by all larger ones."""
    if one_margin:
        worst_M = np.maximum.accumulate(np.diagonal(limited_MM)[::-1])[::-1]
        place = int(np.argmax(np.where(worst_M <= LIMIT + 1e-9, np.diagonal(saved_MM), -1)))
        return place, place
    worst_MM = np.maximum.accumulate(np.maximum.accumulate(limited_MM[::-1, ::-1], axis=0), axis=1)[::-1, ::-1]
    row, column = np.unravel_index(np.argmax(np.where(worst_MM <= LIMIT + 1e-9, saved_MM, -1)), saved_MM.shape)
    return int(row), int(column)


def study(heads: tuple[TopK, TopK], one_margin: bool, offset: bool, seed: int = 0) -> dict[str, float]:
    """Over halvings: mean of pairs saved, mean and deviation of the fall of R@1 on the other half, share of halvings above the limit."""
    trails = np.concatenate([head.trails_QT[:, 1:].ravel() for head in heads])
    margins_M = np.append(np.unique(np.quantile(trails, np.linspace(0, 1, NUM_MARGINS))), np.inf)
    saved_MM, changes = saved_shares(heads, margins_M), [head.changes(margins_M) for head in heads]
    generator, num_images = np.random.default_rng(seed), int(heads[0].image_Q.max()) + 1
    saved, falls = [], []
    for _ in range(NUM_HALVINGS):
        is_chosen_I = np.zeros(num_images, dtype=bool)
        is_chosen_I[generator.permutation(num_images)[: num_images // 2]] = True

        def mean_MM(is_in_I: np.ndarray, lost_only: bool) -> np.ndarray:
            to_text_M, to_image_M = (
                (np.maximum(change, 0) if lost_only else change)[:, is_in_I[head.image_Q]].mean(axis=1)
                for change, head in zip(changes, heads, strict=True)
            )
            return (to_text_M[:, None] + to_image_M[None, :]) / 2

        place = choose(mean_MM(is_chosen_I, not offset), saved_MM, one_margin)
        saved.append(saved_MM[place])
        falls.append(mean_MM(~is_chosen_I, False)[place])
    return {"saved": np.mean(saved), "fall": np.mean(falls), "deviation": np.std(falls), "passed": np.mean(np.array(falls) > LIMIT + 1e-9)}


def main() -> None:
    """Run the study; print the table, and write it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    dataset = load_split(read_manifest(ROOT / "demo" / "data" / "scenes.parquet", columns={"group": "scene"}), "test")
    lines = [
        *title_lines("skip-rules", "Which rule of skipping holds its limit on queries it was not chosen on?"),
        f"`python -m benchmarks.skip_rules --write`, from results/demo/queries.parquet (top 16): {NUM_HALVINGS} halvings of the demo's",
        f"{dataset.num_images} test images. Margins are chosen on one half to save most for at most {100 * LIMIT:g} points, counted as",
        "answers lost or as the fall of mean R@1 (lost less gained), and measured on the other half: by how much it falls, in points.",
        "",
        "| first stage | what is skipped | margin | limit on | pairs saved | fall elsewhere | its deviation | above the limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage in ("base", "tuned"):
        heads = (TopK.read(dataset, stage, DIRECTIONS[0]), TopK.read(dataset, stage, DIRECTIONS[1]))
        wholes = (heads[0].whole(), heads[1].whole())
        for what, scored in (("candidates", heads), ("whole queries", wholes)):
            for one_margin in (True, False):
                for offset in (False, True):
                    found = study(scored, one_margin, offset)
                    margin, limit = "one" if one_margin else "one a direction", "fall" if offset else "answers lost"
                    lines.append(
                        f"| {stage} | {what} | {margin} | {limit} | {100 * found['saved']:.1f}% | {100 * found['fall']:+.2f} | "
                        f"{100 * found['deviation']:.2f} | {100 * found['passed']:.0f}% |"
                    )
                    print(lines[-1], flush=True)
    if asked.write:
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
