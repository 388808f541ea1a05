"""Which configuration is better on your data? Several systems, several seeds, one answer with its intervals.

    python -m train.study CONFIG.yaml [key.path=value ...] --system NAME=key=value,key=value --system ... [--seeds 8] [--output FOLDER]

The first system is what the others are compared with. Every system is trained with every seed; a system that costs more is also compared
with the first one at as many steps as the same compute buys. Without --system: plain tuning, mined captions, two captions of each image.
Writes OUTPUT/study.json (the protocol before the first run, the figures after the last), study.md and queries.parquet next to it. The
same command again goes on where it was.
"""

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.command import run_command
from eval.command_line import CommandParser, WholeNumber
from eval.files import command_line
from train.engine.command import run_parser


def make_parser() -> CommandParser:
    """The options."""
    parser = run_parser(
        "train.study",
        "Train several systems with several seeds, and say which is better on your data, and by how much.",
        "study configs/demo.yaml rerank=null --seeds 3 --system plain=mining=null --system mined=mining.weight=0.1,mining.margin=null",
    )
    add = parser.add_argument
    add(
        "--system",
        action="append",
        default=[],
        metavar="NAME=key=value,...",
        help="a system, once for each; the first is what the others are compared with (default: plain, mined columns, two captions)",
    )
    whole = [
        ("seeds", 1, 8, "training runs of each system"),
        ("first-seed", 0, 0, "seeds count from it"),
        ("screen-seeds", 0, 0, "screen the systems before, with so many other seeds, 0: do not"),
        ("survivors", 1, 2, "systems that go on after screening, besides the first"),
        ("at-once", 1, 1, "runs side by side"),
        ("threads", 1, 1, "threads of each run"),
    ]
    for name, least, default, what in whole:
        add(f"--{name}", type=WholeNumber(least), default=default, metavar="N", help=f"{what}; {least} or more (default {default})")
    add("--screen-share", type=float, default=0.5, help="steps of a screening run, a share of all above 0, up to 1 (default 0.5)")
    add("--no-equal-compute", action="store_true", help="leave out the first system at the compute of the others (default: it is there)")
    add("--output", type=Path, metavar="FOLDER", help="folder of the study (default runs/study-CONFIG)")
    return parser


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = make_parser()
    asked = parser.parse_intermixed_args(arguments)
    if not 0 < asked.screen_share <= 1:
        parser.error(f"--screen-share: expected a share above 0, up to 1; found {asked.screen_share:g}")
    return run(asked)


def run(asked: argparse.Namespace) -> int:
    """The study of a command line; returns the exit code."""
    asked.output = asked.output or Path("runs") / f"study-{Path(asked.config).stem}"
    return run_command(lambda: _run(asked), writes=[asked.output / "study.json"])


def _run(asked: argparse.Namespace) -> None:
    from train.study.study import Study

    Study.begin(asked.output, protocol_of(asked), at_once=asked.at_once, threads=asked.threads).carry_out()


def protocol_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What is decided before the first figure, as study.json has it.

    Raises:
        UserError: with every fault of every system.
    """
    from train.config.load import read_record
    from train.study.systems import read_systems

    systems, _ = read_systems(asked.system, asked.config, asked.overrides)
    text = json.dumps(read_record(asked.config), sort_keys=True, default=str)
    seeds = list(range(asked.first_seed, asked.first_seed + asked.seeds))
    screening = None
    if asked.screen_seeds:
        other = list(range(seeds[-1] + 1, seeds[-1] + 1 + asked.screen_seeds))
        screening = {"seeds": other, "share": asked.screen_share, "survivors": asked.survivors}
    return {
        "command": f"./launch.sh study {shlex.join(_without(command_line(), '--at-once', '--threads'))}",
        "config": asked.config,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "overrides": list(asked.overrides),
        "systems": {system.name: list(system.overrides) for system in systems},
        "seeds": seeds,
        "measured": "mean R@1 of both directions",
        "equal_compute": not asked.no_equal_compute,
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
