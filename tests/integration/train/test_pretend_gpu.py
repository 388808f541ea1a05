"""What a GPU refuses and waits for, without one: nothing is refused, and a steady step waits twice."""

import json
from typing import Any

import pytest

from tests.nursery import Nursery
from tests.small_job import SmallWorld
from tests.tiny_blip import write_tiny_blip


@pytest.fixture(scope="module")
def record(small_world: SmallWorld, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/integration/train/pretended.py writes."""
    folder = tmp_path_factory.mktemp("pretended")
    write_tiny_blip(folder / "blip")
    words = [str(small_world.manifest), str(small_world.base), str(folder / "blip"), str(folder / "record.json")]
    child = nursery.start("tests.integration.train.pretended", words)
    assert child.wait() == 0, child.output()
    return json.loads((folder / "record.json").read_text())


def test_a_steady_step_waits_twice_an_embedding_not_at_all_and_a_search_for_its_results(record: dict[str, Any]) -> None:
    """A step waits for losses and norm before the update, and for the weights' norm, scale and bias after it; a search for no tile."""
    reranking = record["waits"].pop("reranking")  # a scoring waits for no picture, a step as SigLIP's
    assert all(place.startswith("step: tolist train/optim/update.py:") for place in reranking) and sum(reranking.values()) <= 2
    embedding = record["waits"].pop("embedding")
    assert embedding == {} and len(record["waits"]) == 7
    search = record["waits"].pop("search")
    assert sorted(search.values()) == [1, 2, 2 * 5], "the gallery, ranks of each direction, two results of each of five blocks of queries"
    for case, waits in record["waits"].items():
        ((place, count),) = waits.items()
        assert place.startswith("tolist train/optim/update.py:") and count == 2, case


def test_everything_gives_what_the_cpu_gives(record: dict[str, Any]) -> None:
    found = record["differences"]
    assert found["ranks"] == found["mined"] == 0
    for name, value in found.items():
        assert value < (1e-3 if name.endswith("weights") else 1e-4 if name == "margins" else 1e-5), name
