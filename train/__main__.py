"""python -m train CONFIG.yaml [key.path=value ...] [--check-images | --show-config | --dry-run]

A data set (a file that is no YAML, a folder, a hub id) in the place of CONFIG.yaml is tuned as configs/small.yaml says, under its own name.

A file with the key `miner` describes the tuning of a reranker: what `python -m train.reranker` does with it.

Exit codes: 0 done · 2 bad configuration or data · 3 no readable checkpoint to resume from · 4 could not write ·
5 loss, gradient or weights not finite · 6 out of memory · 143 stopped by SIGTERM, SIGHUP or SIGUSR1 (130: by Ctrl-C) with a checkpoint
written.
"""

from typing import Any

from eval.command import run_command
from eval.command_line import CommandParser
from train.engine.command import RunKind, add_looks, asked_config, carry_out_as_asked, end_with, run_parser


def make_parser() -> CommandParser:
    """The options."""
    parser = run_parser("train", "Tune SigLIP on labelled (image, caption) pairs.", "train configs/demo.yaml train.max_steps=99 name=short")
    parser.add_argument(
        "--check-images",
        action="store_true",
        help="read data, weights and choice sets, decode every picture, name all that fail, are equal or of one colour, then stop "
        "(default: train)",
    )
    add_looks(parser)
    return parser


def run(arguments: list[str]) -> int:
    """The command; returns the exit code, having said why when it is not 0."""
    asked = make_parser().parse_intermixed_args(arguments)
    return run_command(lambda: _run(asked))


def _run(asked: Any) -> int:
    from train.config.job import JobConfig
    from train.config.load import read_record
    from train.config.reranker import is_reranker
    from train.reranker.__main__ import run_reranker

    if is_reranker(read_record(asked.config)):
        return run_reranker(asked)
    if asked.check_images:
        asked.overrides += ["data.skip_broken=false"]  # what would be left out is what is looked for
    config = asked_config(JobConfig, asked)
    if asked.check_images:
        from eval.choices.choice_set import read_choices
        from train.data.check_images import check_images
        from train.data.splits import load_data
        from train.siglip.job import check_models

        splits, choices = load_data(config), [read_choices(path) for path in config.choices or ()]
        print("\n".join(check_models(config)), flush=True)
        return check_images(splits, config.data.num_workers, choices)
    carry_out_as_asked(siglip_tuning, config, asked)
    return 0


def siglip_tuning() -> RunKind:
    """The tuning of SigLIP."""
    from train.data.splits import check_sizes, load_data
    from train.siglip.finish import finish, is_finished, report_folders, show_finished
    from train.siglip.job import prepare, start_processes
    from train.siglip.loop import Loop

    return RunKind(
        start=start_processes,
        is_finished=is_finished,
        show_finished=show_finished,
        reports=report_folders,
        load=load_data,
        check=check_sizes,
        prepare=prepare,
        loop=Loop,
        finish=finish,
    )


if __name__ == "__main__":
    end_with(run)
