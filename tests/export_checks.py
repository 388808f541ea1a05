"""What holds of the SigLIP export of every command: it names no place of this machine, and other packages read captions as we do."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoProcessor

from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions


def check_portable(export: Path, *places: Path) -> None:
    """No text file of an export names a place of this machine, or how something was loaded there.

    Args:
        places: folders that were used.
    """
    forbidden = [str(place) for place in (*places, Path.cwd(), Path.home())] + ["local_files_only", "is_local", "name_or_path"]
    for path in export.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            content = path.read_bytes().decode("utf-8", errors="replace")
            assert [word for word in forbidden if word in content] == [], path


def check_padding(export: Path, captions: list[str]) -> None:
    """Whatever padding the processor and sentence-transformers are asked for, one by one or in batches, captions are read as the
    evaluation reads them."""
    model, inputs = load_siglip(export)
    expected, embeddings = inputs.token_ids(captions), embed_captions(model, inputs, captions)
    processor = AutoProcessor.from_pretrained(export)
    options: list[dict[str, Any]] = [{}, {"padding": True}, {"padding": "longest", "truncation": True}, {"padding": "max_length"}]
    for asked in options:
        assert torch.equal(processor(text=captions, return_tensors="pt", **asked)["input_ids"], expected), asked
        assert list(processor(text=captions[0], return_tensors="pt", **asked)) == ["input_ids"]
    encoder = SentenceTransformer(str(export), device="cpu", trust_remote_code=False)
    for batch_size in (len(captions), 1):
        np.testing.assert_allclose(encoder.encode(captions, batch_size=batch_size), embeddings, atol=1e-5, rtol=0)
