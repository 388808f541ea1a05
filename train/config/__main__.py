"""python -m train.config [siglip | reranker] [--write]: every key of a configuration, as a JSON schema.

--write makes configs/schema.json, for editors, and docs/configuration.md.
"""

import argparse
import json
import sys
from pathlib import Path

from eval.command import run_command
from eval.command_line import CommandParser
from eval.files import command_line


def make_parser() -> CommandParser:
    """The options."""
    parser = CommandParser("train.config", "Print every key of a configuration, as a JSON schema.", "config reranker")
    parser.add_argument("what", nargs="?", choices=("siglip", "reranker"), default="siglip", help="what is tuned (default siglip)")
    parser.add_argument(
        "--write", action="store_true", help="instead write configs/schema.json, of both, and docs/configuration.md (default: print)"
    )
    return parser


ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    asked = make_parser().parse_args(arguments)
    return run_command(lambda: run(asked), loads_models=False)


def run(asked: argparse.Namespace) -> None:
    """Print the schema, or write what is made from the models."""
    from train.config.job import JobConfig
    from train.config.reference import schema_of
    from train.config.reranker import RerankerConfig

    if asked.write:
        write()
    else:
        print(json.dumps(schema_of(RerankerConfig if asked.what == "reranker" else JobConfig), indent=1))


def write() -> None:
    """Write what is made from the models.

    Raises:
        OSError: it cannot be written.
    """
    from train.config.reference import page, schema_text

    for path, text in {ROOT / "configs" / "schema.json": schema_text(), ROOT / "docs" / "configuration.md": page()}.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(command_line()))
