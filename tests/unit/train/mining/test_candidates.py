"""train/mining/candidates.py against a dense product of embeddings, one process against several, and the files on the disk meanwhile."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.dataset.retrieval_set import RetrievalSet
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError
from eval.execution import Execution
from tests.nursery import Nursery, Trap
from tests.small_job import SmallWorld, load, write_pictures
from tests.unit.train.mining.candidates_worker import FURTHER, SOME_CAPTIONS, SOME_IMAGES, approximate_is_here
from train.config.mining import MiningConfig
from train.data.caption_pool import CaptionPool
from train.mining.candidates import Candidates, Retriever, find_candidates
from train.mining.faiss_index import require_faiss
from train.mining.mine import Selector, mine
from train.mining.refresh import rules_of
from train.mining.report import summarize

WORKER = "tests.unit.train.mining.candidates_worker"
BROKEN = (2, 11)
needs_faiss = pytest.mark.skipif(not approximate_is_here(), reason="faiss is not installed")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small job's data, two of its images broken."""
    folder = tmp_path_factory.mktemp("broken")
    path = write_pictures(folder)
    for number in BROKEN:
        (folder / "pictures" / f"train-{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return path


@pytest.fixture(scope="module")
def dataset(manifest: Path) -> RetrievalSet:
    return load(manifest)


@pytest.fixture(scope="module")
def cosines(small_world: SmallWorld, dataset: RetrievalSet) -> np.ndarray:
    """All images against the whole pool."""
    model, inputs = load_siglip(small_world.base)
    images = embed_images(model, inputs, dataset, remedy=None)
    return images @ embed_captions(model, inputs, [*dataset.captions, *FURTHER]).T


def run_ranks(nursery: Nursery, manifest: Path, world: SmallWorld, folder: Path, num: int) -> list[dict[str, np.ndarray]]:
    """What each process of a job found."""
    folder.mkdir()
    children = nursery.start_ranks(WORKER, [str(manifest), str(world.base), str(folder)], num)
    assert [child.wait() for child in children] == [0] * num, "".join(child.output() for child in children)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(num)]


@pytest.fixture(scope="module")
def alone(nursery: Nursery, manifest: Path, small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one process finds on the small grid."""
    return run_ranks(nursery, manifest, small_world, tmp_path_factory.mktemp("alone") / "one", 1)[0]


@pytest.mark.parametrize("num", [2, 3])
def test_several_processes_find_byte_for_byte_what_one_finds(
    alone: dict[str, np.ndarray], nursery: Nursery, manifest: Path, small_world: SmallWorld, tmp_path: Path, num: int
) -> None:
    for found in run_ranks(nursery, manifest, small_world, tmp_path / "several", num):
        assert set(found) == set(alone)
        for name, values in found.items():
            assert values.dtype == alone[name].dtype and values.tobytes() == alone[name].tobytes(), name


def head_of(cosines_N: np.ndarray, indices_K: np.ndarray, found_K: np.ndarray, allowed: np.ndarray) -> None:
    """Scores fall, each is its item's own, and no item left out scores above the last."""
    assert (np.diff(found_K) <= 0).all() and np.isin(indices_K, allowed).all() and len(set(indices_K.tolist())) == len(indices_K)
    np.testing.assert_allclose(found_K, cosines_N[indices_K], atol=1e-5)
    rest = np.setdiff1d(allowed, indices_K)
    assert not len(rest) or cosines_N[rest].max() <= found_K[-1] + 1e-5
    tied = np.flatnonzero(found_K[1:] == found_K[:-1])
    assert (indices_K[tied] < indices_K[tied + 1]).all()


def test_candidates_are_the_top_k_of_the_dense_product(alone: dict[str, np.ndarray], dataset: RetrievalSet, cosines: np.ndarray) -> None:
    """Over the split and the additional captions; equal texts are in the order of the pool."""
    captions = alone["whole.items_QK"]
    assert captions.shape == (40, 30) and (captions >= dataset.num_captions).any() and (captions < dataset.num_captions).any()
    decodable = alone["whole.readable_Q"]
    assert np.flatnonzero(~decodable).tolist() == [list(dataset.image_ids).index(f"pictures/train-{n:03d}.png") for n in BROKEN]
    for image in np.flatnonzero(decodable):
        head_of(cosines[image], captions[image], alone["whole.cosines_QK"][image], np.arange(cosines.shape[1]))
        true = np.flatnonzero(dataset.is_positive(np.array(image), dataset.caption_hash_C))
        assert alone["whole.best_positive_Q"][image] == pytest.approx(float(cosines[image, true].max()), abs=1e-5)
    assert (np.diff(alone["whole.cosines_QK"], axis=1) == 0).any(), "equal captions must meet, or ties are not tried"


def test_mining_some_images_finds_what_mining_all_finds_for_them(alone: dict[str, np.ndarray]) -> None:
    """Bit for bit: a row depends neither on the other rows of its block nor on its place."""
    assert alone["some.queries_Q"].tolist() == SOME_IMAGES.tolist()
    for name in ("items_QK", "cosines_QK", "best_positive_Q", "readable_Q"):
        assert alone[f"some.{name}"].tobytes() == alone[f"whole.{name}"][SOME_IMAGES].tobytes(), name


def test_images_of_captions_are_the_top_k_of_the_other_direction(
    alone: dict[str, np.ndarray], dataset: RetrievalSet, cosines: np.ndarray
) -> None:
    there = np.flatnonzero(alone["whole.readable_Q"])
    for caption in range(dataset.num_captions):
        head_of(cosines[:, caption], alone["images.items_QK"][caption], alone["images.cosines_QK"][caption], there)
        true = [i for i in there if dataset.is_positive(np.array(i), dataset.caption_hash_C[caption])]
        best = max((float(cosines[i, caption]) for i in true), default=-np.inf)
        assert alone["images.best_positive_Q"][caption] == pytest.approx(best, abs=1e-5)
    assert np.isneginf(alone["images.best_positive_Q"]).any(), "some caption is true of broken pictures alone"
    for name in ("items_QK", "cosines_QK", "best_positive_Q"):
        assert alone[f"few.{name}"].tobytes() == alone[f"images.{name}"][SOME_CAPTIONS].tobytes(), name


def test_a_pool_smaller_than_k_and_pictures_fewer_than_k(small_world: SmallWorld, dataset: RetrievalSet) -> None:
    model, inputs = load_siglip(small_world.base)
    some = np.array([1, 2])
    found = find_candidates(Retriever(model, inputs), CaptionPool(dataset), 999, some)
    assert [sorted(row) for row in found.items_QK.tolist()] == [list(range(dataset.num_captions))] * 2
    images = find_candidates(Retriever(model, inputs), CaptionPool(dataset), 999, some, mined_for="captions").items_QK
    assert images.shape == (2, 40) and (images[:, -2:] == -1).all() and (images[:, :-2] >= 0).all()


def open_without_a_name(folder: Path) -> int:
    """Files of this process that lie in a folder but have no name there."""
    links = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink() and os.path.lexists(entry)]
    return sum(link.startswith(str(folder)) and link.endswith("(deleted)") for link in links)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")
@pytest.mark.parametrize("broken", [False, True])
def test_the_disk_is_given_back_after_success_and_after_failure(
    small_world: SmallWorld, dataset: RetrievalSet, tmp_path: Path, broken: bool
) -> None:
    model, inputs = load_siglip(small_world.base)
    folder, seen = tmp_path / "negatives", []

    def look(rows: int) -> None:
        seen.append((open_without_a_name(folder), list(folder.iterdir())))

    if broken:
        with torch.no_grad():
            model.text_model.head.bias.fill_(torch.nan)
        with pytest.raises(UserError, match="caption embedding"):
            find_candidates(Retriever(model, inputs), CaptionPool(dataset), 5, folder=folder, execution=Execution(on_progress=look))
    else:
        find_candidates(Retriever(model, inputs), CaptionPool(dataset), 5, folder=folder, execution=Execution(on_progress=look))
    assert seen and all(entry == (2, []) for entry in seen), "one file for images and one for captions, and no name"
    assert open_without_a_name(folder) == 0 and list(folder.iterdir()) == []


def test_a_killed_process_leaves_nothing(nursery: Nursery, manifest: Path, small_world: SmallWorld, tmp_path: Path) -> None:
    """Its embeddings have no name: there is nothing to clean up, and nothing that could be read as a result."""
    trap = Trap("train.mining.candidates:stream_search", 1)
    (child,) = nursery.start_ranks(WORKER, [str(manifest), str(small_world.base), str(tmp_path)], 1, traps={0: trap})
    assert child.wait() == -signal.SIGKILL, child.output()
    assert [path.name for path in tmp_path.rglob("*")] == ["negatives"]


def test_memory_does_not_grow_with_the_pool(nursery: Nursery, small_world: SmallWorld, manifest: Path, tmp_path: Path) -> None:
    child = nursery.start(WORKER, [str(manifest), str(small_world.base), str(tmp_path), "memory"])
    assert child.wait() == 0, child.output()
    found = json.loads((tmp_path / "memory.json").read_text())
    assert found["growth"] < found["bytes"] / 4, found


def test_absent_candidates_are_never_selected_nor_counted(dataset: RetrievalSet) -> None:
    candidates = np.full((40, 3), -1)
    candidates[0] = [dataset.num_captions - 1, -1, -1]
    cosines = np.where(candidates < 0, -np.inf, 0).astype(np.float32)
    found = Candidates(np.arange(40), candidates, cosines, np.ones(40, np.float32), np.ones(40, bool))
    pool = CaptionPool(dataset)
    mined = Selector(pool, np.float32(1), np.float32(0), MiningConfig(mine_every_steps=1)).select("m", found)
    negatives, report = mined.negatives, summarize(mined, pool, None, None)
    assert negatives.captions_N.tolist() == [dataset.num_captions - 1] and report.num_looked_at == 1 and report.shortfall == 159


@needs_faiss
def test_an_index_that_searches_every_list_finds_everything_and_another_reports_its_recall(
    alone: dict[str, np.ndarray], small_world: SmallWorld, dataset: RetrievalSet, cosines: np.ndarray
) -> None:
    """The small index has about ten lists; its recall is recomputed from the dense product."""
    found = alone["approximate.items_QK"]
    sampled = np.flatnonzero(alone["whole.readable_Q"])
    sampled = sampled[np.unique(np.linspace(0, len(sampled) - 1, 20).astype(int))]
    last = alone["whole.cosines_QK"][:, -1]
    shares = [np.isin(found[image], np.flatnonzero(cosines[image] >= last[image] - 1e-6)).mean() for image in sampled]
    assert float(alone["approximate.recall"]) == pytest.approx(np.mean(shares)) and 0.3 < np.mean(shares) < 1
    assert (found == -1).any(), "three of ten lists hold fewer than thirty captions somewhere"
    for row, scores in zip(found, alone["approximate.cosines_QK"], strict=True):
        count = int((row >= 0).sum())
        assert (row[count:] == -1).all() and np.isneginf(scores[count:]).all() and len(set(row[:count].tolist())) == count
    np.testing.assert_allclose(alone["approximate.best_positive_Q"], alone["whole.best_positive_Q"], atol=1e-6)
    model, inputs = load_siglip(small_world.base)
    exact = find_candidates(Retriever(model, inputs), CaptionPool(dataset), 12)
    everywhere = find_candidates(Retriever(model, inputs), CaptionPool(dataset), 12, num_probes=999)
    assert everywhere.recall == 1 and exact.recall is None
    np.testing.assert_allclose(everywhere.cosines_QK, exact.cosines_QK, atol=1e-6)
    again = find_candidates(Retriever(model, inputs), CaptionPool(dataset), 12, num_probes=999)
    assert all(np.asarray(getattr(again, name)).tobytes() == np.asarray(getattr(everywhere, name)).tobytes() for name in fields())


def fields() -> list[str]:
    return list(Candidates.__dataclass_fields__)


@needs_faiss
def test_the_index_is_part_of_the_name_and_its_recall_of_the_report(small_world: SmallWorld, dataset: RetrievalSet) -> None:
    model, inputs = load_siglip(small_world.base)
    configs = [
        MiningConfig.model_validate({"mine_every_steps": 1, **keys})
        for keys in ({}, {"index": "faiss"}, {"index": "faiss", "index_probes": 2})
    ]
    assert rules_of(configs[0]) != rules_of(configs[1]) != rules_of(configs[2]) != rules_of(configs[0])
    with pytest.raises(ValueError, match="index_probes does nothing in an exact search"):
        MiningConfig(mine_every_steps=1, index_probes=2)
    negatives, report = mine(Retriever(model, inputs), CaptionPool(dataset), configs[2])
    assert 0 < report.as_record()["index_recall"] <= 1
    assert f"recall of the index: {100 * report.index_recall:.2f}% of the exact" in " ".join(report.lines())
    assert report.num_mined == len(negatives) > 0


def test_without_faiss_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install -c constraints\.txt -e '\.\[faiss\]'.*mining\.index=exact"):
        require_faiss()
