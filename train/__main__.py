"""python -m train CONFIG.yaml [key.path=value ...] [--check-images]

A file with the key `miner` describes the tuning of a reranker: what `python -m train.reranker` does with it.

Exit codes: 0 done · 2 bad configuration or data · 3 no readable checkpoint to resume from · 4 could not write ·
5 loss, gradient or weights not finite · 6 out of memory · 143 stopped by SIGTERM, SIGHUP or SIGUSR1 (130: by Ctrl-C) with a checkpoint
written.
"""

from pathlib import Path
from typing import Any

from eval.command import run_command
from train.engine.command import RunKind, carry_out, end_with, run_parser


def run(arguments: list[str]) -> int:
    """The command; returns the exit code, having said why when it is not 0."""
    parser = run_parser("train", "Tune SigLIP on labelled (image, caption) pairs.", "demo.yaml")
    parser.add_argument(
        "--check-images", action="store_true", help="decode every picture first, name all that fail and all equal ones, then stop"
    )
    asked = parser.parse_intermixed_args(arguments)
    return run_command(lambda: _run(asked))


def _run(asked: Any) -> int:
    from train.config.load import load_config, read_yaml
    from train.config.reranker import is_reranker
    from train.reranker.__main__ import run_reranker

    if is_reranker(read_yaml(Path(asked.config))):
        return run_reranker(asked)
    config = load_config(asked.config, asked.overrides)
    if asked.check_images:
        from eval.choices.choice_set import read_choices
        from train.data.check_images import check_images
        from train.data.splits import load_data

        return check_images(load_data(config), config.data.num_workers, [read_choices(path) for path in config.choices or ()])
    carry_out(siglip_tuning, config)
    return 0


def siglip_tuning() -> RunKind:
    """The tuning of SigLIP."""
    from train.data.splits import load_data
    from train.siglip.finish import finish, is_finished, report_folders, show_finished
    from train.siglip.job import prepare, start_processes
    from train.siglip.loop import Loop

    return RunKind(
        start=start_processes,
        is_finished=is_finished,
        show_finished=show_finished,
        reports=report_folders,
        load=load_data,
        prepare=prepare,
        loop=Loop,
        finish=finish,
    )


if __name__ == "__main__":
    end_with(run)
