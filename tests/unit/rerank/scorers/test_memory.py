"""rerank/scorers/memory.py: how many captions a GPU scores at once, by numbers that a GPU would give."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rerank.scorers import memory
from rerank.scorers.blip.scorer import BlipScorer

CAPTIONS = ["a red dog", "a cat", "the blue circle above a green square", "two dogs", "a dog sits on the cat", "left", "right of the cat"]


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A GPU without room for more than two captions; what it was asked to score."""
    asked: list[int] = []
    scores = BlipScorer._scores

    def _scores(self: BlipScorer, encoded: Any, ids: list[tuple[int, ...]]) -> torch.Tensor:
        asked.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return scores(self, encoded, ids)

    monkeypatch.setattr(BlipScorer, "_scores", _scores)
    monkeypatch.setattr(memory, "_told", [])
    return asked


def test_what_has_no_room_is_halved_and_said_once(tiny_blip: Path, noise, full: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    scorer = BlipScorer.load(str(tiny_blip), device="cpu")
    expected = np.concatenate([scorer.score(noise(1), [caption]) for caption in CAPTIONS])
    full.clear()
    found = [scorer.score(noise(1), CAPTIONS) for _ in range(2)]
    assert full == [7, 3, 1, 1, 1, 1, 1, 1, 1] + [1] * 7, "7 and then 3 are refused; from then on as many as went through"
    assert np.abs(found[0] - expected).max() < 1e-5 and np.array_equal(*found)
    told = capsys.readouterr().err
    assert told.count("warning") == 1 and "blip: the GPU has no room for 7 captions of a picture at once; 3 from here on" in told


def test_one_caption_without_room_is_an_error(tiny_blip: Path, noise, full: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(BlipScorer, "_scores", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        BlipScorer.load(str(tiny_blip), device="cpu").score(noise(1), CAPTIONS)


@pytest.mark.parametrize(("total", "expected"), [(1000, 1), (128_000, 32), (200_000, 32), (2 * 10**6, 256), (10**9, 256)])
def test_a_trial_of_the_longest_captions_says_how_many_fit(monkeypatch: pytest.MonkeyPatch, total: int, expected: int) -> None:
    """A trial takes 16,000 bytes for 16 captions: 1,000 each, of which a quarter of the GPU has room for `expected`."""
    held, seen = {"now": 500, "most": 500}, list[Any]()

    def score(ids: list[tuple[int, ...]]) -> None:
        seen.append(ids)
        held["most"] = held["now"] + 1000 * len(ids)

    numbers = {
        "reset_peak_memory_stats": lambda device: None,
        "memory_allocated": lambda device: held["now"],
        "max_memory_allocated": lambda device: held["most"],
        "get_device_properties": lambda device: SimpleNamespace(total_memory=total),
    }
    monkeypatch.setattr(memory.torch, "cuda", SimpleNamespace(**numbers))
    assert memory.fitting_memory(score, 35, torch.device("cpu")) == expected
    assert seen == [[(0,) * 35] * 16]
