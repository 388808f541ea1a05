"""eval/embed/cache.py: what is read is what would be made, and a stale or damaged file is never read."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.dataset.picture_warnings import note
from eval.embed import cache
from eval.embed.cache import bring_file, cache_file, cached_vectors, image_key, store_file, store_rows, text_key
from eval.encoder.checkpoint import load_siglip
from eval.errors import UserError
from eval.execution import ONE_PROCESS, Execution
from eval.search.retrieve import embed
from rerank.evaluation import EvaluationPlan, evaluate_plan
from tests.small_job import SmallWorld, load, write_pictures


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that is in use."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("EMBEDDING_CACHE_GIB", "0.001")
    return cache_file("x").parent


def not_called(*_: Any, **__: Any) -> np.ndarray:
    raise AssertionError("embedded again")


def test_the_second_time_nothing_is_embedded_and_all_is_the_same(
    small_world: SmallWorld, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = load_siglip(small_world.base)
    dataset, told = load(small_world.manifest, "val"), list[int]()
    execution = Execution(on_progress=told.append)
    plain, first = embed(model, inputs, dataset), embed(model, inputs, dataset, cached=True)
    monkeypatch.setattr("eval.search.retrieve.embed_images", not_called)
    monkeypatch.setattr("eval.search.retrieve.embed_captions", not_called)
    again = embed(*load_siglip(small_world.base), load(small_world.manifest, "val"), cached=True, execution=execution)
    for one in (first, again):
        assert one.images_ID.tobytes() == plain.images_ID.tobytes() and one.captions_CD.tobytes() == plain.captions_CD.tobytes()
        assert one.images_ID.dtype == np.float32 and one.images_ID.shape == plain.images_ID.shape
    assert again.image_seconds == pytest.approx(first.image_seconds, rel=1e-6), "what embedding took when it was done"
    assert sum(told) == dataset.num_images + dataset.num_captions
    assert len(list(folder.iterdir())) == 2


def test_a_report_is_the_same_with_and_without_it(small_world: SmallWorld, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = EvaluationPlan(checkpoints={"model": str(small_world.base)})

    def report() -> tuple[dict[str, Any], Any]:
        found = evaluate_plan(plan, load(small_world.manifest, "val"))
        assert found is not None
        record = found.record
        assert record["stages"]["model"].pop("cost")["seconds"] > 0
        return record, found.figures.queries

    made, read = report(), report()
    monkeypatch.setenv("EMBEDDING_CACHE_GIB", "0")
    shutil.rmtree(folder)
    without = report()
    assert made[0] == read[0] == without[0] and made[1].equals(read[1]) and made[1].equals(without[1])
    assert not folder.exists(), "nothing is written"


def test_a_report_in_bf16_says_so(small_world: SmallWorld) -> None:
    plan, dataset = EvaluationPlan(checkpoints={"model": str(small_world.base)}), load(small_world.manifest, "val")
    exact, half = (evaluate_plan(plan, dataset, execution=Execution(precision=one)) for one in ("fp32", "bf16"))  # type: ignore[arg-type]
    assert exact is not None and half is not None
    assert half.record["precision"] == half.record["stages"]["model"]["inputs"]["precision"] == "bf16"
    assert "precision" not in exact.record and "precision" not in exact.record["stages"]["model"]["inputs"]
    assert any("embedded in bf16" in warning for section in half.sections for warning in section.warnings)


def test_what_decides_the_bits_decides_the_name(small_world: SmallWorld, tmp_path: Path, folder: Path) -> None:
    manifest = write_pictures(tmp_path / "data")
    model, inputs = load_siglip(small_world.base)
    dataset = load(manifest)

    def keys(execution: Execution = ONE_PROCESS) -> tuple[str | None, str | None]:
        return image_key(model, inputs, dataset, execution), text_key(model, inputs, dataset.captions, execution)

    first = keys()
    assert None not in first and first[0] != first[1] and keys() == first
    assert keys(Execution(num_workers=3)) == first
    held = inputs.with_tokens_of([list(dataset.captions)])
    assert held.tokens is not None and text_key(model, held, dataset.captions, ONE_PROCESS) == first[1], "ids are the same, held or not"
    assert not set(keys(Execution(precision="bf16"))) & set(first)
    torch.set_num_threads(torch.get_num_threads() + 1)
    try:
        assert not set(keys()) & set(first)
    finally:
        torch.set_num_threads(torch.get_num_threads() - 1)
    assert text_key(model, inputs, [*dataset.captions][:-1], ONE_PROCESS) != first[1]
    assert text_key(model, inputs, ["ab", "c"], ONE_PROCESS) != text_key(model, inputs, ["a", "bc"], ONE_PROCESS)
    assert image_key(model, replace(inputs, image_size=7), dataset, ONE_PROCESS) != first[0]
    with torch.no_grad():
        next(model.text_model.parameters()).view(-1)[0] += 1
    image, text = keys()
    assert image == first[0] and text != first[1], "each tower has its own weights"
    model.config.vision_config.num_attention_heads //= 2  # no weight says how many heads there are
    assert keys()[0] != first[0]
    model.config.vision_config.num_attention_heads *= 2
    os.utime(dataset.path(3))
    assert keys()[0] != first[0], "a picture may have changed"
    os.unlink(dataset.path(3))
    assert keys()[0] != first[0]


@pytest.mark.parametrize("change", ["adapter", "forward", "other"])
def test_a_tower_that_is_more_than_its_weights_is_not_cached(small_world: SmallWorld, change: str) -> None:
    model, inputs = load_siglip(small_world.base)
    other: Any = model
    if change == "adapter":
        model.text_model.head = type("Scaled", (torch.nn.Linear,), {"__module__": "elsewhere"})(*model.text_model.head.weight.shape[::-1])
    elif change == "forward":
        model.text_model.forward = model.text_model.forward
    else:
        other = torch.nn.Module()
    assert text_key(other, inputs, ["a dog"], ONE_PROCESS) is None


def rows_of(make: Callable[[], np.ndarray], key: str = "key") -> np.ndarray:
    return cached_vectors(lambda: key, make, execution=ONE_PROCESS)[0]


def test_a_damaged_file_is_said_and_made_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = np.random.default_rng(0).standard_normal((5, 3), dtype=np.float32)
    assert rows_of(lambda: made) is made
    assert rows_of(not_called).tobytes() == made.tobytes()
    whole = cache_file("key").read_bytes()
    flipped = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in (0, 10, len(whole) - 1)]
    for content in (b"", b"x", whole[:40], whole[:-1], whole + b"x", b"\0" * 4, *flipped):
        cache_file("key").write_bytes(content)
        capfd.readouterr()
        assert rows_of(lambda: made) is made, "made again"
        assert f"{cache_file('key')} is damaged" in capfd.readouterr().err
        assert cache_file("key").read_bytes()[:64] == whole[:64]


def test_what_changes_meanwhile_is_not_stored(folder: Path) -> None:
    names = iter(["before", "after"])
    cached_vectors(lambda: next(names), lambda: np.ones((2, 2), dtype=np.float32), execution=ONE_PROCESS)
    assert not folder.exists() or not list(folder.iterdir())


def test_rows_of_pictures_with_a_warning_are_never_stored(folder: Path) -> None:
    """Said of a picture for an earlier model of the same command, a warning is not said again; nor are the rows kept that would hide it."""

    def make() -> np.ndarray:
        note("a.jpg", ["odd colours"])
        return np.ones((2, 3), dtype=np.float32)

    for key in ("one", "two"):
        cached_vectors(lambda key=key: key, make, execution=ONE_PROCESS)  # type: ignore[misc]
        assert not cache_file(key).exists()


def test_what_was_used_longest_ago_goes_first(folder: Path) -> None:
    """Room for 1,073 kB: three of 350 kB."""
    rows = np.zeros((350, 250), dtype=np.float32)
    for number, name in enumerate("abc"):
        store_rows(cache_file(name), [rows], rows.nbytes)
        os.utime(cache_file(name), (number, number))
    rows_of(not_called, "a")
    store_rows(cache_file("d"), [rows[:100], rows[100:]], rows.nbytes)
    assert {path.stem for path in folder.iterdir()} == {"a", "c", "d"}
    store_rows(cache_file("large"), [np.tile(rows, (4, 1))], 4 * rows.nbytes)
    assert {path.stem for path in folder.iterdir()} == {"a", "c", "d"}


def test_a_killed_writer_leaves_nothing_that_is_read(folder: Path) -> None:
    folder.mkdir(parents=True)
    half = folder / f".key.f32.{cache.sweep.__globals__['_host']()}{2**31 - 1:08x}{1:016x}abcdef01.tmp"
    half.write_bytes(b"half of it")
    assert rows_of(lambda: np.ones((2, 2), dtype=np.float32)).all()
    assert {path.name for path in folder.iterdir()} == {"key.f32"}


def test_files_are_given_to_other_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"rows")
    assert not bring_file("key", tmp_path / "two")
    store_file("key", tmp_path / "one")
    assert bring_file("key", tmp_path / "two") and (tmp_path / "two").read_bytes() == b"rows"
    (tmp_path / "one").unlink()
    assert cache_file("key").read_bytes() == b"rows"


def test_an_unusable_bound_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("EMBEDDING_CACHE_GIB", text)
        with pytest.raises(UserError, match="EMBEDDING_CACHE_GIB is"):
            rows_of(not_called)


def test_a_folder_that_cannot_be_written_is_done_without(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("a file is in its place")
    assert rows_of(lambda: np.ones((2, 2), dtype=np.float32)).all()
