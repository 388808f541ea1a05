"""A whole job on a SigLIP 2 base, from a saved `datasets` folder: trained, mined, exported, measured, reranked."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, SiglipModel

from eval.encoder.checkpoint import load_siglip
from tests.export_checks import check_padding, check_portable
from tests.faults.runs import lines
from tests.nursery import ROOT, Nursery
from tests.siglip2 import NUM_TOKENS, write_siglip2
from tests.small_job import SmallWorld, load


@pytest.fixture(scope="module")
def base(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip2(tmp_path_factory.mktemp("siglip2") / "base", load(small_world.manifest).captions)


@pytest.fixture(scope="module")
def saved(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures and captions of the small world as a DatasetDict that embeds."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for line in small_world.manifest.read_text().splitlines():
        row = json.loads(line)
        row["picture"] = {"bytes": (small_world.manifest.parent / row["image"]).read_bytes(), "path": row.pop("image")}
        tables.setdefault(row.pop("split"), []).append({"group": None} | row)
    folder = tmp_path_factory.mktemp("saved") / "pairs"
    text = datasets.Value("string")
    features = datasets.Features({"picture": datasets.Image(), "captions": datasets.List(text), "group": text})
    parts = {split: datasets.Dataset.from_list(rows, features=features) for split, rows in tables.items()}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("strip", [False, True])
def test_the_whole_job(nursery: Nursery, small_world: SmallWorld, base: Path, saved: Path, tmp_path: Path, strip: bool) -> None:
    config = small_world.write_config(
        tmp_path,
        model={"base": str(base), "strip_punctuation": strip},
        data={"source": str(saved), "columns": {"image": "picture"}, "num_workers": 1, "val_split": None},
        train__max_steps=5,
        rerank={"model": str(ROOT / "demo" / "models" / "blip-itm"), "top_k": 3},
    )
    child = nursery.start("train", [str(config)])
    assert child.wait() == 0, child.output()
    assert "forked" not in child.output(), "tokenizers must not warn of the loader's workers"
    folder = tmp_path / "runs" / "job"
    steps = [line for line in lines(folder) if line["event"] == "step"]
    assert steps[-1]["num_mined"] > 0 and steps[-1]["loss"] < steps[0]["loss"]
    record = json.loads((folder / "eval" / "test" / "report.json").read_text())
    assert {"base", "tuned"} < set(record["stages"]) and len(record["stages"]) == 4
    read = [record["stages"][name]["inputs"]["punctuation"] for name in ("base", "tuned")]
    assert read == ["stripped" if strip else "kept"] * 2
    check_portable(folder / "export", tmp_path, base, saved)
    check_padding(folder / "export", ["A RED circle!", "the bar, blue " * 9, ""])
    tuned, inputs = load_siglip(folder / "export")
    processor, plain = AutoProcessor.from_pretrained(folder / "export"), SiglipModel.from_pretrained(folder / "export").eval()
    captions, picture = ["A RED circle!", "the bar, blue"], Image.new("RGB", (20, 30), (9, 99, 199))
    batch = processor(text=captions, images=[picture], padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], inputs.token_ids(captions)) and torch.equal(batch["pixel_values"][0], inputs.pixels(picture))
    assert (len(set(batch["input_ids"].flatten().tolist()) & {inputs.tokenizer.get_vocab()["!"]}) == 0) == strip
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits_per_image, tuned(**batch).logits_per_image)
