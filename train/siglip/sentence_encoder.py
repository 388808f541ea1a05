"""The files by which sentence-transformers reads a SigLIP export as the text tower was trained: padded to its length, without a mask.

Without them it pads captions to the longest of their batch. SigLIP pools the last position, so a caption's embedding would depend on the
captions next to it. Format: sentence-transformers 6.2, base/modules/transformer.py (`processing_kwargs`).
"""

import json
from pathlib import Path


def write_sentence_encoder(folder: Path, num_tokens: int) -> None:
    """Write the three files next to a SigLIP model: `SentenceTransformer(folder)` gives unit embeddings of captions and of pictures.

    Args:
        num_tokens: the text tower's max_position_embeddings.

    Raises:
        OSError: a file cannot be written.
    """
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"},
    ]  # Normalize has no settings, and so no folder
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            modality: {"method": f"get_{modality}_features", "method_output_name": "pooler_output"} for modality in ("text", "image")
        },
        "module_output_name": "sentence_embedding",
        "processing_kwargs": {"text": {"padding": "max_length", "max_length": num_tokens, "truncation": True}},
    }
    files = {
        "modules.json": modules,
        "sentence_bert_config.json": transformer,
        "config_sentence_transformers.json": {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
