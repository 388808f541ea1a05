"""What a GPU refuses and waits for, without one: nothing is refused, and a steady step waits twice, whatever its form and however many take
part."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.nursery import Nursery
from tests.small_job import SmallWorld
from tests.tiny_blip import write_tiny_blip

WAITS = {"tolist train/optim/update.py": 1, "synchronize eval/processes.py": 1}
"""Losses and norm before the update; the weights' norm, scale and bias after it, while the host reads the next batch."""


@pytest.fixture(scope="module")
def words(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What tests/integration/train/pretended.py is given."""
    folder = tmp_path_factory.mktemp("pretended")
    write_tiny_blip(folder / "blip")
    return [str(small_world.manifest), str(small_world.base), str(folder / "blip"), str(folder)]


@pytest.fixture(scope="module")
def record(words: list[str], nursery: Nursery) -> dict[str, Any]:
    """What one process writes."""
    child = nursery.start("tests.integration.train.pretended", words)
    assert child.wait() == 0, child.output()
    return dict(json.loads((Path(words[-1]) / "1-0.json").read_text()))


def of_several(words: list[str], nursery: Nursery, world_size: int) -> list[dict[str, Any]]:
    """What each of several processes writes."""
    children = nursery.start_ranks("tests.integration.train.pretended", words, world_size)
    assert [child.wait() for child in children] == [0] * world_size, "".join(child.output() for child in children)
    return [json.loads((Path(words[-1]) / f"{world_size}-{rank}.json").read_text()) for rank in range(world_size)]


def without_lines(waits: dict[str, int]) -> dict[str, int]:
    return {place.rpartition(":")[0]: count for place, count in waits.items()}


def test_a_steady_step_waits_twice_an_embedding_not_at_all_and_a_search_for_its_results(record: dict[str, Any]) -> None:
    """A search waits for no tile, a scoring for no picture; a reranker's step waits as SigLIP's."""
    reranking = record["waits"]["reranking"]
    assert all(place.startswith("step: ") for place in reranking) and sum(reranking.values()) <= 2, reranking
    assert record["waits"]["embedding"] == {}
    mining = record["waits"]["mining"]
    assert sorted(mining.values()) == [2, 2], f"two results of the only block of queries each from two lines: {mining}"
    search = record["waits"]["search"]
    assert sorted(search.values()) == [1, 2, 2 * 5], "the gallery, ranks of each direction, two results of each of five blocks of queries"
    assert len(record["steps"]) == 6
    for case, found in record["steps"].items():
        assert without_lines(found["waits"]) == WAITS and found["exchanges"] == [], case


def test_everything_gives_what_the_cpu_gives(record: dict[str, Any]) -> None:
    found = record["differences"]
    assert found["ranks"] == found["mined"] == 0
    for name, value in found.items():
        assert value < (1e-3 if name.endswith("weights") else 1e-4 if name == "margins" else 1e-5), name


def assert_told_at_once(case: str, found: dict[str, Any]) -> None:
    """The hosts of a steady step wait for one another once, after the forward pass, for what was told before it; gradients are summed while
    the backward pass runs."""
    names, places = zip(*found["exchanges"], strict=True)
    texts = ["all_gather_into_tensor", "all_to_all_single"] if case != "float32-own" else ["isend", "irecv"] * 2  # and their gradients
    expected = ["host all_gather begins", "host all_gather waits", *(f"device {name}" for name in texts)]
    expected += ["device all_gather_into_tensor"]  # losses
    told = len(expected)
    assert list(names[:told]) == expected
    assert set(names[told:]) == {"device all_reduce"} and 4 <= len(names[told:]) <= 8
    assert places[1] - places[0] > 100  # the forward pass
    losses, *sums = places[told - 1 :]
    assert sums[-1] - losses > 200 and sums[len(sums) // 2] - losses < 0.8 * (sums[-1] - losses)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_under_nccls_rule(record: dict[str, Any], words: list[str], nursery: Nursery, world_size: int) -> None:
    """Two waits and one exchange of the host on each; losses are those of one process on the CPU; two resume to the same bits."""
    for own in of_several(words, nursery, world_size):
        assert set(own["steps"]) == ({"float32-none", "float32-own", "float32-all", "float64-all"} if world_size == 2 else {"float64-all"})
        for case, found in own["steps"].items():
            assert without_lines(found["waits"]) == WAITS, case
            assert_told_at_once(case, found)
        for name, value in own["differences"].items():
            exact = {"float64-all": 1e-10, "float64-all, weights": 1e-6, "ranks": 1e-30, "mined": 1e-30}
            assert value < exact.get(name, 1e-3 if name.endswith("weights") else 1e-5), name
