"""What holds of the SigLIP export of every command: it names no place of this machine, and other packages read captions as we do."""

import re
from contextlib import chdir, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoProcessor

from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions
from train.engine.card import HERE

CARD_CAPTIONS = ["a red kite over a beach", "a kite in the wind"]
"""What a card's second example embeds."""


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


def card_examples(export: Path) -> list[str]:
    """The two Python blocks of a model card, which load the model from the working directory."""
    found = re.findall(r"^```python\n(.*?)^```$", (export / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(found) == 2 and all(f"\n{HERE}\n" in code for code in found)
    return found


def check_card(export: Path, pictures: Path) -> None:
    """Both examples run as they stand, and embed as the evaluation does.

    Args:
        pictures: a folder; the card's search is over `pictures` in the working directory.
    """
    search, embed = card_examples(export)
    (export / "pictures").symlink_to(pictures)
    names: dict[str, Any] = {}
    with chdir(export), redirect_stdout(StringIO()) as printed:
        exec(compile(search, "the card", "exec"), {})
        exec(compile(embed, "the card", "exec"), names)
    (export / "pictures").unlink()
    assert len(printed.getvalue().splitlines()) == 5
    np.testing.assert_allclose(names["embeddings"], embed_captions(*load_siglip(export), CARD_CAPTIONS), atol=1e-5, rtol=0)


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
