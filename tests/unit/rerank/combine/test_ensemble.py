"""Ensembles of first stages: the mean of logits, the option, and the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eval.__main__ import parse, run
from eval.dataset.retrieval_set import PositivePairs
from eval.errors import UserError
from eval.processes import Processes
from eval.search.ranking import DIRECTIONS
from rerank.combine.combine import mean_of_members, rank_ensemble
from rerank.combine.spec import parse_member
from rerank.combine.views import EnsembleMember, Views
from tests.small_job import SmallWorld

NUM_IMAGES, NUM_CAPTIONS = 7, 11


def member(seed: int, width: int, scale: float = 100.0, bias: float = -10.0) -> EnsembleMember:
    rng = np.random.default_rng(seed)

    def vectors(rows: int) -> Views:
        drawn = rng.standard_normal((rows, width))
        return Views.plain((drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32))

    return EnsembleMember(vectors(NUM_IMAGES), vectors(NUM_CAPTIONS), scale, bias, torch.device("cpu"))


def cosine(one: EnsembleMember, image: int, caption: int) -> float:
    return sum(float(a) * float(b) for a, b in zip(one.images.vectors_ND[image], one.captions.vectors_ND[caption], strict=True))


def dense_mean(members: list[EnsembleMember], weights: list[float]) -> np.ndarray:
    """Weighted mean of logits, float64, one pair and one member at a time."""
    mean_IC = np.zeros((NUM_IMAGES, NUM_CAPTIONS))
    for image in range(NUM_IMAGES):
        for caption in range(NUM_CAPTIONS):
            for one, weight in zip(members, weights, strict=True):
                mean_IC[image, caption] += weight / sum(weights) * (one.scale * cosine(one, image, caption) + one.bias)
    return mean_IC


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(2, 9), st.floats(1, 120), st.floats(0.05, 20)), min_size=2, max_size=4))
def test_the_mean_of_members_is_the_weighted_mean_of_logits(drawn: list[tuple[int, int, float, float]]) -> None:
    members = [member(seed, width, scale, -float(seed)) for seed, width, scale, _ in drawn]
    weights = [weight for *_, weight in drawn]
    shares, scale, bias = mean_of_members([one.scale for one in members], [one.bias for one in members], weights)
    expected_IC = dense_mean(members, weights)
    for image in range(NUM_IMAGES):
        for caption in range(NUM_CAPTIONS):
            mean = sum(share * cosine(one, image, caption) for share, one in zip(shares, members, strict=True))
            assert scale * mean + bias == pytest.approx(expected_IC[image, caption], abs=1e-6 * max(100.0, np.abs(expected_IC).max()))
    assert sum(shares) == pytest.approx(1)


class Pairs:
    """A data set of which each image's relevant captions are those of its number modulo NUM_IMAGES."""

    def positives(self, direction):  # type: ignore[no-untyped-def]
        owner_C = np.arange(NUM_CAPTIONS) % NUM_IMAGES
        if direction == "text_to_image":
            return PositivePairs(np.arange(NUM_CAPTIONS + 1), owner_C)
        counts = np.bincount(owner_C, minlength=NUM_IMAGES)
        return PositivePairs(np.append(0, np.cumsum(counts)), np.argsort(owner_C, kind="stable"))


def test_it_is_ranked_by_the_mean_of_logits() -> None:
    members, weights = [member(1, 5), member(2, 8, scale=20.0)], [1.0, 3.0]
    found = rank_ensemble(members, Pairs(), weights=weights, depth=10)  # type: ignore[arg-type]
    mean_IC = dense_mean(members, weights)
    for direction, scores_QN in zip(DIRECTIONS, (mean_IC, mean_IC.T), strict=True):
        order_QN = np.argsort(-scores_QN, axis=1, kind="stable")
        np.testing.assert_array_equal(found[direction].top_indices_QK, order_QN[:, : found[direction].depth])
    shares, scale, bias = mean_of_members([100.0, 20.0], [-10.0, -10.0], weights)
    assert shares == pytest.approx([0.625, 0.375]) and (scale, bias) == (40.0, -10.0)


def test_members_are_read_from_the_command_line() -> None:
    assert parse_member("a/b") == ("a/b", 1.0) and parse_member("a/b:0.25") == ("a/b", 0.25)
    for text in ("a:", "a:0", "a:-1", "a:x", ":1", "a:inf"):
        with pytest.raises(UserError, match="DIR_OR_HUB_ID"):
            parse_member(text)


def test_the_command_measures_members_and_ensemble(small_world: SmallWorld, tmp_path: Path) -> None:
    """The model with itself is itself; with another it is neither, and each member is compared with it."""
    other = tmp_path / "other"
    shutil.copytree(small_world.base, other)
    tensors = load_file(other / "model.safetensors")
    torch.manual_seed(0)
    noisy = {name: tensor + 0.3 * tensor.std(unbiased=False) * torch.randn_like(tensor) for name, tensor in tensors.items()}
    save_file(noisy, other / "model.safetensors", metadata={"format": "pt"})
    common = ["--model", str(small_world.base), "--data", str(small_world.manifest), "--split", "test", "--num-workers", "0"]

    def stages_of(*members: str) -> dict:
        arguments = [word for text in members for word in ("--ensemble", text)]
        run(parse([*common, "--output", str(tmp_path / "out"), *arguments]), Processes(), torch.device("cpu"))
        return json.loads((tmp_path / "out" / "report.json").read_text())

    itself = stages_of(f"{small_world.base}:0.5")
    assert list(itself["stages"]) == ["model", "model-2", "ensemble"]
    figures = [stage["text_to_image"] for stage in itself["stages"].values()]
    assert figures[0] == figures[1] == figures[2]
    mixed = stages_of(str(other), f"{small_world.base}:2")
    assert list(mixed["stages"]) == ["model", "model-2", "model-3", "ensemble"]
    compared = {(row["stage"], row["against"]) for row in mixed["comparisons"]}
    assert {("ensemble", "model"), ("ensemble", "model-2"), ("ensemble", "model-3")} <= compared
    assert mixed["stages"]["ensemble"]["text_to_image"]["mean_rank"] != mixed["stages"]["model-2"]["text_to_image"]["mean_rank"]
