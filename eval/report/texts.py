"""What of a set's captions a person should know before it is measured or trained on: repeated texts, texts that are one by the rule of
normalised captions, and what a tokenizer cuts, does not know or cannot tell apart. Counted, with examples, at the start and in the report.

Shape letters: C captions.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.captions import has_marks, normalise
from eval.dataset.different_texts import LARGE_SHARE
from eval.encoder.caption_tokens import CaptionTokens, of_equal_tokens
from eval.report.render import DIRECTION_WORDS, TEMPLATES, show
from eval.report.section import Section, SectionFormat
from eval.search.ranking import DIRECTIONS

_MOST_EXAMPLES = 3
_SHOWN_CHARACTERS = 80
_OTHER_METRICS = ("R@1", "R@5", "R@10", "median_rank")


def text_record(
    captions: Sequence[str], hash_C: np.ndarray, tokens: Mapping[str, CaptionTokens], *, gallery: str = "every"
) -> dict[str, Any]:
    """What is known of captions, as report.json has it.

    Args:
        hash_C: int64, of their normalised texts.
        tokens: what the tokenizer of each stage makes of them.
        gallery: which captions a report ranks (eval/dataset/different_texts.py).
    """
    found: list[dict[str, Any]] = []
    for stage, read in tokens.items():
        figures = _token_figures(captions, hash_C, read)
        same = next((one for one in found if {**one, "stages": None} == {**figures, "stages": None}), None)
        if same is None:
            found.append({"stages": [stage], **figures})
        else:
            same["stages"].append(stage)
    return {
        "num_captions": len(captions),
        "num_different": len(np.unique(hash_C)),
        "gallery": gallery,
        "digit_marks": _marked_texts(captions, hash_C),
        "tokens": found,
    }


def _token_figures(captions: Sequence[str], hash_C: np.ndarray, tokens: CaptionTokens) -> dict[str, Any]:
    equal_C = of_equal_tokens(tokens.key_C, hash_C)
    return {
        "num_tokens": tokens.num_tokens,
        "cut": _counted(captions, tokens.is_cut_C),
        "unknown": _counted(captions, tokens.is_unknown_C),
        "equal": {"num_captions": int(equal_C.sum()), "examples": _pairs(captions, np.flatnonzero(equal_C), tokens.key_C, hash_C)},
    }


def _counted(captions: Sequence[str], is_one_C: np.ndarray) -> dict[str, Any]:
    texts = dict.fromkeys(_shortened(captions[int(caption)]) for caption in np.flatnonzero(is_one_C)[: 20 * _MOST_EXAMPLES])
    return {"num_captions": int(is_one_C.sum()), "examples": list(texts)[:_MOST_EXAMPLES]}


def _pairs(captions: Sequence[str], chosen: np.ndarray, key_C: np.ndarray, hash_C: np.ndarray) -> list[list[str]]:
    """Two different texts of each of the first keys among the chosen captions."""
    texts: dict[int, dict[int, str]] = defaultdict(dict)
    pairs = 0
    for caption, key, text in zip(chosen.tolist(), key_C[chosen].tolist(), hash_C[chosen].tolist(), strict=True):
        if len(texts[key]) < 2 and text not in texts[key]:
            texts[key][text] = _shortened(captions[caption])
            pairs += len(texts[key]) == 2
            if pairs == _MOST_EXAMPLES:
                break
    return [list(pair.values()) for pair in texts.values() if len(pair) == 2]


def _marked_texts(captions: Sequence[str], hash_C: np.ndarray) -> dict[str, Any]:
    """Different texts that the rule makes one by what it strips between two digits."""
    with_marks = np.array([has_marks(caption) for caption in captions], dtype=bool)
    kept: dict[int, dict[str, str]] = defaultdict(dict)  # hash -> texts with their marks, each with a caption of it
    for caption in np.flatnonzero(np.isin(hash_C, hash_C[with_marks])).tolist():
        kept[int(hash_C[caption])].setdefault(normalise(captions[caption], keeps_marks=True), _shortened(captions[caption]))
    merged = [list(texts.values()) for texts in kept.values() if len(texts) > 1]
    return {"num_texts": sum(map(len, merged)), "num_left": len(merged), "examples": [texts[:2] for texts in merged[:_MOST_EXAMPLES]]}


def _shortened(text: str) -> str:
    """A caption with its middle left out where it is long: what differs is often at the end."""
    half = _SHOWN_CHARACTERS // 2 - 2
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:half]} … {text[-half:]}"


def text_lines(record: Mapping[str, Any], *, measured: bool = True) -> list[str]:
    """Sentences on what there is to know; none where every text is different and read whole.

    Args:
        measured: say what repeated texts do to an evaluation too.
    """
    return _set_lines(record, measured=measured) + _read_lines(record)


def _set_lines(record: Mapping[str, Any], *, measured: bool) -> list[str]:
    """What there is to know of the texts themselves."""
    num_captions, num_different = record["num_captions"], record["num_different"]
    lines = []
    if num_different < num_captions:
        is_large = measured and record["gallery"] == "every" and 1 - num_different / num_captions > LARGE_SHARE
        lines.append(f"{num_different:,} different texts among {num_captions:,} captions{_GALLERIES if is_large else ''}")
    marks = record["digit_marks"]
    if marks["num_texts"]:
        lines.append(
            f"{marks['num_texts']:,} different texts are {marks['num_left']:,} by the rule, which strips punctuation between digits too"
            f"{_examples([_equation(pair) for pair in marks['examples']])}"
        )
    return lines


def _read_lines(record: Mapping[str, Any]) -> list[str]:
    """What a tokenizer makes of them."""
    lines = []
    for one in record["tokens"]:
        whose = f"{', '.join(one['stages'])}: " if len(record["tokens"]) > 1 else ""
        lines += [f"{whose}{line}" for line in token_lines(one)]
    return lines


_GALLERIES = (
    ": an image's first places go to repeats of few texts; --gallery different (evaluation.gallery: different) ranks each text once"
)


def token_lines(figures: Mapping[str, Any]) -> list[str]:
    """Sentences on what one tokenizer makes of captions; none where it reads each whole and tells all apart."""
    cut, unknown, equal = figures["cut"], figures["unknown"], figures["equal"]
    lines = []
    if cut["num_captions"]:
        longer = f"longer than the {figures['num_tokens']} tokens that the text tower reads, and cut"
        lines.append(f"{_captions(cut['num_captions'])} {longer}{_examples(map(repr, cut['examples']))}")
    if unknown["num_captions"]:
        nothing = "without anything that the tokenizer knows"
        lines.append(f"{_captions(unknown['num_captions'])} {nothing}{_examples(map(repr, unknown['examples']))}")
    if equal["num_captions"]:
        same = "of the same tokens as one of another text: the model cannot tell them apart"
        lines.append(f"{_captions(equal['num_captions'])} {same}{_examples(map(_equation, equal['examples']))}")
    return lines


def _captions(number: int) -> str:
    return f"{number:,} caption{'s are' if number > 1 else ' is'}"


def _equation(pair: Sequence[str]) -> str:
    return " = ".join(map(repr, pair))


def _examples(texts: Any) -> str:
    shown = "; ".join(texts)
    return f", e.g. {shown}" if shown else ""


def _other_lines(record: Mapping[str, Any]) -> list[str]:
    """R@1, R@5, R@10 and the median rank of each stage over the other gallery."""
    other = record.get("other_gallery")
    if other is None:
        return []
    return [
        f"gallery {other['gallery']} ({other['num_captions']:,} captions), {stage}, {DIRECTION_WORDS[direction]}: "
        + ", ".join(f"{metric.replace('_', ' ')} {show(metric, values[direction][metric])}" for metric in _OTHER_METRICS)
        for stage, values in other["stages"].items()
        for direction in DIRECTIONS
    ]


TEXTS = SectionFormat(
    key="texts",
    title="Other gallery",
    template=TEMPLATES / "report_texts.html.j2",
    notes=lambda record: [f"Texts: {line}." for line in _set_lines(record, measured=True)],
    warnings=lambda record: [f"Texts: {line}." for line in _read_lines(record)],
    lines=lambda record, data: [f"texts: {line}" for line in text_lines(record)] + _other_lines(record),
    names={"metrics": _OTHER_METRICS},
)
"""What the captions of a report's split are like, and what the other gallery would give where many repeat a text."""


def texts_section(record: Mapping[str, Any], other_gallery: Mapping[str, Any] | None = None) -> Section:
    """The section of a report; other_gallery: `gallery`, `num_captions`, and the metrics of its `stages`."""
    return Section(TEXTS, dict(record) | ({"other_gallery": other_gallery} if other_gallery is not None else {}))
