"""Ensembles of first stages: the mean of logits, the option, and the command."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from eval.__main__ import parse, run
from eval.errors import UserError
from eval.processes import Processes
from rerank.combine.ensemble import mean_of_members, parse_member
from tests.small_job import SmallWorld


@given(st.lists(st.tuples(st.floats(1, 120), st.floats(-20, 20), st.floats(0.05, 20), st.floats(-1, 1)), min_size=2, max_size=4))
def test_it_is_the_weighted_mean_of_logits(drawn: list[tuple[float, float, float, float]]) -> None:
    scales, biases, weights, cosines = zip(*drawn, strict=True)
    shares, scale, bias = mean_of_members(scales, biases, weights)
    logits = [one * cosine + other for one, other, _, cosine in drawn]
    expected = sum(weight * logit for weight, logit in zip(weights, logits, strict=True)) / sum(weights)
    assert scale * sum(share * cosine for share, cosine in zip(shares, cosines, strict=True)) + bias == pytest.approx(expected, abs=1e-9)
    assert sum(shares) == pytest.approx(1)


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
