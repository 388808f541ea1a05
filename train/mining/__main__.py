"""python -m train.mining CONFIG.yaml [key.path=value ...]: mine with the base model of a configuration, without training.

Writes runs/NAME/negatives/HASH.parquet and its mining report, HASH.json and HASH.html.
"""

import sys

from eval.command import run_command
from eval.errors import UserError
from eval.progress import bar
from train.config.job import JobConfig
from train.config.load import load_config
from train.data.splits import load_data
from train.engine.command import run_parser
from train.engine.folder import claim_folder
from train.siglip.job import prepare, start_processes
from train.siglip.mining import num_rows, refresh_negatives


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = run_parser("train.mining", "Mine hard negatives with the base model of a configuration, without training.", "demo.yaml")
    asked = parser.parse_intermixed_args(arguments)
    return run_command(lambda: mine(load_config(asked.config, asked.overrides)))


def mine(config: JobConfig) -> None:
    """Mine once and print the mining report.

    Raises:
        UserError: configuration or data cannot be used.
        OSError: something cannot be written.
    """
    if config.mining is None:
        raise UserError("mining: expected a mining section, found null; give at least mining.mine_every_steps")
    accelerator, processes = start_processes(config)
    lock = processes.together(lambda: claim_folder(config) if processes.is_main else None)
    job = prepare(config, processes.together(lambda: load_data(config)), accelerator, processes)
    step = config.mining.start_step
    with bar(num_rows(job, step) // processes.world_size, "mining", "row", show=processes.is_main, leave=False) as progress:
        found = refresh_negatives(job, step, None, progress.update)
    if processes.is_main:
        print("\n".join(found.report.lines()) + f"\nwritten to {found.path}; with examples: {found.path.with_suffix('.html')}")
    if lock is not None:
        lock.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
