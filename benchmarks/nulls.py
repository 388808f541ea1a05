"""Do the intervals cover, and how often is a verdict false? Two equally good systems, compared as report.json compares them.

    python -m benchmarks.nulls --simulations 1000 --write          # about five minutes; writes results/nulls.md

Each simulation draws a test set anew: every image has a difficulty of its own, every system a luck of its own with each image and with each
of its captions, so the five captions of an image go wrong together, as real ones do. Under "null" both systems have the same skill, under
"shifted" the second has more, and the true difference is that of a very large set. Next to our intervals stands what drawing captions
one by one (as if five captions were five witnesses) would have said. Shape letters: I images, Q queries.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.conclusion import title_lines
from eval.metrics.comparison import compare
from eval.metrics.metrics import RECALL_AT, recall_at_k
from eval.metrics.significance import ImageSums, interval, resample_weights
from eval.metrics.stage_metrics import StageMetrics
from eval.search.ranking import DIRECTIONS, Direction

CAPTIONS_PER_IMAGE = 5
TABLE = Path(__file__).parents[1] / "results" / "nulls.md"


def system(latent_Q: np.ndarray, image_Q: np.ndarray, num_images: int) -> StageMetrics:
    """A system whose rank for a query is a growing function of how badly it did: about a third of the ranks are 1."""
    ranks_Q = 1 + np.floor(np.exp(np.clip(latent_Q + 0.5, -20, 12))).astype(np.int64)
    columns = [recall_at_k(ranks_Q, k) for k in RECALL_AT]
    return StageMetrics(ranks_Q, image_Q, ImageSums.of(np.stack(columns, axis=1), image_Q, num_images))


def simulate(num_images: int, shift: float, generator: np.random.Generator) -> dict[tuple[str, Direction], StageMetrics]:
    """Systems "a" and "b" in both directions on a freshly drawn test set; b does better by `shift`."""
    difficulty_I = generator.normal(scale=1.5, size=num_images)
    image_of: dict[Direction, np.ndarray] = {
        "image_to_text": np.arange(num_images),
        "text_to_image": np.repeat(np.arange(num_images), CAPTIONS_PER_IMAGE),
    }
    measured: dict[tuple[str, Direction], StageMetrics] = {}
    for name, gain in (("a", 0.0), ("b", shift)):
        luck_I = generator.normal(scale=0.8, size=num_images)
        for direction, image_Q in image_of.items():
            own_Q = generator.normal(scale=0.6, size=len(image_Q))
            measured[name, direction] = system((difficulty_I + luck_I)[image_Q] + own_Q - gain, image_Q, num_images)
    return measured


def true_differences(shift: float, seed: int) -> dict[tuple[str, str], float]:
    """Difference of each recall in each direction, on two million images."""
    total: dict[tuple[str, str], float] = {}
    measured = simulate(2_000_000, shift, np.random.default_rng(seed))
    for column, k in enumerate(RECALL_AT):
        for direction in DIRECTIONS:
            delta = measured["b", direction].sums.means()[column] - measured["a", direction].sums.means()[column]
            total[direction, f"R@{k}"] = float(delta) if shift else 0.0
        total["both", f"R@{k}"] = float(np.mean([total[direction, f"R@{k}"] for direction in DIRECTIONS]))
    return total


def caption_interval(measured: dict[tuple[str, Direction], StageMetrics], generator: np.random.Generator) -> np.ndarray:
    """What a bootstrap over single captions would say of text-to-image R@1."""
    one, other = (measured[name, "text_to_image"].ranks_Q <= 1 for name in ("b", "a"))
    gain_Q = one.astype(np.float64) - other
    values, counts = np.unique(gain_Q, return_counts=True)
    draws = generator.multinomial(len(gain_Q), counts / len(gain_Q), size=2000) @ values / len(gain_Q)
    return interval(draws[:, None])[:, 0]


def study(num_simulations: int, num_images: int, shift: float, seed: int) -> dict[str, float]:
    """Shares over all simulations: intervals that cover (all rows; the headline), simulations with a verdict, captions' that cover."""
    truth = true_differences(shift, seed + 1)
    generator, weights_SI = np.random.default_rng(seed), resample_weights(num_images)
    covered, headline, spoken, wrong, naive = [], [], [], [], []
    for _ in range(num_simulations):
        measured = simulate(num_images, shift, generator)
        rows = compare(measured, [("b", "a")], weights_SI)
        inside = [row["ci95"][0] <= truth[row["direction"], row["metric"]] <= row["ci95"][1] for row in rows]
        covered.append(np.mean(inside))
        headline.append(next(i for i, row in zip(inside, rows, strict=True) if (row["direction"], row["metric"]) == ("both", "R@1")))
        spoken.append(any(row["verdict"] != "no evidence" for row in rows))
        wrong.append(any(row["verdict"] == "worse" for row in rows))
        low, high = caption_interval(measured, generator)
        naive.append(low <= truth["text_to_image", "R@1"] <= high)
    names = ("covered", "headline_covered", "any_verdict", "any_worse", "captions_covered")
    return {name: float(np.mean(values)) for name, values in zip(names, (covered, headline, spoken, wrong, naive), strict=True)}


def main() -> None:
    """Run the study; print the table, and write it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    asked = parser.parse_args()
    command = f"python -m benchmarks.nulls --simulations {asked.simulations} --seed {asked.seed} --write"
    lines = [
        *title_lines("nulls", "Do the intervals cover, and how often is a verdict false?"),
        f"`{command}`. Each row: {asked.simulations} simulated test sets with",
        "five captions an image that go wrong together; nine comparisons each (R@1, R@5, R@10; each direction and both), as in",
        "report.json. Percent of intervals that hold the true difference (95 is meant), and of simulations in which any verdict was",
        "spoken (under the null at most 5 is meant).",
        "",
        '| images | truth | all intervals | both, R@1 | any verdict | any "worse" | text to image R@1, captions drawn one by one |',
        "|---|---|---|---|---|---|---|",
    ]
    for num_images in (100, 300, 1000):
        for truth, shift in (("null", 0.0), ("shifted", 0.15)):
            began = time.perf_counter()
            shares = study(asked.simulations, num_images, shift, asked.seed)
            lines.append(f"| {num_images} | {truth} | " + " | ".join(f"{100 * share:.1f}" for share in shares.values()) + " |")
            print(lines[-1], f"{time.perf_counter() - began:.0f} s", flush=True)
    if asked.write:
        TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
