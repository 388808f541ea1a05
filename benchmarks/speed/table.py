"""What the measurements of a row say: ratios with their spread, the arithmetic limit, falls, and the page results/speed.md.

A ratio is taken within a round, in which the systems take turns; its spread is the smallest and the largest of the rounds. A row falls
where its fastest round is slower than the slowest one before, by more than TOLERANCE: two machines' noise overlaps, a change does not.
"""

import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.speed.rows import Row

TOLERANCE = 0.03
QUIET = 0.2  # cores: more of them for other work, and a measurement says little
OURS, BEFORE = "ours", "before"
_RESOURCES = {"float32": "float32 products", "bfloat16": "bf16 products", "memory": "memory", "disk": "the disk"}


@dataclass
class Measured:
    """The measurements of a row.

    Attributes:
        rounds: of each system, the result of each round: seconds, and amount, work, floor, megabytes where the row has them
            (benchmarks/speed/rows.py); None: it failed.
        others: cores of this machine that other work took meanwhile, of each measurement.
        notes: what there is to say: a peer that is missing, a system that failed.
    """

    row: Row
    rounds: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)
    others: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def seconds(self, system: str) -> list[float]:
        """Of each round that did not fail."""
        return [one["seconds"] for one in self.rounds.get(system, []) if one is not None]

    def ratios(self, system: str) -> list[float]:
        """Seconds of a system over ours, round by round: how many times as fast ours is."""
        both = zip(self.rounds.get(system, []), self.rounds.get(OURS, []), strict=False)
        return [one["seconds"] / max(ours["seconds"], 1e-3) for one, ours in both if one is not None and ours is not None]

    @property
    def is_fall(self) -> bool:
        """Whether ours is slower than before, beyond the spread.

        >>> row = Row("r", "", "s", "")
        >>> Measured(row, {"ours": [{"seconds": 1.2}, {"seconds": 1.3}], "before": [{"seconds": 1.0}, {"seconds": 1.1}]}).is_fall
        True
        >>> Measured(row, {"ours": [{"seconds": 1.0}, {"seconds": 1.3}], "before": [{"seconds": 1.0}, {"seconds": 1.1}]}).is_fall
        False
        """
        ours, before = self.seconds(OURS), self.seconds(BEFORE)
        return bool(ours and before) and min(ours) > max(before) * (1 + TOLERANCE)

    @property
    def is_disturbed(self) -> bool:
        """Whether other work took more than a share of a core."""
        return bool(self.others) and statistics.median(self.others) > QUIET

    @property
    def failed(self) -> bool:
        """Whether ours did not run in any round."""
        return not self.seconds(OURS)

    def limit(self, rates: dict[str, float]) -> tuple[float, str] | None:
        """(seconds that the work takes at least on this machine, what limits it); None where the row states no work."""
        done = [one for one in self.rounds.get(OURS, []) if one is not None]
        if done and "floor" in done[0]:
            return min(one["floor"] for one in done), "decoding and resizing alone"
        work = done[0].get("work", {}) if done else {}
        found = [(amount / rates[resource], _RESOURCES[resource]) for resource, amount in work.items() if resource in rates]
        return max(found) if found else None


def cells(measured: Measured, rates: dict[str, float]) -> list[str]:
    """A line of the table, cell by cell: what, ours, before, peers, times as fast as before, as the peers, limit, distance, others."""
    row = measured.row
    peers = [peer.name for peer in row.peers if measured.seconds(peer.name)]
    limit = measured.limit(rates)
    ours = statistics.median(measured.seconds(OURS)) if not measured.failed else None
    return [
        f"{row.name}: {row.what}",
        _figure(measured, OURS),
        _figure(measured, BEFORE),
        ratio_text(measured.ratios(BEFORE)) + (" **slower**" if measured.is_fall else ""),
        "; ".join(f"{name} {_figure(measured, name)}" for name in peers),
        "; ".join(ratio_text(measured.ratios(name)) for name in peers),
        "" if limit is None else f"{_value(row, limit[0], _amount(measured))} ({limit[1]})",
        "" if limit is None or ours is None else f"{ours / limit[0]:.1f}",
        "" if not measured.others else f"{statistics.median(measured.others):.1f}",
    ]


HEADINGS = ("row", "ours", "before", "times as fast as before", "peer", "times as fast as the peer", "limit", "times the limit", "others")


def ratio_text(ratios: list[float]) -> str:
    """Median with spread.

    >>> ratio_text([2.0, 1.5, 3.0])
    '2.00 (1.50 to 3.00)'
    """
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if ratios else ""


def table(all_measured: list[Measured], rates: dict[str, float]) -> list[str]:
    """The lines of the table, as Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    return [*lines, *("| " + " | ".join(cells(measured, rates)) + " |" for measured in all_measured)]


def conclusion(all_measured: list[Measured], before: str | None) -> str:
    """The page's first line.

    >>> conclusion([Measured(Row("r", "", "s", ""), {"ours": [{"seconds": 1.0}]})], None)
    'No earlier commit was measured.'
    """
    with_before = [measured for measured in all_measured if measured.ratios(BEFORE)]
    if before is None or not with_before:
        return "No earlier commit was measured."
    ratios = {measured.row.name: statistics.median(measured.ratios(BEFORE)) for measured in with_before}
    best = sorted(ratios, key=lambda name: -ratios[name])[:3]
    gains = ", ".join(f"{name} {ratios[name]:.2f}" for name in best if ratios[name] > 1 + TOLERANCE)
    falls = [measured.row.name for measured in with_before if measured.is_fall]
    first = f"Slower than at {before}: {', '.join(falls)}" if falls else f"No row of {len(with_before)} is slower than at {before}"
    return first + (f"; times as fast, the most: {gains}." if gains else ".")


def page(all_measured: list[Measured], rates: dict[str, float], command: str, machine: str, first: str) -> str:
    """results/speed.md; `first`: its conclusion."""
    notes = [f"- {measured.row.name}: {note}" for measured in all_measured for note in measured.notes]
    made = [f"({name}.md)" for name in dict.fromkeys(page for measured in all_measured for page in measured.row.pages)]
    units = {"memory": "GB/s", "disk": "GB/s"}
    shown = ", ".join(f"{_RESOURCES[name]} {rate / 1e9:,.1f} {units.get(name, 'GFLOP/s')}" for name, rate in rates.items())
    with_before = sum(bool(measured.ratios(BEFORE)) for measured in all_measured)
    text = [
        "# Speed, side by side",
        "",
        f"**{first}**",
        "",
        f"`{command}`; {machine}. {len(all_measured)} rows, {with_before} of them with an earlier commit.",
        "",
        "Each measurement is a process of its own; in a round the systems take turns. `before` is an earlier commit with the same "
        "measuring code. Ratios are medians of the rounds, with the smallest and the largest. `limit` is what the row's arithmetic takes "
        f"at this machine's own best rates, measured next to the rows: {shown}. `others`: cores that other work took meanwhile.",
        "",
        *table(all_measured, rates),
        *(["", "Notes:", "", *notes] if notes else []),
        *(["", f"More on single rows, by commands of their own: {', '.join(f'[{name[1:-4]}]{name}' for name in made)}."] if made else []),
    ]
    return "\n".join(text) + "\n"


def _amount(measured: Measured) -> float:
    done = next((one for one in measured.rounds.get(OURS, []) if one is not None), {})
    return float(done.get("amount", 1))


def _figure(measured: Measured, system: str) -> str:
    """A system's median, in the row's unit, with the memory it took."""
    done = [one for one in measured.rounds.get(system, []) if one is not None]
    if not done:
        return ""
    value = _value(measured.row, statistics.median(one["seconds"] for one in done), done[0].get("amount", 1))
    return value + (f", {statistics.median(one['megabytes'] for one in done):,.0f} MB" if "megabytes" in done[0] else "")


def _value(row: Row, seconds: float, amount: float) -> str:
    return f"{seconds:.2f} s" if row.unit == "s" else f"{amount / max(seconds, 1e-9):,.1f} {row.unit}"
