"""Read from the files of a sentence-transformers model, without the library, whether it is a CrossEncoder and takes images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import cached_file


@dataclass(frozen=True)
class CrossEncoderFiles:
    """Kind and inputs of a sentence-transformers model.

    Attributes:
        model_type: "CrossEncoder" scores pairs, "SentenceTransformer" and others embed; empty where the files are missing.
        modalities: its inputs, e.g. {"text", "image", "message"}; empty where the files do not say.
    """

    model_type: str
    modalities: frozenset[str]

    @property
    def scores_pairs(self) -> bool:
        """Whether the library would score two inputs together."""
        return self.model_type == "CrossEncoder"


def cross_encoder_files(model: str) -> CrossEncoderFiles:
    """Read both files of a folder or a hub id; sentence-transformers writes them since 5.4."""
    saved, transformer = (_json(model, name) for name in ("config_sentence_transformers.json", "sentence_bert_config.json"))
    modalities = transformer.get("modality_config")
    # A modality of several parts, such as ("image", "text"), is written as one key.
    words = " ".join(map(str, modalities)).replace(",", " ").replace("'", " ").replace("(", " ").replace(")", " ") if modalities else ""
    return CrossEncoderFiles(str(saved.get("model_type", "")), frozenset(words.split()))


def _json(model: str, name: str) -> dict[str, Any]:
    """The object in a file; empty where there is no such file or it holds something else."""
    try:
        found = cached_file(model, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False)
        content = json.loads(Path(found).read_text(encoding="utf-8")) if found else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
