"""The two checkpoints that the configurations name, with the hub's own small files and random weights, at their real or at a smaller size.

The hub's files lie beside the repository (see `REAL`); what needs them is skipped where they are not.
"""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval, SiglipConfig, SiglipModel

from tests.bin_checkpoints import REVISION

REAL = Path(__file__).parents[1].parent / "shared" / "hub"
SIGLIP_ID, BLIP_ID = "google/siglip-base-patch16-224", "Salesforce/blip-itm-base-coco"
needs_hub_files = pytest.mark.skipif(not (REAL / "blip-itm-base-coco" / "vocab.txt").is_file(), reason="the hub's own files are not beside")
_SMALL = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def cached_snapshot(cache: Path, name: str) -> Path:
    """An empty folder for a model's files, where the hub's cache has its branch main."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    return snapshot


def write_siglip(folder: Path, *, is_small: bool) -> float:
    """google/siglip-base-patch16-224 with its vocabulary learnt from random words; returns its parameters, millions."""
    shutil.copytree(REAL / "siglip-base-patch16-224", folder, dirs_exist_ok=True)
    words = [word for word in (REAL / "blip-itm-base-coco" / "vocab.txt").read_text("utf-8").split() if word.isascii() and word.isalpha()]
    draws = random.Random(0)
    lines = [" ".join(draws.choices(words, k=12)) for _ in range(400 if is_small else 20000)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "spiece"),
        vocab_size=300 if is_small else 32000,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    if is_small:
        _change(folder, lambda config: [config[tower].update(_SMALL) for tower in ("text_config", "vision_config")])
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig.from_pretrained(folder))
    model.save_pretrained(folder)
    shutil.copy(REAL / "siglip-base-patch16-224" / "preprocessor_config.json", folder)
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def write_blip(folder: Path, *, is_small: bool) -> float:
    """Salesforce/blip-itm-base-coco as the hub has it, with a pytorch_model.bin alone; returns its parameters, millions."""
    shutil.copytree(REAL / "blip-itm-base-coco", folder, dirs_exist_ok=True)
    if is_small:
        _change(folder, _shrink_blip)
    torch.manual_seed(0)
    model = BlipForImageTextRetrieval(BlipConfig.from_pretrained(folder))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2 if is_small else 0.03)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "tf_model.h5").write_bytes(b"of no use here")
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def _shrink_blip(config: dict[str, Any]) -> None:
    config["text_config"] |= _SMALL | {"encoder_hidden_size": _SMALL["hidden_size"]}
    config["vision_config"] |= _SMALL
    config["image_text_hidden_size"] = 16


def _change(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
