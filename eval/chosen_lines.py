"""What was chosen on another split, in words: of the sections `fusion` and `adaptive` of a report."""

from typing import Any

from eval.page import show_interval


def fusion_line(record: dict[str, Any]) -> str:
    """One sentence on a fused stage."""
    fused = record["measured"][-1]
    return (
        f"{record['fused']}: weight {record['weight']:g} of the first stage, chosen on {split_in_words(record)}; against {record['stage']} "
        f"{100 * fused['delta']:+.2f} points of mean R@1 {show_interval(fused['ci95'])}"
    )


def adaptive_line(record: dict[str, Any]) -> str:
    """One sentence on an adaptive stage."""
    measured = record["measured"]
    where = "nothing may be skipped" if record["margin"] is None else f"what trails by {record['margin']:.4f} is skipped"
    return (
        f"{record['adaptive']}: {where}, chosen on {split_in_words(record)} for a loss of at most {100 * record['max_loss']:g} points; "
        f"{100 * measured['share_saved']:.1f}% of {measured['pairs']:,} pairs saved, mean R@1 {0.0 - 100 * measured['loss']:+.2f} points "
        f"{show_interval([0.0 - end for end in reversed(measured['ci95'])])}"
    )


def chosen_lines(record: dict[str, Any]) -> list[str]:
    """The sentences of a report's record; none where nothing was chosen."""
    return [fusion_line(each) for each in record.get("fusion", [])] + [adaptive_line(each) for each in record.get("adaptive", [])]


def split_in_words(record: dict[str, Any]) -> str:
    """The split something was chosen on."""
    chosen_on = record["chosen_on"]
    return f"{chosen_on['split'] or 'all rows'} ({chosen_on['num_images']:,} images)"
