"""What a report found, in a few lines of at most 78 columns: the last words of every command that makes one."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eval.metrics.stage_metrics import mean_recall_at_1
from eval.progress import say

WIDTH, MOST_LINES = 78, 8
_MOST_STAGES = 3
_TIED = "\xa0"
"""A blank at which no line is folded."""


def answer_lines(record: Mapping[str, Any], *, first: str | None = None, most: int = _MOST_STAGES) -> list[str]:
    """A line of each stage, at most `most`: its mean R@1 of both directions, the first stage it is compared with, the difference with its
    interval, the verdict. Where nothing is compared, each stage's mean.

    Args:
        record: of a report.
        first: the stage that is asked about, told first, and then what reranks it; None: in the report's order.

    >>> row = {"stage": "tuned", "against": "base", "direction": "both", "metric": "R@1", "delta": 0.128, "ci95": [0.083, 0.174],
    ...        "verdict": "better"}
    >>> stages = {name: {"image_to_text": {"R@1": r}, "text_to_image": {"R@1": r}} for name, r in (("base", 0.26), ("tuned", 0.388))}
    >>> answer_lines({"stages": stages, "comparisons": [row]})
    ['tuned  38.8 mean R@1 (base 26.0): +12.8 [+8.3, +17.4] better']
    """
    return [line for group in _answers(record, first, most) for line in group]


def _answers(record: Mapping[str, Any], first: str | None, most: int) -> list[list[str]]:
    """The lines of each stage of `answer_lines`."""
    means = {stage: mean_recall_at_1(figures) for stage, figures in record["stages"].items()}
    first_of_stage: dict[str, Mapping[str, Any]] = {}
    for row in record["comparisons"]:
        if row["metric"] == "R@1" and row["direction"] == "both":
            first_of_stage.setdefault(row["stage"], row)
    compared = list(first_of_stage.values())
    compared.sort(key=lambda row: (row["stage"] != first, not row["stage"].startswith(f"{first}+")))
    if not compared:
        return [folded(f"{stage}  {100 * mean:.1f} mean R@1") for stage, mean in list(means.items())[:most]]
    shown = compared[:most]
    width = max(len(row["stage"]) for row in shown)
    lines = []
    for row in shown:
        low, high = row["ci95"]
        difference = f"{100 * row['delta']:+.1f} [{100 * low:+.1f},{_TIED}{100 * high:+.1f}] {row['verdict'].replace(' ', _TIED)}"
        against = f"({row['against']} {100 * means[row['against']]:.1f}): {difference}"
        lines.append(f"{row['stage'].ljust(width)}  {100 * means[row['stage']]:.1f} mean R@1 {against}")
    groups = [[line] for line in lines]
    if max(map(len, lines)) > WIDTH:  # no name is cut: lines are folded instead
        groups = [folded(line) for line in lines]
    return [[line.replace(_TIED, " ") for line in group] for group in groups]


def chosen_line(record: Mapping[str, Any]) -> str:
    """Which stages have a setting that was chosen, and on which split; empty: none.

    >>> chosen_line({"stages": {}, "fusion": {"stage": "tuned+blip", "fused": "tuned+blip fused", "chosen_on": {"split": "val"}}})
    'chosen on val: a setting of tuned+blip fused'
    """
    found: dict[str, list[str]] = {}
    for value in record.values():
        for section in value if isinstance(value, list) else [value]:
            if isinstance(section, dict) and section.get("chosen_on"):
                name = section.get("fused") or section.get("adaptive") or section.get("stage")
                split = section["chosen_on"].get("split") or "all rows"
                if isinstance(name, str) and name not in found.setdefault(split, []):
                    found[split].append(name)
    return "; ".join(f"chosen on {split}: a setting of {', '.join(names)}" for split, names in found.items())


@dataclass(frozen=True, kw_only=True)
class LastWords:
    """The end of a command.

    Attributes:
        answers: the lines of each stage, the one that matters most before all.
        warnings: what a person must know of the answer, each a sentence; they come before it.
        notes: what else there is, each a sentence.
        places: where what was made lies, a line each.
        next: what to do now; empty: nothing is known.
    """

    answers: Sequence[Sequence[str]] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    places: Sequence[str] = ()
    next: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any] | None, *, first: str | None = None, **more: Any) -> "LastWords":
        """Of a report; without one, of what else there is."""
        if record is None:
            return cls(**more)
        more["notes"] = [*filter(None, [chosen_line(record)]), *more.get("notes", ())]
        return cls(answers=_answers(record, first, _MOST_STAGES), **more)

    def lines(self) -> tuple[list[str], list[str]]:
        """(sentences that find no room, at most MOST_LINES lines): the first answer, warnings, notes and further answers, as far as there
        is room for them in this order; places and what to do next are always there. Only what cannot be folded is wider than WIDTH."""
        end = [*self.places, *self._next_lines()]
        parts = [("warning", text, folded(text)) for text in self.warnings]
        parts += [("answer", "", list(group)) for group in self.answers]
        parts += [("note", text, folded(text)) for text in self.notes]
        first = next((place for place, part in enumerate(parts) if part[0] == "answer"), None)
        order = {"warning": 1, "note": 2, "answer": 3}
        turns = sorted(range(len(parts)), key=lambda place: (0 if place == first else order[parts[place][0]], place))
        room, shown = MOST_LINES - len(end), set[int]()
        for place in turns:
            if len(parts[place][2]) <= room or place == first:
                shown.add(place)
                room -= len(parts[place][2])
        left = [text for place, (_, text, _) in enumerate(parts) if place not in shown and text]
        return left, [*(line for place, part in enumerate(parts) if place in shown for line in part[2]), *end]

    def _next_lines(self) -> list[str]:
        """A command is whole on one line, for people copy it."""
        line, indent = f"next     {self.next}", " " * 9
        why, command = line.partition(": ./launch.sh ")[::2]
        if not self.next or (command and len(line) <= WIDTH):
            return [line] if self.next else []
        return [*folded(f"{why}:", indent), f"{indent}./launch.sh {command}"] if command else folded(line, indent)


def folded(line: str, indent: str = "  ") -> list[str]:
    """A line on as many as it takes; only a word longer than WIDTH is longer. `indent`: of the lines after the first."""
    return textwrap.wrap(" ".join(line.split(" ")), WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def print_answer(words: LastWords | Sequence[str]) -> None:
    """Print the last words after an empty line, and above them what finds no room there; a run's log has them too."""
    above, lines = words.lines() if isinstance(words, LastWords) else ([], words)
    for sentence in above:
        say(sentence)
    say("\n" + "\n".join(lines))
