"""python -m train.config [siglip | reranker]: print every key of a configuration, as a JSON schema."""

import argparse
import json
import sys

from eval.command import run_command
from train.config.job import JobConfig
from train.config.reranker import RerankerConfig


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.config", description="Print every key of a configuration, as a JSON schema.")
    parser.add_argument("what", nargs="?", choices=("siglip", "reranker"), default="siglip", help="what is tuned (default: siglip)")
    schema = (RerankerConfig if parser.parse_args(arguments).what == "reranker" else JobConfig).model_json_schema()
    return run_command(lambda: print(json.dumps(schema, indent=1)), loads_models=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
