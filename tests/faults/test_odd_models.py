"""A model's folder with one fault in its files: refused by name, exit 2, or its figures are right; never a traceback."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from eval.errors import UserError
from tests.odd_models import DROPPED, KINDS, Fault, Figures, faults_of, write_models
from tests.small_job import SmallWorld

NUM_EXAMPLES = int(os.environ.get("ODD_MODELS", "40"))  # of all kinds together; a long run: ODD_MODELS=5000
FOUND = [
    ("siglip", Fault("config.json", ("dtype",), [1])),
    ("siglip", Fault("config.json", ("vision_config", "num_attention_heads"), 0)),
    ("siglip", Fault("config.json", ("text_config", "hidden_size"), "large")),
    ("siglip", Fault("config.json", ("text_config", "num_attention_heads"), -1)),
    ("siglip", Fault("preprocessor_config.json", ("image_mean",), [0.5])),
    ("siglip", Fault("preprocessor_config.json", ("image_std", 0), None)),
    ("siglip", Fault("preprocessor_config.json", ("rescale_factor",), {"a": 1})),
    ("siglip", Fault("preprocessor_config.json", ("size",))),
    ("siglip", Fault("tokenizer_config.json", ("model_input_names", 0), 7)),
    ("siglip-sharded", Fault("model.safetensors.index.json", ("weight_map",), [])),
    ("siglip-sharded", Fault("model.safetensors.index.json", ("metadata",), 3)),
    ("siglip2", Fault("preprocessor_config.json", ("size", "width"), 2**63)),
    ("siglip2", Fault("tokenizer.json", ("model", "dropout"), {"a": 1})),
    ("siglip2", Fault("config.json", whole=b"[" * 100_000)),
    ("albef", Fault("tokenizer.json", ("model", "vocab", "[PAD]"), 2**31)),
    ("albef", Fault("tokenizer_config.json", ("unk_token",), "")),
    ("albef", Fault("tokenizer_config.json", ("model_max_length",), [0.5])),
    ("albef", Fault("config.json", ("text_config", "num_hidden_layers"), 2**63)),
    ("albef", Fault("config.json", ("vision_config", "intermediate_size"), 2**40)),
]
"""Each was a traceback, or had no end."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def models(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd-models")
    write_models(folder, small_world.base)
    return folder


@pytest.fixture(scope="module")
def right(models: Path) -> dict[str, Figures]:
    return {kind: figures(str(models / kind)) for kind, figures in KINDS.items()}


def check(models: Path, right: dict[str, Figures], kind: str, fault: Fault, target: Path) -> str:
    """What became of a fault: refused by name, void with the same figures, or another model with finite ones."""
    fault.copy(models / kind, target)
    try:
        found = KINDS[kind](str(target))
    except UserError as error:
        assert error.exit_code == 2 and str(target) in str(error), f"{kind} {fault}: {error}"
        return "refused"
    assert np.isfinite(found.scores).all(), f"{kind} {fault}"
    if found.content == right[kind].content:
        assert np.array_equal(found.scores, right[kind].scores), f"{kind} {fault}"
        return "void"
    return "another"


@pytest.mark.parametrize(("kind", "fault"), FOUND, ids=str)
def test_a_fault_that_was_a_traceback_is_refused_or_void(
    models: Path, right: dict[str, Figures], tmp_path: Path, kind: str, fault: Fault
) -> None:
    assert check(models, right, kind, fault, tmp_path / "odd") in ("refused", "void")


def test_one_fault_in_any_file_of_any_model_is_refused_by_name_or_harmless(
    models: Path, right: dict[str, Figures], tmp_path: Path
) -> None:
    outcomes: list[str] = []

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=NUM_EXAMPLES < 1000,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(kind=st.sampled_from(sorted(KINDS)), number=st.integers(0, 10**9))
    def holds(kind: str, number: int) -> None:
        outcomes.append(check(models, right, kind, faults_of(models / kind, number), tmp_path / f"odd-{len(outcomes)}"))

    holds()
    print({outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))})
    assert {"refused", "void"} <= set(outcomes)


def test_a_void_fault_gives_the_same_figures(models: Path, right: dict[str, Figures], tmp_path: Path) -> None:
    fault = Fault("config.json", ("architectures",), DROPPED)
    for kind in ("siglip", "blip"):
        assert check(models, right, kind, fault, tmp_path / kind) == "void"
