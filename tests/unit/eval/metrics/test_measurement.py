"""One checkpoint measured on one split: the rows and the mean R@1 are those of plain transformers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, SiglipModel

from eval.encoder.checkpoint import load_siglip
from eval.execution import Execution
from eval.metrics.measurement import measure_checkpoint
from eval.metrics.stage_metrics import StageMetrics, mean_recall_at_1
from eval.search.ranking import DIRECTIONS
from tests.small_job import TINY, SmallWorld, load


def test_mean_of_both_directions() -> None:
    assert mean_recall_at_1({"image_to_text": {"R@1": 0.25, "R@5": 1.0}, "text_to_image": {"R@1": 0.75}}) == 0.5


def test_ranks_are_those_of_plain_transformers(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest, "test")
    num_rows: list[int] = []
    rows = measure_checkpoint("tuned", *load_siglip(small_world.base), dataset, execution=Execution(on_progress=num_rows.append))
    assert sum(num_rows) == dataset.num_images + dataset.num_captions and set(rows["stage"].to_pylist()) == {"tuned"}
    assert not {"top_ids", "top_scores"} & set(rows.column_names) and len(rows) == sum(num_rows)
    assert rows["query_id"].to_pylist() == [*dataset.image_ids, *dataset.caption_ids]
    logits_IC = _logits(small_world.base, dataset)
    best = {"image_to_text": logits_IC.argmax(axis=1), "text_to_image": logits_IC.argmax(axis=0)}
    first = {way: np.mean([item in dataset.positives(way).of(query) for query, item in enumerate(best[way])]) for way in DIRECTIONS}
    numbers = {name: number for number, name in enumerate(dataset.image_ids)}
    found = {direction: StageMetrics.of(rows, "tuned", direction, numbers).values() for direction in DIRECTIONS}
    assert {direction: found[direction]["R@1"] for direction in DIRECTIONS} == pytest.approx(first)
    assert mean_recall_at_1(found) == pytest.approx(sum(first.values()) / 2)


def _logits(folder: Path, dataset: object) -> np.ndarray:
    model, processor = SiglipModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    images = [dataset.load_image(image) for image in range(dataset.num_images)]  # type: ignore[attr-defined]
    batch = processor(
        text=list(dataset.captions),  # type: ignore[attr-defined]
        images=images,
        padding="max_length",
        max_length=TINY.num_tokens,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]).logits_per_image.numpy()
