"""Which configuration is better on your data? Several systems, several seeds, one answer with its intervals.

    python -m train.study CONFIG.yaml [key.path=value ...] --system NAME=key=value,key=value --system ... [--seeds 8] [--output FOLDER]
    python -m train.study STUDY.yaml                   # a file with the keys `config` and `systems`, and the options: docs/study.md

The first system is what the others are compared with. Every system is trained with every seed; a system that costs more is also compared
with the first one at as many steps as the same compute buys. Without --system: plain tuning, mined captions, two captions of each image.
Writes OUTPUT/study.json (the protocol before the first run, the figures after the last), study.md and queries.parquet next to it. The
same command again goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.command import run_command
from eval.command_line import CommandParser, WholeNumber
from eval.files import command_line
from train.engine.command import run_parser

if TYPE_CHECKING:
    from train.study.config import StudyConfig


def make_parser() -> CommandParser:
    """The options. Those that a study file may give are None where the command line does not give them."""
    parser = run_parser(
        "train.study",
        "Train several systems with several seeds, and say which is better on your data, and by how much.\n"
        "CONFIG.yaml may be a study file, with the keys config, overrides and systems, and these options as keys (docs/study.md).",
        "study configs/demo.yaml rerank=null --seeds 3 --system plain=mining=null --system mined=mining.weight=0.1,mining.margin=null",
    )
    add = parser.add_argument
    add(
        "--system",
        action="append",
        dest="systems",
        metavar="NAME=key=value,...",
        help="a system, once for each; the first is what the others are compared with (default: plain, mining's presets, two captions)",
    )
    whole = [
        ("seeds", 1, 8, "training runs of each system"),
        ("first-seed", 0, 0, "seeds count from it"),
        ("screen-seeds", 0, 0, "screen the systems before, with so many other seeds, 0: do not"),
        ("survivors", 1, 2, "systems that go on after screening, besides the first"),
    ]
    for name, least, default, what in whole:
        add(f"--{name}", type=WholeNumber(least), metavar="N", help=f"{what}; {least} or more (default {default})")
    add("--screen-share", type=float, metavar="SHARE", help="steps of a screening run, a share of all above 0, up to 1 (default 0.5)")
    add(
        "--equal-compute",
        action=argparse.BooleanOptionalAction,
        help="train the first system at the compute of the others too (default: yes)",
    )
    side_by_side = "runs side by side; 1 or more (default: one on each GPU, or 2 where there is none)"
    add("--at-once", type=WholeNumber(1), metavar="N", help=side_by_side)
    add("--threads", type=WholeNumber(1), default=1, metavar="N", help="threads of each run; 1 or more (default 1)")
    add("--output", type=Path, metavar="FOLDER", help="folder of the study (default runs/study-CONFIG)")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = make_parser()
    asked = parser.parse_intermixed_args(arguments)
    if asked.screen_share is not None and not 0 < asked.screen_share <= 1:
        parser.error(f"--screen-share: expected a share above 0, up to 1; found {asked.screen_share:g}")
    return run(asked)


def run(asked: argparse.Namespace) -> int:
    """The study of a command line; returns the exit code."""
    asked.output = asked.output or Path("runs") / f"study-{Path(asked.config).stem}"
    return run_command(lambda: _run(asked), writes=[asked.output / "study.json"])


def _run(asked: argparse.Namespace) -> None:
    from train.study.config import read_study
    from train.study.runs import usual_places
    from train.study.study import Study

    protocol = protocol_of(read_study(asked), shlex.join(_without(command_line(), "--at-once", "--threads")))
    Study.begin(asked.output, protocol, at_once=asked.at_once or usual_places(), threads=asked.threads).carry_out()


def protocol_of(study: StudyConfig, words: str) -> dict[str, Any]:
    """What is decided before the first figure, as study.json has it.

    Args:
        words: of the command line.

    Raises:
        UserError: with every fault of every system.
    """
    from train.config.load import read_record
    from train.config.reranker import is_reranker
    from train.study.systems import check_systems

    check_systems(study.systems, study.config, study.overrides)
    record = read_record(study.config)
    seeds = list(range(study.first_seed, study.first_seed + study.seeds))
    screening = None
    if study.screen_seeds:
        other = list(range(seeds[-1] + 1, seeds[-1] + 1 + study.screen_seeds))
        screening = {"seeds": other, "share": study.screen_share, "survivors": study.survivors}
    return {
        "command": f"./launch.sh study {words}",
        "config": study.config,
        "config_sha256": hashlib.sha256(json.dumps(record, sort_keys=True, default=str).encode()).hexdigest(),
        "overrides": study.overrides,
        "systems": study.systems,
        "seeds": seeds,
        "measured": "mean R@1 of both directions",
        "equal_compute": study.equal_compute and not is_reranker(record),  # the compute of a cross-encoder is not counted
        "screening": screening,
    }


def _without(arguments: Sequence[str], *options: str) -> list[str]:
    """The arguments less some options and their values: what may change when a study goes on."""
    left, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in options:
            skip = True
        elif argument.partition("=")[0] not in options:
            left.append(argument)
    return left


if __name__ == "__main__":
    sys.exit(main(command_line()))
