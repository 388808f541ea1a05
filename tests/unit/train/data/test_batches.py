"""train/data/batches.py: the batch of a step follows from (seed, step), whatever the number of processes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.dataset.images import ImageError
from eval.encoder.inputs import SiglipInputs
from eval.processes import Processes
from tests.small_job import SmallWorld, load, write_pictures
from train.data.batches import Batch, BatchBuilder, Parts
from train.data.caption_pool import CaptionPool
from train.data.crops import random_crop
from train.data.negatives import Negatives
from train.data.order import BatchOrder, chosen_caption, chosen_captions, generator


@pytest.fixture(scope="module")
def inputs(small_world: SmallWorld) -> SiglipInputs:
    from eval.encoder.checkpoint import load_siglip

    return load_siglip(small_world.base)[1]


@given(num_images=st.integers(2, 60), batch_size=st.integers(2, 60), seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 3))
def test_an_epoch_has_every_image_once_but_the_rest(num_images: int, batch_size: int, seed: int, epoch: int) -> None:
    order = BatchOrder(num_images, min(batch_size, num_images), seed)
    steps = range(epoch * order.steps_per_epoch + 1, (epoch + 1) * order.steps_per_epoch + 1)
    batches = [order.images(step) for step in steps]
    assert {order.epoch(step) for step in steps} == {epoch}
    assert all(len(batch) == len(set(batch.tolist())) == order.batch_size for batch in batches)
    seen = np.concatenate(batches)
    assert len(seen) == len(set(seen.tolist())) == num_images - num_images % order.batch_size
    assert set(seen.tolist()) <= set(range(num_images))


def test_orders_differ_between_epochs_and_seeds_and_leave_out_other_images() -> None:
    order = BatchOrder(50, 8, seed=1)
    epochs = [np.concatenate([order.images(epoch * 6 + step) for step in range(1, 7)]).tolist() for epoch in range(20)]
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set().union(*epochs) == set(range(50))  # images that one epoch leaves out come in another
    assert BatchOrder(50, 8, seed=2).images(1).tolist() != order.images(1).tolist()


def test_streams_of_random_numbers_differ() -> None:
    draws = {
        tuple(generator(*keys).integers(2**32, size=4).tolist()) for keys in [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 0, 1)]
    }
    assert len(draws) == 5
    assert generator(5, 1, 2).integers(2**32) == generator(5, 1, 2).integers(2**32)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), image=st.integers(0, 39))
def test_epochs_cycle_through_the_captions_of_an_image(small_world: SmallWorld, seed: int, image: int) -> None:
    dataset = load(small_world.manifest)
    own = list(range(dataset.caption_offsets[image], dataset.caption_offsets[image + 1]))
    for cycle in range(3):
        chosen = [chosen_caption(dataset, image, cycle * len(own) + turn, seed) for turn in range(len(own))]
        assert sorted(chosen) == own


def fake_negatives(num_images: int, num_captions: int) -> Negatives:
    """Up to three mined captions an image, of which only the number matters."""
    draws = np.random.default_rng(0)
    counts = draws.integers(0, 4, num_images)
    total = int(counts.sum())
    rows = draws.integers(0, num_captions, total)
    return Negatives("fake", np.concatenate([[0], np.cumsum(counts)]), rows, np.ones(total, np.int64), *(np.zeros(total, np.float32),) * 2)


def joined(parts: list[Batch]) -> dict[str, torch.Tensor]:
    """The shares of all processes as one batch."""
    starts = np.cumsum([0, *(len(part.images_b) for part in parts)])
    moved = [replace(part, mined_rows_m=part.mined_rows_m + int(start)) for part, start in zip(parts, starts, strict=False)]
    names = [name for name, value in vars(parts[0]).items() if isinstance(value, torch.Tensor)]
    return {name: torch.cat([getattr(part, name) for part in moved]) for name in names}


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_any_number_of_processes_trains_on_the_same(small_world: SmallWorld, inputs: SiglipInputs, world_size: int) -> None:
    dataset = load(small_world.manifest)
    order, negatives = BatchOrder(dataset.num_images, 8, 5), fake_negatives(dataset.num_images, dataset.num_captions)

    def share(rank: int, world: int, step: int) -> Batch:
        processes, parts = Processes(rank, world), Parts(random_crop_min_area=0.5)
        return BatchBuilder(CaptionPool(dataset), inputs, order, processes, parts=parts, negatives=negatives)[step]

    for step in (1, 6, 14):
        whole = share(0, 1, step)
        assert whole.images_b.tolist() == order.images(step).tolist()
        for name, value in joined([share(rank, world_size, step) for rank in range(world_size)]).items():
            assert torch.equal(value, getattr(whole, name)), name


def test_each_row_has_its_own_caption_and_its_own_mined_captions(small_world: SmallWorld, inputs: SiglipInputs) -> None:
    dataset = load(small_world.manifest)
    negatives = fake_negatives(dataset.num_images, dataset.num_captions)
    batch = BatchBuilder(CaptionPool(dataset), inputs, BatchOrder(40, 8, 5), Processes(), negatives=negatives)[3]
    assert dataset.caption_image_C[batch.captions_c.numpy()].tolist() == batch.images_b.tolist()
    assert torch.equal(batch.token_ids_cL, inputs.token_ids([dataset.captions[int(c)] for c in batch.captions_c]))
    assert torch.equal(batch.mined_token_ids_mL, inputs.token_ids([dataset.captions[int(c)] for c in batch.mined_captions_m]))
    for row, image in enumerate(batch.images_b.tolist()):
        assert batch.mined_captions_m[batch.mined_rows_m == row].tolist() == negatives.of(image).tolist()
        assert torch.equal(batch.pixels_b[row], inputs.pixels(dataset.load_image(image)))
    assert batch.pixels_b.dtype == torch.float32 and batch.undecodable == []


def break_pictures(folder: Path, numbers: range) -> Path:
    """A data set of its own, some of whose train images are damaged."""
    manifest = write_pictures(folder)
    for number in numbers:
        (folder / "pictures" / f"train-{number:03d}.png").write_bytes(b"not a picture at all")
    return manifest


def test_what_does_not_decode_is_replaced_by_another_image_with_its_own_caption(tmp_path: Path, inputs: SiglipInputs) -> None:
    dataset = load(break_pictures(tmp_path, range(10)))
    order = BatchOrder(dataset.num_images, 8, 5)
    builder = BatchBuilder(CaptionPool(dataset), inputs, order, Processes())
    num_replaced = 0
    for step in range(1, order.steps_per_epoch + 1):
        batch, due = builder[step], order.images(step)
        broken = due < 10
        held = batch.images_b.numpy()
        assert (held[~broken] == due[~broken]).all() and (held >= 10).all()
        assert not set(held[broken].tolist()) & set(due.tolist())
        assert dataset.caption_image_C[batch.captions_c.numpy()].tolist() == held.tolist()
        assert len(batch.undecodable) >= broken.sum() and all("train-00" in one.message for one in batch.undecodable)
        halves = [BatchBuilder(CaptionPool(dataset), inputs, order, Processes(rank, 2))[step].images_b for rank in (0, 1)]
        assert torch.cat(halves).tolist() == held.tolist()
        num_replaced += int(broken.sum())
    assert num_replaced == 10


def test_when_nothing_decodes_the_search_for_a_replacement_ends(tmp_path: Path, inputs: SiglipInputs) -> None:
    dataset = load(break_pictures(tmp_path, range(40)))
    told = BatchBuilder(CaptionPool(dataset), inputs, BatchOrder(40, 8, 5), Processes())[1]
    assert isinstance(told, ImageError) and "100 pictures in a row do not decode" in str(told)


@given(width=st.integers(1, 40), height=st.integers(1, 40), min_area=st.floats(0.05, 1.0), seed=st.integers(0, 1000))
def test_a_crop_lies_inside_and_keeps_its_share(width: int, height: int, min_area: float, seed: int) -> None:
    picture = Image.fromarray(np.arange(width * height * 3, dtype=np.uint64).astype(np.uint8).reshape(height, width, 3))
    crop = random_crop(picture, min_area, np.random.default_rng(seed))
    side = np.sqrt(min_area)
    assert max(1, round(width * side)) <= crop.width <= width and max(1, round(height * side)) <= crop.height <= height
    if min_area == 1.0:
        assert crop.tobytes() == picture.tobytes()


def test_crops_change_with_the_epoch_and_not_with_the_step(small_world: SmallWorld, inputs: SiglipInputs) -> None:
    dataset = load(small_world.manifest)
    builder = BatchBuilder(CaptionPool(dataset), inputs, BatchOrder(40, 40, 5), Processes(), parts=Parts(random_crop_min_area=0.3))
    first, again, later = builder[1], builder[1], builder[2]
    assert torch.equal(first.pixels_b, again.pixels_b)
    rows = [later.images_b.tolist().index(image) for image in first.images_b.tolist()]
    assert not torch.equal(first.pixels_b, later.pixels_b[rows])


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_parts_that_workers_send_make_the_batch(
    small_world: SmallWorld, inputs: SiglipInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Mined captions, crops and replaced pictures are those of the whole share, and the pictures travel as bytes."""
    dataset = load(break_pictures(tmp_path / "broken", range(0, 40, 4)))
    negatives = fake_negatives(dataset.num_images, dataset.num_captions)
    order, second = BatchOrder(40, 16, 5), Processes(1, 2)
    builder = BatchBuilder(CaptionPool(dataset), inputs, order, second, parts=Parts(random_crop_min_area=0.5), negatives=negatives)
    whole = builder[2]
    assert isinstance(whole, Batch) and builder.num_parts(2) == 1 and whole.undecodable
    monkeypatch.setattr("train.data.batches.PART", size)
    parts = [builder[2, part] for part in range(builder.num_parts(2))]
    assert [len(part.images_b) for part in parts] == [size] * (8 // size) + [8 % size] * (8 % size > 0)
    assert all(part.pixels_b.dtype == torch.uint8 and part.pixels_b.nbytes <= builder.part_bytes for part in parts)
    for name, value in vars(builder.join(parts, as_values=True)).items():
        expected = getattr(whole, name)
        assert torch.equal(value, expected) if isinstance(value, torch.Tensor) else value == expected, name


def test_several_captions_of_an_image_are_different_ones_and_every_epoch_takes_others(small_world: SmallWorld) -> None:
    dataset = load(small_world.manifest)
    for image in range(dataset.num_images):
        own = range(int(dataset.caption_offsets[image]), int(dataset.caption_offsets[image + 1]))
        assert chosen_captions(dataset, image, 3, 5, len(own)) == list(own)
        for most in range(1, len(own)):
            epochs = [chosen_captions(dataset, image, epoch, 5, most) for epoch in range(40)]
            assert all(len(set(chosen)) == most and set(chosen) <= set(own) for chosen in epochs)
            assert set().union(*epochs) == set(own)
            first_cycle = [caption for chosen in epochs[: len(own) // most] for caption in chosen]
            assert len(set(first_cycle)) == len(first_cycle)
        assert [chosen_captions(dataset, image, epoch, 5, 1)[0] for epoch in range(9)] == [
            chosen_caption(dataset, image, epoch, 5) for epoch in range(9)
        ]
