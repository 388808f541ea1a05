"""Read from the files of a sentence-transformers model, without the library, whether it is a CrossEncoder and takes images."""

import json
import re
from pathlib import Path
from typing import Any


def cross_encoder_inputs(folder: Path) -> set[str]:
    """The inputs of a model's folder, e.g. {"text", "image", "message"}; empty if it is no CrossEncoder, or its files do not say.

    Its files are written by sentence-transformers since 5.4.
    """
    saved, transformer = (_json(folder / name) for name in ("config_sentence_transformers.json", "sentence_bert_config.json"))
    if saved.get("model_type") != "CrossEncoder":
        return set()
    # A modality of several parts, such as ("image", "text"), is written as one key.
    return set(re.sub(r"[,'()]", " ", " ".join(map(str, transformer.get("modality_config") or ()))).split())


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; empty where there is no such file or it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
