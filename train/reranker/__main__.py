"""python -m train.reranker CONFIG.yaml [key.path=value ...] [--check-images | --show-config | --dry-run]

Tunes the reranker, a cross-encoder: BLIP's matching head, or adapters as well, or all of it, on your pairs, with negatives mined by your
tuned SigLIP. The same command again resumes; a finished run prints its figures. Exit codes as of `python -m train`.
Several processes: LAUNCH_ARGS="..." ./launch.sh CONFIG.yaml, or accelerate launch -m train.reranker CONFIG.yaml.
"""

from typing import Any

from eval.command import run_command
from eval.command_line import CommandParser
from eval.errors import UserError
from train.config.reranker import MARKER, is_reranker
from train.engine.command import RunKind, add_looks, asked_config, carry_out_as_asked, end_with, run_parser


def make_parser() -> CommandParser:
    """The options."""
    description = "Tune a BLIP cross-encoder on labelled (image, caption) pairs."
    parser = run_parser("train.reranker", description, "reranker configs/reranker-demo.yaml name=my-reranker")
    parser.add_argument(
        "--check-images",
        action="store_true",
        help="read data and weights, decode every picture, name all that fail, then stop (default: train)",
    )
    add_looks(parser)
    return parser


def run(arguments: list[str]) -> int:
    """The command; returns the exit code, having said why when it is not 0."""
    asked = make_parser().parse_intermixed_args(arguments)
    return run_command(lambda: run_reranker(asked))


def run_reranker(asked: Any) -> int:
    """Carry out what the arguments ask for; returns the exit code.

    Raises:
        CommandError, OSError: it cannot be done.
    """
    from train.config.load import read_record
    from train.config.reranker import RerankerConfig

    if not is_reranker(read_record(asked.config)) and not any(text.startswith(f"{MARKER}=") for text in asked.overrides):
        raise UserError(
            f"{asked.config}: expected the key {MARKER!r}, the tuned SigLIP whose confusions are mined, which marks a reranker's tuning; "
            "found none. If the file describes the tuning of SigLIP itself, take python -m train; else see configs/reranker-demo.yaml"
        )
    if asked.check_images:
        asked.overrides += ["data.skip_broken=false"]  # what would be left out is what is looked for
    config = asked_config(RerankerConfig, asked)
    if asked.check_images:
        from train.data.check_images import check_images
        from train.reranker.job import check_reranker_models, load_reranker_data

        splits = load_reranker_data(config)
        print("\n".join(check_reranker_models(config)), flush=True)
        return check_images(splits, config.data.num_workers)
    carry_out_as_asked(reranker_tuning, config, asked)
    return 0


def reranker_tuning() -> RunKind:
    """The tuning of a reranker."""
    from train.engine.distributed import start_distributed
    from train.engine.folder import report_folder
    from train.reranker.finish import finish_reranker, is_reranker_finished, show_reranker
    from train.reranker.job import check_reranker_sizes, load_reranker_data, prepare_reranker
    from train.reranker.loop import RerankerLoop

    return RunKind(
        start=lambda config: start_distributed(config.train, lambda processes: None),
        is_finished=is_reranker_finished,
        show_finished=show_reranker,
        reports=lambda config: [report_folder(config)],
        load=load_reranker_data,
        check=check_reranker_sizes,
        prepare=prepare_reranker,
        loop=RerankerLoop,
        finish=finish_reranker,
    )


if __name__ == "__main__":
    end_with(run)
