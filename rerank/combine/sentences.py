"""What a report says of ensembles and expansions, in words."""

from typing import Any

from eval.metrics.k_sweep import curves_over
from eval.report.render import show_interval
from eval.search.ranking import DIRECTIONS
from rerank.reorder.record import split_in_words

COMBINATION_WORDS = {
    "logits": "mean of logits",
    "reciprocal-rank": "reciprocal ranks",
}
POOLING_WORDS = {"mean": "mean vector", "max": "maximum", "log-sum-exp": "log-sum-exp", "reciprocal-rank": "reciprocal ranks"}
SIDE_WORDS = {"captions": "text queries", "images": "image queries", "candidates": "images that are searched"}
_MOST_POINTS = 20
_AXIS_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def ensemble_line(record: dict[str, Any]) -> str:
    """One sentence on an ensemble: what it is, against the better of its members, and what it costs."""
    better = next(row for row in record["measured"] if row["stage"] == record["better_member"])
    active = [member for member in record["members"] if member["weight"] > 0]
    shares = " + ".join(f"{member['weight']:.3g} {member['stage']}" for member in record["members"])
    what = f"{COMBINATION_WORDS[record['combination']]}, {shares}" if len(active) > 1 else f"{active[0]['stage']} alone"
    origin = f"chosen on {split_in_words(record)}" if record["chosen_on"] else "as given"
    line = (
        f"{record['stage']}: {what}, {origin}; against the better member, {better['stage']}, "
        f"{100 * better['delta']:+.2f} points of mean R@1 {show_interval(better['ci95'])}: {better['verdict']}; "
        f"{record['cost']['extra_seconds']:+.1f} s against {record['cost']['base']['stage']}"
    )
    same = record["same_seconds"]
    if same is None:
        return line
    bought = f"{same['stage']} at K = {same['k']}" if same["k"] > 1 else "no reranking"
    return f"{line}, which would buy {bought}: the ensemble is {100 * same['delta']:+.2f} points against that {show_interval(same['ci95'])}"


def expansion_lines(record: dict[str, Any], split: str | None) -> list[str]:
    """A sentence on an expansion for each direction it changes; where it hurts, that it should be left off.

    Args:
        split: that is measured.
    """
    name = f"expansion {record['name']} ({record['stage']})"
    if record["pool"] is None:
        return [f"{name}: off" + (f", chosen on {split_in_words(record)}" if record["chosen_on"] else "")]
    origin = f"chosen on {split_in_words(record)}" if record["chosen_on"] else "as given"
    lines = []
    for row in record["measured"].values():
        found = f"{row['verdict']} on {split or 'all rows'} ({100 * row['delta']:+.2f} {show_interval(row['ci95'])})"
        end = "leave it off" if row["verdict"] == "worse" else f"{pool_in_words(record['pool'])}, {origin}"
        lines.append(f"{name}: {found}: {end}")
    return lines


def pool_in_words(pool: dict[str, Any] | None) -> str:
    """How views are pooled.

    >>> pool_in_words({"pooling": "mean", "number": 4, "weight": 0.5})
    'mean vector of up to 4 views at weight 0.5'
    >>> pool_in_words({"pooling": "max", "number": None, "weight": 1.0})
    'maximum of all views at weight 1'
    """
    if pool is None:
        return "off"
    views = "all views" if pool["number"] is None else "1 view" if pool["number"] == 1 else f"up to {pool['number']} views"
    return f"{POOLING_WORDS[pool['pooling']]} of {views} at weight {pool['weight']:g}"


def weight_curves(curve: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By combination, R@1 over the weight of the second of two members, drawn as `eval.metrics.k_sweep.curves` draws; none for other
    numbers."""
    if not curve or len(curve[0]["weights"]) != 2:
        return {}
    drawn = {}
    for combination in dict.fromkeys(point["combination"] for point in curve):
        points = sorted((point for point in curve if point["combination"] == combination), key=lambda point: point["weights"][1])
        rows = [
            {"weight": point["weights"][1], "direction": direction, "R@1": point["R@1"][direction], "ci95": point["ci95"][direction]}
            for point in points
            for direction in DIRECTIONS
        ]
        whole = curves_over(rows, "weight")
        drawn[combination] = whole | {"places": {weight: x for weight, x in whole["places"].items() if weight in _AXIS_WEIGHTS}}
    return drawn


def best_points(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The 20 points with the best mean R@1 of both directions; of equal ones those tried first."""
    return sorted(curve, key=lambda point: -round(point["R@1"]["both"], 12))[:_MOST_POINTS]
