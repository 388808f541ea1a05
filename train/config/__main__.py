"""python -m train.config [siglip | reranker]: print every key of a configuration, as a JSON schema."""

import argparse
import json

from train.config.job import JobConfig
from train.config.reranker import RerankerConfig


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m train.config", description="Print every key of a configuration, as a JSON schema.")
    parser.add_argument("what", nargs="?", choices=("siglip", "reranker"), default="siglip", help="what is tuned (default: siglip)")
    schema = (RerankerConfig if parser.parse_args().what == "reranker" else JobConfig).model_json_schema()
    print(json.dumps(schema, indent=1))


if __name__ == "__main__":
    main()
