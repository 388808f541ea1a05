"""python -m train.mining CONFIG.yaml [key.path=value ...]: mine with the base model of a configuration, without training.

Writes runs/NAME/negatives/HASH.parquet and its mining report, HASH.json and HASH.html.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from eval.command import run_command
from eval.command_line import CommandParser
from eval.errors import UserError
from eval.files import command_line
from train.engine.command import run_parser

if TYPE_CHECKING:
    from train.config.job import JobConfig


def make_parser() -> CommandParser:
    """The options."""
    description = "Mine hard negatives with the base model of a configuration, without training."
    return run_parser("train.mining", description, "mine configs/demo.yaml mining.negatives_per_image=4 name=mined")


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_intermixed_args(arguments)
    return run_command(lambda: run(asked))


def run(asked: argparse.Namespace) -> None:
    """Read the configuration, and mine; raises as `mine`, and ConfigError."""
    from train.config.job import JobConfig
    from train.engine.command import asked_config

    mine(asked_config(JobConfig, asked))


def mine(config: "JobConfig") -> None:
    """Mine once and print the mining report.

    Raises:
        UserError: configuration or data cannot be used.
        OSError: something cannot be written.
    """
    from eval.manifest.made_split import FILE
    from eval.progress import bar
    from train.data.splits import check_sizes, load_data
    from train.engine.command import naming_all_inputs
    from train.engine.folder import claim_folder
    from train.engine.resolve import resolve
    from train.siglip.job import prepare, start_processes
    from train.siglip.mining import num_rows, refresh_negatives
    from train.siglip.mining_effect import few_mined_of

    if config.mining is None:
        raise UserError("mining: expected a mining section, found null; give mining={}, or mining.mine_every_steps and what else it takes")
    accelerator, processes = start_processes(config)
    with naming_all_inputs(config):
        config, splits = resolve(config, processes, load_data, check_sizes)
    assert config.mining is not None
    lock = processes.together(lambda: claim_folder(config) if processes.is_main else None)
    with naming_all_inputs(config):
        splits = splits or processes.together(lambda: load_data(config))
        job = prepare(config, splits, accelerator, processes)
    processes.together(lambda: splits.write_made(config.run_folder / FILE) if processes.is_main else None)
    step = config.mining.start_step
    with bar(num_rows(job, step) // processes.world_size, "mining", "row", show=processes.is_main, leave=False) as progress:
        found = refresh_negatives(job, step, None, progress.update)
    if processes.is_main:
        few = few_mined_of(config.mining, found.report)
        lines = [*found.report.lines(), *([few] if few else [])]
        print("\n".join(lines) + f"\nwritten to {found.path}; with examples: {found.path.with_suffix('.html')}")
    if lock is not None:
        lock.close()


if __name__ == "__main__":
    sys.exit(main(command_line()))
