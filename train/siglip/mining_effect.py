"""What a run's mining came to: how much it mined, and whether the exported weights were trained with any of it.

The model card, the report and the terminal's end take their sentences from here, and so say the same.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.section import SectionFormat
from train.config.job import JobConfig
from train.config.mining import MiningConfig
from train.engine.checkpoint import State
from train.mining.report import RULES, MiningReport

LEAST_PER_IMAGE = 0.5
"""Mined captions an image, on average, under which mining is said to mine almost nothing."""
MINING = SectionFormat(key="mining", warnings=lambda record: record["notes"])
"""The section of a report on mining; its record is `MiningEffect.as_record`."""


@dataclass(frozen=True, kw_only=True)
class MiningEffect:
    """What the refreshes of a run mined, seen from one of its checkpoints.

    Attributes:
        mining: what was asked for.
        step: of the checkpoint.
        first_step: of the first refresh; None where there was none.
        num_refreshes: of the whole run.
        num_queries, num_mined: images mined for and captions mined, as positives too, over all refreshes (in the form `images` the
            other way round).
        filtered_out: candidates by the rule that filtered them out, over all refreshes.
        is_trained_with: whether a step of the checkpoint was trained with something mined.
    """

    mining: MiningConfig
    step: int
    first_step: int | None
    num_refreshes: int
    num_queries: int
    num_mined: int
    filtered_out: Mapping[str, int]
    is_trained_with: bool

    @classmethod
    def of(cls, mining: MiningConfig, refreshes: Iterable[Mapping[str, Any]], step: int) -> "MiningEffect":
        """From the mining reports of a run, in order.

        Args:
            refreshes: their records, with `step`, as lines of metrics.jsonl; without any, a checkpoint after start_step counts as trained
                with what was mined then.
            step: of the checkpoint.

        >>> refresh = {"step": 20, "num_images": 100, "num_mined": 30, "num_relabelled": 0, "filtered_out": {"margin": 900}}
        >>> effect = MiningEffect.of(MiningConfig(mine_every_steps=20, start_step=20), [refresh], 20)
        >>> effect.per_query, effect.is_trained_with
        (0.3, False)
        """
        lines, filtered_out = list(refreshes), dict[str, int]()
        for line in lines:
            for rule, count in (line.get("filtered_out") or line.get("passed_over") or {}).items():  # as earlier versions called it
                filtered_out[rule] = filtered_out.get(rule, 0) + count
        used = [line for line in lines if line["step"] < step and _num_rows(line)]
        return cls(
            mining=mining,
            step=step,
            first_step=lines[0]["step"] if lines else None,
            num_refreshes=len(lines),
            num_queries=sum(line["num_images"] for line in lines),
            num_mined=sum(_num_rows(line) for line in lines),
            filtered_out=filtered_out,
            is_trained_with=bool(used) if lines else step > mining.start_step,
        )

    @property
    def per_query(self) -> float | None:
        """Mined captions an image (in the form `images`: images a caption), on average over the refreshes; None without any."""
        return self.num_mined / self.num_queries if self.num_queries else None

    def sentences(self) -> list[str]:
        """What a reader of the figures must know, a sentence each; none where the weights were trained with enough that was mined."""
        mined, _ = _words(self.mining)
        found = []
        if not self.is_trained_with:
            when = self.mining.start_step if self.first_step is None else self.first_step
            why = f"mining began after step {when}" if self.step <= when else "nothing had been mined before it"
            earlier = "; a smaller mining.start_step begins earlier" if self.mining.start_step else ""
            found.append(
                f"No step of this checkpoint (step {self.step}) was trained with mined {mined}: {why}. Its figures say nothing of "
                f"mining{earlier}"
            )
        few = few_mined(self.mining, self.num_mined, self.num_queries, self.filtered_out)
        return [f"{sentence}." for sentence in (*found, *([few] if few else []))]

    def as_record(self) -> dict[str, Any]:
        """For report.json."""
        return {
            "step": self.step,
            "first_step": self.first_step,
            "num_refreshes": self.num_refreshes,
            "mined_per_image" if self.mining.form != "images" else "mined_per_caption": self.per_query,
            "is_trained_with": self.is_trained_with,
            "notes": self.sentences(),
        }


def few_mined_of(mining: MiningConfig, report: MiningReport) -> str:
    """`few_mined` of one refresh."""
    return few_mined(mining, report.num_mined + report.num_relabelled, report.num_images, report.filtered_out)


def few_mined(mining: MiningConfig, num_mined: int, num_queries: int, filtered_out: Mapping[str, int]) -> str:
    """That mining mines almost nothing, what most candidates were filtered out by, and what to change; empty where it mines enough."""
    if not num_queries or num_mined / num_queries >= LEAST_PER_IMAGE:
        return ""
    mined, mined_for = _words(mining)
    most = max(filtered_out, key=lambda rule: filtered_out[rule], default=None)
    if most is not None and not filtered_out[most]:
        most = None
    by = f" (most candidates: {RULES[most]})" if most is not None else ""
    remedy = f"{_looser(mining, most)}, then " if most in _KEYS else ""
    return (
        f"Mining found {num_mined / num_queries:.2f} {mined} {mined_for} on average, of {mining.negatives_per_image} asked for{by}, which "
        f"is almost nothing to learn from. Take {remedy}a larger mining.pool_top_k (now {mining.pool_top_k})"
    )


_KEYS = ("margin", "margin_pos", "perc_pos", "rank_min", "rank_max", "max_score", "max_uses", "match")
"""Rules that a key makes looser; the others leave out what is true, or all ranks that were looked at."""


def _looser(mining: MiningConfig, rule: str | None) -> str:
    """What to change where most candidates fell to a rule."""
    if rule == "margin":
        return f"a smaller or negative mining.margin (now {mining.margin:g}; null: no such rule)"
    if rule == "match":
        return f"a larger mining.denoise.threshold (now {mining.denoise.threshold:g})" if mining.denoise else "mining.denoise=null"
    direction = "smaller" if rule in ("margin_pos", "rank_min") else "larger"
    return f"a {direction} mining.{rule} (now {getattr(mining, str(rule)):g})"


def _num_rows(refresh: Mapping[str, Any]) -> int:
    """Mined captions of a refresh, as negatives or as positives."""
    return int(refresh["num_mined"]) + int(refresh.get("num_relabelled") or 0)


def mining_effect(config: JobConfig, state: State, step: int) -> MiningEffect | None:
    """What the mining of a run came to, from its metrics.jsonl; None for a run that does not mine.

    Args:
        state: of the newest checkpoint; later lines are of a future that did not happen.
        step: of the checkpoint that is exported.
    """
    if config.mining is None:
        return None
    return MiningEffect.of(config.mining, _refreshes(config.run_folder / "metrics.jsonl", state.num_metrics_lines), step)


def _refreshes(path: Path, num_lines: int) -> list[dict[str, Any]]:
    """The lines on minings, of the first so many; a line that is damaged is left out."""
    lines = path.read_bytes().split(b"\n")[:num_lines] if path.is_file() else []
    found = []
    for line in lines:
        if b'"event": "mining"' in line:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def _words(mining: MiningConfig) -> tuple[str, str]:
    """(what is mined, for what)."""
    return ("images", "a caption") if mining.form == "images" else ("captions", "an image")
