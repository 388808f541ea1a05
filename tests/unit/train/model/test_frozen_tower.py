"""train/model/frozen_tower.py: the embeddings of a frozen tower are made once, and neither a stale nor a torn file of them is ever read."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eval.encoder.encoder import embed_captions, embed_images
from eval.execution import Execution
from eval.processes import Processes
from tests.small_job import SmallWorld, load, write_pictures
from train.config.job import JobConfig
from train.config.mining import MiningConfig
from train.data.batches import BatchBuilder
from train.data.cached_embeddings import NOTHING_FROZEN, FrozenEmbeddings
from train.data.caption_pool import AdditionalCaptions, CaptionPool
from train.data.negatives import Negatives
from train.data.order import BatchOrder
from train.mining.candidates import Retriever
from train.mining.mine import mine
from train.mining.refresh import Refresh
from train.model.frozen_tower import FrozenStore, cached_towers, frozen_lines, is_whole
from train.model.siglip import TunedModel, build_model, make_optimizer
from train.siglip.step import Stepper


def make_job(world: SmallWorld, freeze: list[str], **changes: Any) -> tuple[JobConfig, TunedModel]:
    config = JobConfig.model_validate(world.record(world.base.parent, model__freeze=freeze, **changes))
    return config, build_model(config.model, str(world.base), 3)


def store_of(folder: Path, world: SmallWorld, tuned: TunedModel, data: str = "data") -> FrozenStore:
    pool = CaptionPool(load(world.manifest))
    pool.data_sha256 = data
    return FrozenStore(folder, tuned, pool, Processes())


def both(store: FrozenStore) -> FrozenEmbeddings:
    return FrozenEmbeddings(store.rows("image"), store.rows("text"))


def test_rows_are_the_encoders_own_on_its_grid(small_world: SmallWorld, tmp_path: Path) -> None:
    _, tuned = make_job(small_world, ["image", "text"])
    dataset, found = load(small_world.manifest), both(store_of(tmp_path, small_world, tuned))
    assert found.images is not None and found.captions is not None
    np.testing.assert_array_equal(found.images.vectors_ND, embed_images(tuned.siglip, tuned.inputs, dataset))
    np.testing.assert_array_equal(found.captions.vectors_ND, embed_captions(tuned.siglip, tuned.inputs, dataset.captions))
    assert torch.equal(found.images.of(np.array([7, 0, 7])), torch.from_numpy(np.array(found.images.vectors_ND))[[7, 0, 7]])


def test_a_split_of_several_windows_has_the_same_rows(small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tuned = make_job(small_world, ["image"])
    whole = store_of(tmp_path / "one", small_world, tuned).rows("image")
    monkeypatch.setattr("train.model.frozen_tower._WINDOW_BLOCKS", 1)  # 40 images: a window of 32 and one of 8
    windows = store_of(tmp_path / "two", small_world, tuned).rows("image")
    np.testing.assert_array_equal(windows.vectors_ND, whole.vectors_ND)


@pytest.mark.parametrize("freeze", [["image"], ["text"], ["image", "text"]], ids=str)
def test_losses_and_gradients_are_those_of_the_tower_run_at_every_step(small_world: SmallWorld, tmp_path: Path, freeze: list[str]) -> None:
    results = {}
    dataset = load(small_world.manifest)
    mined = np.array([(int(dataset.caption_offsets[i]) + 40) % dataset.num_captions for i in range(40)])
    negatives = Negatives("made", np.arange(41), mined, np.ones(40, np.int64), *(np.zeros(40, np.float32),) * 2)
    for is_cached in (False, True):
        config, tuned = make_job(small_world, freeze, train__max_grad_norm=None)
        store = store_of(tmp_path, small_world, tuned)
        images, captions = (store.rows(tower) if tower in freeze and is_cached else None for tower in ("image", "text"))
        stepper = Stepper(config, tuned, make_optimizer(tuned, config.train), dataset, Processes(), contextlib.nullcontext)
        frozen = FrozenEmbeddings(images, captions)
        builder = BatchBuilder(CaptionPool(dataset), tuned.inputs, BatchOrder(40, 8, 3), Processes(), negatives=negatives, frozen=frozen)
        losses = [stepper.train_step(builder[step]).loss for step in (1, 2, 3)]
        gradient = torch.cat([value.grad.reshape(-1) for _, value in tuned.trainable() if value.grad is not None])
        results[is_cached] = (losses, gradient)
    assert results[True][0] == pytest.approx(results[False][0], rel=1e-5)
    distance = torch.linalg.vector_norm(results[True][1] - results[False][1]) / torch.linalg.vector_norm(results[False][1])
    assert float(distance) < 1e-4  # by the third step


def test_pictures_and_captions_are_not_even_read(small_world: SmallWorld, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(small_world.manifest.parent, folder)
    world = SmallWorld(folder / small_world.manifest.name, small_world.base)
    _, tuned = make_job(world, ["image", "text"])
    dataset, frozen = load(world.manifest), both(store_of(tmp_path / "frozen", world, tuned))
    order = BatchOrder(40, 8, 3)
    plain = BatchBuilder(CaptionPool(dataset), tuned.inputs, order, Processes())[2]
    shutil.rmtree(folder / "pictures")
    cached = BatchBuilder(CaptionPool(dataset), tuned.inputs, order, Processes(), frozen=frozen)[2]
    assert cached.images_b.tolist() == plain.images_b.tolist() and cached.captions_c.tolist() == plain.captions_c.tolist()
    assert cached.pixels_b.numel() == 0 and cached.token_ids_cL.numel() == 0 and cached.undecodable == []
    assert cached.frozen_images_bD is not None and cached.frozen_images_bD.shape == (8, 32)


def test_what_did_not_decode_is_replaced_as_without_the_file(small_world: SmallWorld, tmp_path: Path) -> None:
    world = SmallWorld(write_pictures(tmp_path / "data"), small_world.base)
    for number in range(10):
        (tmp_path / "data" / "pictures" / f"train-{number:03d}.png").write_bytes(b"not a picture at all")
    _, tuned = make_job(world, ["image"])
    dataset = load(world.manifest)
    frozen = FrozenEmbeddings(store_of(tmp_path / "frozen", world, tuned).rows("image"))
    order = BatchOrder(40, 8, 5)
    num_replaced = 0
    for step in range(1, 6):
        pool = CaptionPool(dataset)
        plain, cached = (BatchBuilder(pool, tuned.inputs, order, Processes(), frozen=one)[step] for one in (NOTHING_FROZEN, frozen))
        assert cached.images_b.tolist() == plain.images_b.tolist() and cached.captions_c.tolist() == plain.captions_c.tolist()
        assert len(cached.undecodable) == len(plain.undecodable)
        assert all("train-00" in one.message for one in cached.undecodable)
        num_replaced += len(cached.undecodable)
    assert num_replaced >= 10


def test_a_file_of_other_weights_data_or_inputs_has_another_name(small_world: SmallWorld, tmp_path: Path) -> None:
    _, tuned = make_job(small_world, ["image", "text"])
    names = {store_of(tmp_path, small_world, tuned).path(tower) for tower in ("image", "text")}
    assert names == {store_of(tmp_path, small_world, tuned).path(tower) for tower in ("image", "text")}
    names |= {store_of(tmp_path, small_world, tuned, "other data").path(tower) for tower in ("image", "text")}
    tuned.inputs.image_processor.image_mean = [0.4, 0.5, 0.5]
    names.add(store_of(tmp_path, small_world, tuned).path("image"))
    shorter = replace(tuned, inputs=replace(tuned.inputs, num_tokens=9))
    names.add(store_of(tmp_path, small_world, shorter).path("text"))
    with torch.no_grad():
        tuned.siglip.vision_model.post_layernorm.bias[0] += 1e-6
    names.add(store_of(tmp_path, small_world, tuned).path("image"))
    assert len(names) == 7


def test_a_stale_file_is_not_read_and_removed(small_world: SmallWorld, tmp_path: Path) -> None:
    _, tuned = make_job(small_world, ["image"])
    store = store_of(tmp_path, small_world, tuned)
    old, path = np.array(store.rows("image").vectors_ND), store.path("image")
    with torch.no_grad():
        tuned.siglip.vision_model.post_layernorm.bias += 0.5
    new = store_of(tmp_path, small_world, tuned).rows("image").vectors_ND
    assert np.abs(new - old).max() > 1e-3 and not path.exists()
    np.testing.assert_array_equal(new, embed_images(tuned.siglip, tuned.inputs, load(small_world.manifest)))


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def _blank(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))  # the length is right, the blocks never reached the disk


@pytest.mark.parametrize("damage", [_cut, _flip, _blank, Path.unlink])
def test_a_torn_file_is_made_again_and_a_whole_one_is_not(small_world: SmallWorld, tmp_path: Path, damage: Any) -> None:
    _, tuned = make_job(small_world, ["image"])
    store, made = store_of(tmp_path, small_world, tuned), []
    whole = np.array(store.rows("image", Execution(on_progress=made.append)).vectors_ND)
    assert sum(made) == 40 and is_whole(store.path("image"), (40, 32)) and not is_whole(store.path("image"), (39, 32))
    store.rows("image", Execution(on_progress=made.append))
    assert sum(made) == 40
    damage(store.path("image"))
    assert not is_whole(store.path("image"), (40, 32))
    np.testing.assert_array_equal(store.rows("image", Execution(on_progress=made.append)).vectors_ND, whole)
    assert sum(made) == 80 and [path.suffix for path in tmp_path.iterdir()] == [".f32"]


def test_a_run_stopped_while_embedding_leaves_nothing_that_is_read(small_world: SmallWorld, tmp_path: Path) -> None:
    _, tuned = make_job(small_world, ["text"])

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store_of(tmp_path, small_world, tuned).rows("text", Execution(on_progress=stop))
    assert list(tmp_path.iterdir()) == []


def test_towers_that_cannot_be_cached_are_named(small_world: SmallWorld) -> None:
    config, _ = make_job(small_world, ["image", "text"], train__random_crop_min_area=0.9)
    assert cached_towers(config) == ["text"]
    image, text = frozen_lines(config)
    assert "run at every step" in image and "random_crop_min_area 0.9" in image and "once" in text and "frozen" in text
    config, _ = make_job(small_world, ["text"], model__cache_frozen=False)
    assert cached_towers(config) == [] and "model.cache_frozen is false" in frozen_lines(config)[0]
    config, _ = make_job(small_world, [])
    assert cached_towers(config) == frozen_lines(config) == []


def test_a_picture_that_decodes_is_known_and_one_that_does_not_is_not(small_world: SmallWorld, tmp_path: Path) -> None:
    world = SmallWorld(write_pictures(tmp_path / "data"), small_world.base)
    (tmp_path / "data" / "pictures" / "train-003.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64)).save(tmp_path / "data" / "pictures" / "train-004.png")  # black is a picture
    _, tuned = make_job(world, ["image"])
    rows = store_of(tmp_path / "frozen", world, tuned).rows("image")
    assert [image for image in range(40) if not rows.is_known(image)] == [3]


@pytest.mark.parametrize("form", ["columns", "images"])
def test_mining_reads_cached_embeddings_and_finds_the_same(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """Of some images and a pool, with a picture that does not decode; a frozen tower is not run again."""
    manifest = write_pictures(tmp_path)
    (tmp_path / "pictures" / "train-007.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    _, tuned = make_job(small_world, ["image", "text"])
    further = AdditionalCaptions(["a fox", "two green bars"], np.array([1, 2])) if form == "columns" else None
    pool = CaptionPool(load(manifest), further)
    kept = both(FrozenStore(tmp_path / "frozen", tuned, pool, Processes()))
    config = MiningConfig.model_validate({"mine_every_steps": 1, "margin": None, "form": form})

    def mined(frozen: FrozenEmbeddings) -> Negatives:
        refresh = Refresh(images_I=np.arange(3, 38))
        return mine(Retriever(tuned.siglip, tuned.inputs, frozen), pool, config, refresh=refresh)[0]

    plain = mined(NOTHING_FROZEN)
    for tower in (tuned.siglip.vision_model, tuned.siglip.text_model):
        monkeypatch.setattr(tower, "forward", lambda *_, **__: pytest.fail("a frozen tower was run"))
    again = mined(kept)
    assert len(plain) > 0 and plain.name == again.name
    for name, value in vars(plain).items():
        assert value is None or np.array_equal(getattr(again, name), value), name


def test_another_run_of_the_same_tower_finds_its_rows(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("EMBEDDING_CACHE_GIB", "1")
    _, tuned = make_job(small_world, ["image", "text"])
    first = both(store_of(tmp_path / "one", small_world, tuned))
    with monkeypatch.context() as patch:
        patch.setattr(FrozenStore, "_make", None)  # not called
        second = both(store_of(tmp_path / "two", small_world, tuned))
    assert first.images is not None and second.images is not None and first.captions is not None and second.captions is not None
    np.testing.assert_array_equal(first.images.vectors_ND, second.images.vectors_ND)
    np.testing.assert_array_equal(first.captions.vectors_ND, second.captions.vectors_ND)
    assert "damaged" not in capfd.readouterr().err
    for path in (tmp_path / "assets").rglob("*.f32"):
        whole = path.read_bytes()
        path.unlink()  # the runs' files are the same
        path.write_bytes(whole[:-1])
    third = store_of(tmp_path / "three", small_world, tuned).rows("image")
    np.testing.assert_array_equal(first.images.vectors_ND, third.vectors_ND)
    assert "damaged" in capfd.readouterr().err
