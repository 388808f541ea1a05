"""python -m train.mining CONFIG.yaml [key.path=value ...]: mine with the base model of a configuration, without training.
python -m train.mining --model DIR --data PAIRS [--output DIR] [mining.KEY=VALUE ...]: the same with a checkpoint and pairs alone.

Writes runs/NAME/negatives/HASH.parquet and its mining report, HASH.json and HASH.html; without a configuration, into OUTPUT.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.command import run_command, run_evaluation
from eval.command_line import CommandParser, WholeNumber
from eval.errors import UserError
from eval.files import command_line
from eval.manifest.options import MANIFEST, add_manifest_options, column_fault, columns_of
from train.engine.command import run_parser

if TYPE_CHECKING:
    import torch

    from eval.processes import Processes
    from train.config.job import JobConfig

_PRESETS = ("gentle", "standard", "hard")
_OF_PAIRS = ("model", "data", "split", "image_root", "preset", "output", "num_workers")


def make_parser() -> CommandParser:
    """The options."""
    description = "Mine hard negatives with the base model of a configuration, or with a checkpoint and pairs alone, without training."
    parser = run_parser("train.mining", description, "mine configs/demo.yaml mining.negatives_per_image=4 name=mined", is_needed=False)
    add = parser.add_argument
    add("--model", metavar="DIR_OR_HUB_ID", help="without a configuration: the SigLIP checkpoint that mines (default: that of CONFIG.yaml)")
    add(
        "--data",
        metavar="MANIFEST",
        help=f"without a configuration: labelled pairs to mine for, {MANIFEST} (default: those of CONFIG.yaml)",
    )
    add("--split", help="with --data: the rows to mine for (default: train, or all rows of data without splits)")
    add_manifest_options(parser)
    add(
        "--preset",
        choices=_PRESETS,
        help="with --data: values for the rules; mining.KEY=VALUE replaces some (default: those of docs/mining.md)",
    )
    add("--output", metavar="FOLDER", help="with --data: folder for the table and its report (default: mined)")
    add(
        "--num-workers",
        type=WholeNumber(0),
        metavar="N",
        help="with --data: processes that decode pictures for each process of the command, 0 or more (default 2)",
    )
    return parser


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line, refused where it mixes a configuration with what takes its place."""
    parser = make_parser()
    asked = parser.parse_intermixed_args(arguments)
    given = [f"--{name.replace('_', '-')}" for name in _OF_PAIRS if getattr(asked, name) is not None] + ["--column"] * bool(asked.column)
    if not given and asked.config is None:
        parser.error("expected CONFIG.yaml, or --model and --data; found neither")
    if given and (asked.model is None or asked.data is None):
        parser.error(f"{', '.join(given)}: give --model and --data, both, in place of CONFIG.yaml")
    if given and asked.config is not None:  # the first of the overrides stands in its place
        asked.overrides, asked.config = [asked.config, *asked.overrides], None
    if fault := column_fault(asked):
        parser.error(fault)
    return asked


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = parse(arguments)
    if asked.model is None:
        return run_command(lambda: run(asked))
    output = Path(asked.output or "mined")
    return run_evaluation(lambda processes, device: run_pairs(asked, output, processes, device), writes=[output / "negatives"])


def run(asked: argparse.Namespace) -> None:
    """Read the configuration, and mine; raises as `mine`, and ConfigError."""
    from train.config.job import JobConfig
    from train.engine.command import asked_config

    mine(asked_config(JobConfig, asked))


def run_pairs(asked: argparse.Namespace, output: Path, processes: "Processes", device: "torch.device") -> None:
    """Mine with a checkpoint and pairs alone, and print the mining report; call on every process.

    Raises:
        UserError: model, data or rules cannot be used, or the output cannot be written.
    """
    from eval.errors import named, reading, writing
    from eval.execution import Execution
    from eval.manifest.names import OPTIONS, calling
    from eval.process_group import use_exact_float32
    from train.mining.pairs import mine_pairs

    use_exact_float32()
    execution = Execution(processes=processes, device=device, num_workers=2 if asked.num_workers is None else asked.num_workers)
    rules = asked_rules(asked)
    with reading(), writing(output), named({"model": "--model"}), calling(OPTIONS):
        mined = mine_pairs(
            asked.model,
            asked.data,
            output,
            split=asked.split,
            image_root=asked.image_root,
            columns=columns_of(asked),
            rules=rules,
            execution=execution,
        )
    if processes.is_main:
        print("\n".join(mined.report.lines()) + f"\nwritten to {mined.path}; with examples: {mined.path.with_suffix('.html')}")


def asked_rules(asked: argparse.Namespace) -> dict[str, Any]:
    """The keys of `mining` that the command line gives.

    Raises:
        UserError: another key.
    """
    from train.config.load import apply_override

    record: dict[str, Any] = {"mining": {} if asked.preset is None else asked.preset}
    for override in asked.overrides:
        apply_override(record, override)
    if others := sorted(record.keys() - {"mining"}):
        raise UserError(f"without CONFIG.yaml the keys of mining alone can be given, mining.KEY=VALUE; found {', '.join(others)}")
    return record["mining"] if isinstance(record["mining"], dict) else {"preset": record["mining"]}


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
        found = refresh_negatives(job, step, None, progress.update, is_trained=False)
    if processes.is_main:
        few = few_mined_of(config.mining, found.report)
        lines = [*found.report.lines(), *([few] if few else [])]
        print("\n".join(lines) + f"\nwritten to {found.path}; with examples: {found.path.with_suffix('.html')}")
    if lock is not None:
        lock.close()


if __name__ == "__main__":
    sys.exit(main(command_line()))
