"""train/siglip/watch.py: the figures are those of a plain loop over the rows; a drop is an interval below 0; faults of every manifest at
once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eval.dataset.retrieval_set import RetrievalSet
from eval.errors import UserError
from eval.execution import ONE_PROCESS
from eval.metrics.evaluate import evaluate, query_table
from eval.metrics.significance import resample_weights
from eval.search.retrieve import retrieve
from tests.small_job import SmallWorld, load
from train.config.evaluation import WatchConfig
from train.config.job import JobConfig
from train.data.check_images import check_images
from train.data.splits import RetentionSet, load_data
from train.model.siglip import build_model
from train.siglip.watch import Recall, RetentionResult, Watch


def watch_config(world: SmallWorld, **changes: Any) -> WatchConfig:
    return WatchConfig.model_validate({"name": "old", "source": str(world.manifest), "split": "test"} | changes)


def rows(dataset: RetrievalSet, stage: str, ranks: dict[str, list[int]]) -> pa.Table:
    """Rows as query_table writes them, with these ranks."""
    parts = []
    for direction, images in (("image_to_text", range(dataset.num_images)), ("text_to_image", dataset.caption_image_C.tolist())):
        num = len(ranks[direction])
        parts.append(
            pa.table(
                {
                    "stage": [stage] * num,
                    "direction": [direction] * num,
                    "image_id": [dataset.image_ids[image] for image in images],
                    "rank": ranks[direction],
                    "ap_at_r": [0.0] * num,
                    "r_precision": [0.0] * num,
                }
            )
        )
    return pa.concat_tables(parts)


def random_ranks(dataset: RetrievalSet, seed: int) -> dict[str, list[int]]:
    draws = np.random.default_rng(seed)
    sizes = {"image_to_text": dataset.num_images, "text_to_image": dataset.num_captions}
    return {direction: draws.integers(1, 3, size).tolist() for direction, size in sizes.items()}


def test_mean_difference_and_intervals_are_those_of_a_loop(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest, "test")
    before, now = random_ranks(dataset, 1), random_ranks(dataset, 2)
    found = Recall.of(dataset, pa.concat_tables([rows(dataset, "before", before), rows(dataset, "now", now)]), "now", "before")
    owners = {"image_to_text": list(range(dataset.num_images)), "text_to_image": dataset.caption_image_C.tolist()}

    def mean(ranks: dict[str, list[int]], drawn: Any) -> float:
        values = []
        for direction, owner in owners.items():
            hits = sum(int(drawn[image]) * (rank == 1) for rank, image in zip(ranks[direction], owner, strict=True))
            values.append(hits / sum(int(drawn[image]) for image in owner))
        return sum(values) / 2

    weights = resample_weights(dataset.num_images)
    once = np.ones(dataset.num_images)
    own, difference = [mean(now, drawn) for drawn in weights], [mean(now, drawn) - mean(before, drawn) for drawn in weights]
    assert found.mean == pytest.approx(mean(now, once)) and found.delta == pytest.approx(mean(now, once) - mean(before, once))
    assert found.ci95 == pytest.approx(np.quantile(own, [0.025, 0.975]).tolist())
    assert found.delta_ci95 == pytest.approx(np.quantile(difference, [0.025, 0.975]).tolist())


def test_the_figures_are_the_evaluators_own(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest, "test")
    models = [build_model(JobConfig.model_validate(small_world.record(Path("x"))).model, str(small_world.base)) for _ in range(2)]
    for parameter in models[1].siglip.parameters():
        parameter.data += 0.05
    stages = [retrieve(name, tuned.siglip, tuned.inputs, dataset) for name, tuned in zip(("before", "now"), models, strict=True)]
    figures = evaluate(dataset, stages)
    row = next(row for row in figures.comparisons if (row["direction"], row["metric"]) == ("both", "R@1"))
    found = Recall.of(dataset, query_table(dataset, stages), "now", "before")
    assert (found.delta, found.delta_ci95) == (row["delta"], row["ci95"])
    assert found.mean == np.mean([figures.stages["now"][direction]["R@1"] for direction in ("image_to_text", "text_to_image")])


@pytest.mark.parametrize(("high", "dropped"), [(-1e-9, True), (0.0, False), (0.1, False)])
def test_a_drop_is_an_interval_wholly_below_zero(small_world: SmallWorld, high: float, dropped: bool) -> None:
    recall = Recall(0.5, [0.4, 0.6], -0.1, [-0.2, high])
    said = {drop: RetentionResult(watch_config(small_world, on_drop=drop), recall) for drop in ("report", "bar", "stop")}
    assert {drop: (sighting.bars, sighting.stops) for drop, sighting in said.items()} == {
        "report": (False, False),
        "bar": (dropped, False),
        "stop": (dropped, dropped),
    }
    assert all(("forgotten" in str(sighting)) == sighting.as_record()["dropped"] == dropped for sighting in said.values())


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["full", "lora"])
def test_step_0_measured_again_after_a_resume_is_step_0_bit_for_bit(small_world: SmallWorld, lora: Any) -> None:
    model = JobConfig.model_validate(small_world.record(Path("x"), model__lora=lora, model__logit_bias=-3.0)).model
    tuned = build_model(model, str(small_world.base))
    sets = [RetentionSet.load(watch_config(small_world)), RetentionSet.load(watch_config(small_world, name="other", split="train"))]
    straight, resumed = (Watch(sets, str(small_world.base), ONE_PROCESS) for _ in range(2))
    first = straight.evaluate(0, tuned.siglip, tuned.inputs, lambda rows: None)
    assert [(sighting.recall.delta, sighting.recall.delta_ci95) for sighting in first] == [(0.0, [0.0, 0.0])] * 2
    for _, parameter in tuned.trainable():
        parameter.data += 0.05
    seen: list[int] = []
    looks = [watch.evaluate(3, tuned.siglip, tuned.inputs, seen.append) for watch in (straight, resumed)]
    assert [str(sighting) for sighting in looks[0]] == [str(sighting) for sighting in looks[1]]
    assert [sighting.as_record() for sighting in looks[0]] == [sighting.as_record() for sighting in looks[1]]
    assert straight._references == resumed._references
    assert sum(seen) == 3 * straight.num_rows  # the resumed one has embedded the base too, once
    resumed.evaluate(6, tuned.siglip, tuned.inputs, seen.append)
    assert sum(seen) == 4 * straight.num_rows


def broken(folder: Path, name: str) -> Path:
    """A manifest whose one row names a picture that is not there."""
    path = folder / f"{name}.jsonl"
    path.write_text(json.dumps({"image": f"{name}.png", "caption": "a thing"}) + "\n", encoding="utf-8")
    return path


def test_faults_of_every_manifest_are_named_at_once(small_world: SmallWorld, tmp_path: Path) -> None:
    sets = [{"name": name, "source": str(broken(tmp_path, name))} for name in ("one", "two")]
    record = small_world.record(tmp_path, watch=[*sets, {"name": "three", "source": str(small_world.manifest), "split": "absent"}])
    record["data"] |= {"source": str(broken(tmp_path, "main")), "train_split": None, "val_split": None, "test_split": None}
    with pytest.raises(UserError) as caught:
        load_data(JobConfig.model_validate(record))
    named = [f"retention set '{name}'" for name in ("one", "two", "three")]
    for words in ("main.png", "one.png", "two.png", "no row has split 'absent'", *named):
        assert words in str(caught.value)


def test_a_watch_set_is_checked_for_pictures_and_for_leakage(
    small_world: SmallWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.png").write_bytes(b"no picture")
    manifest = tmp_path / "torn.jsonl"
    manifest.write_text(json.dumps({"image": "torn.png", "caption": "a thing"}) + "\n", encoding="utf-8")
    watch = [{"name": "torn", "source": str(manifest)}, {"name": "known", "source": str(small_world.manifest), "split": "train"}]
    splits = load_data(JobConfig.model_validate(small_world.record(tmp_path, watch=watch)))
    assert check_images(splits, 0) == 2
    assert f"[{manifest}] torn.png" in capsys.readouterr().out
    shared = {leak.split: leak.num_shared_images for leak in splits.leakages() if leak.other == "train"}
    assert shared == {"val": 0, "test": 0, "watch set torn": 0, "watch set known": 40}
