"""train/data/mined_order.py: how each form uses a table, the same at any number of processes and after a resume."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.encoder.inputs import SiglipInputs
from eval.processes import Processes
from tests.small_job import SmallWorld, load
from train.config.mining import MiningConfig
from train.data.batches import BatchBuilder
from train.data.caption_pool import CaptionPool
from train.data.hard_image_order import AnchorOrder
from train.data.mined_order import Order, columns_in_force, describe_form, epoch_order, images_due, is_due, order_in_force
from train.data.negatives import Negatives, read_negatives, write_negatives
from train.data.order import BatchOrder
from train.mining.candidates import Retriever
from train.mining.mine import mine

FORMS = ("images", "neighbours")
BASE = BatchOrder(40, 8, 5)


def config_of(form: str, every: int = 7, start: int = 3) -> MiningConfig:
    return MiningConfig.model_validate(
        {"mine_every_steps": every, "start_step": start, "negatives_per_image": 2, "margin": None, "form": form}
    )


def in_force(form: str, dataset: RetrievalSet, table: Negatives | None, mined_at_step: int | None) -> Order:
    return order_in_force(config_of(form), epoch_order(config_of(form), BASE), dataset, table, mined_at_step, 1000)


@pytest.fixture(scope="module")
def inputs(small_world: SmallWorld) -> SiglipInputs:
    return load_siglip(small_world.base)[1]


@pytest.fixture(scope="module")
def tables(small_world: SmallWorld) -> dict[str, Negatives]:
    """What the tiny base mines for each form."""
    model, inputs = load_siglip(small_world.base)
    pool = CaptionPool(load(small_world.manifest))
    return {form: mine(Retriever(model, inputs), pool, config_of(form))[0] for form in ("images", "neighbours", "columns")}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_processes_trains_on_the_same(
    small_world: SmallWorld, inputs: SiglipInputs, tables: dict[str, Negatives], form: str, world_size: int
) -> None:
    dataset = load(small_world.manifest)
    for step in (4, 7, 10):

        def share(rank: int, world: int, step: int = step) -> list[torch.Tensor]:
            order = in_force(form, dataset, tables[form], 3)
            batch = BatchBuilder(CaptionPool(dataset), inputs, order, Processes(rank, world))[step]
            return [batch.images_b, batch.captions_c, batch.pixels_b]

        whole, parts = share(0, 1), [share(rank, world_size) for rank in range(world_size)]
        assert whole[0].tolist() != BASE.images(step).tolist()
        for values in zip(whole, *parts, strict=True):
            assert torch.equal(values[0], torch.cat(values[1:]))


@pytest.mark.parametrize("form", FORMS)
def test_a_table_that_was_read_back_composes_the_same_batches(
    small_world: SmallWorld, tables: dict[str, Negatives], form: str, tmp_path: Path
) -> None:
    dataset, table = load(small_world.manifest), tables[form]
    write_negatives(tmp_path / "t.parquet", table, CaptionPool(dataset))
    again = read_negatives(tmp_path / "t.parquet", table.name, CaptionPool(dataset))
    straight, resumed = (in_force(form, dataset, found, 10) for found in (table, again))
    for step in (17, 13, 14):  # a resumed run begins in the middle
        assert straight.images(step).tolist() == resumed.images(step).tolist()
        assert straight.step_record(step) == resumed.step_record(step)
    assert straight.window_record() == resumed.window_record()


def test_what_is_mined_meets_in_a_batch_more_often_than_by_chance(small_world: SmallWorld, tables: dict[str, Negatives]) -> None:
    dataset = load(small_world.manifest)
    record = in_force("neighbours", dataset, tables["neighbours"], 5).window_record()
    assert record["num_neighbour_pairs"] > 20 and record["share_met"] > 1.5 * record["share_met_plain"] > 0
    images = in_force("images", dataset, tables["images"], 3)
    records = [images.step_record(step) for step in range(4, 11)]
    assert all(line["num_seeds"] == 2 and line["num_hard_images"] >= 2 and sum(line.values()) == 8 for line in records)


def test_before_the_first_mining_the_order_is_the_plain_one(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    for form in ("columns", *FORMS):
        order = in_force(form, dataset, None, None)
        assert all(np.array_equal(order.images(step), BASE.images(step)) for step in (1, 2, 3))
    assert order_in_force(None, BASE, dataset, None, None, 1000) is BASE


def test_columns_are_columns_alone(small_world: SmallWorld, tables: dict[str, Negatives]) -> None:
    dataset, table = load(small_world.manifest), tables["columns"]
    assert in_force("columns", dataset, table, 3) is BASE
    assert columns_in_force(config_of("columns"), table) is table
    assert columns_in_force(None, None) is None and all(columns_in_force(config_of(form), table) is None for form in FORMS)


def test_the_lines_before_the_first_step() -> None:
    assert describe_form(None, BASE) == describe_form(config_of("columns"), BASE) == []
    (line,) = describe_form(config_of("images"), epoch_order(config_of("images"), BASE))
    assert "2 anchors and up to 2 hard images" in line and "20 steps an epoch (each image an anchor once), not 5" in line
    (line,) = describe_form(config_of("neighbours", every=5), BASE)
    assert "mine less often" not in line
    (line,) = describe_form(config_of("neighbours", every=2), BASE)
    assert "40% of an epoch" in line and "mine less often" in line


def test_epochs_and_the_images_due_are_those_of_the_anchors() -> None:
    config = MiningConfig(mine_every_epochs=1, start_step=3, negatives_per_image=2, form="images", scope="window")
    order = epoch_order(config, BASE)
    assert isinstance(order, AnchorOrder) and epoch_order(config_of("neighbours"), BASE) is epoch_order(None, BASE) is BASE
    assert [step for step in range(50) if is_due(config, order, step)] == [3, 23, 43]
    due = images_due(config, order, 23, 30)
    assert due is not None and due.tolist() == sorted({image for step in range(24, 31) for image in order.images(step).tolist()})


@pytest.mark.parametrize("form", FORMS)
def test_relabelled_pairs_are_positives_and_compose_nothing(small_world: SmallWorld, tables: dict[str, Negatives], form: str) -> None:
    dataset, table = load(small_world.manifest), tables[form]
    relabelled = replace(table, relabelled_N=np.ones(len(table), dtype=bool))
    order = in_force(form, dataset, relabelled, 3)
    if form == "images":
        assert order.step_record(4) == {"num_seeds": 2, "num_hard_images": 0, "num_filled": 6}
    else:
        assert order.window_record()["num_neighbour_pairs"] == 0
