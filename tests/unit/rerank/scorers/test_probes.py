"""Scorers that are complete and finite and yet cannot rank are refused by the probes; those that can rank pass."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.errors import UserError
from rerank.scorers.load import load_scorer
from rerank.scorers.probes import CAPTIONS, check_scorer, drawn_disc, drawn_stripes, fault_of
from rerank.scorers.scorer import InputLimits, Precision, ScorerSettings
from tests.unit.rerank.scorers.tiny_cross_encoders import FAMILIES, changed_copy

DEMO_BLIP = Path(__file__).parents[4] / "demo" / "models" / "blip-itm"


class Formula:
    """A scorer whose score is a formula of the picture's mean colour and the caption's length and batch."""

    name, fingerprint, reads = "formula", "formula", InputLimits(8, 8, 8)

    def __init__(self, formula: Callable[[float, float, Sequence[str]], float]) -> None:
        self._formula = formula

    def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
        shade = float(np.asarray(image, dtype=np.float64).mean() / 255)
        return np.array([self._formula(shade, len(caption) / 100, captions) for caption in captions], dtype=np.float32)


def fault(formula: Callable[[float, float, Sequence[str]], float], precision: Precision = "float32") -> str:
    with pytest.raises(UserError) as refusal:
        check_scorer(Formula(formula), "some/model", precision)
    assert "'some/model' (formula) cannot rerank" in str(refusal.value) and refusal.value.exit_code == 2
    return str(refusal.value)


def test_each_fault_is_named() -> None:
    assert "constant (0.25)" in fault(lambda shade, length, batch: 0.25)
    assert "ignores the picture" in fault(lambda shade, length, batch: length)
    assert "ignores the caption" in fault(lambda shade, length, batch: shade)
    assert "picture and caption apart" in fault(lambda shade, length, batch: 3 * shade - length)
    assert "not finite" in fault(lambda shade, length, batch: float("nan") if length > 0.2 else shade * length)
    assert "not finite" in fault(lambda shade, length, batch: float("inf") if len(batch) == 1 else shade * length)
    assert "depend on its batch" in fault(lambda shade, length, batch: shade * length + 1e-3 * len(batch))
    assert "depend on its batch" in fault(lambda shade, length, batch: shade * length - np.mean([len(c) for c in batch]))


def test_a_scorer_that_reads_both_passes() -> None:
    check_scorer(Formula(lambda shade, length, batch: shade * length), "some/model")
    check_scorer(Formula(lambda shade, length, batch: 1e-9 * shade * length), "some/model")  # a head's scale is its own
    check_scorer(Formula(lambda shade, length, batch: 100 + shade * length), "some/model")


def test_bfloat16_may_change_more_with_its_batch_but_not_anywhere() -> None:
    def noisy(by: float) -> Formula:
        return Formula(lambda shade, length, batch: shade * length * (1 + (by if len(batch) == 1 else 0)))

    check_scorer(noisy(0.01), "some/model", "bfloat16")
    with pytest.raises(UserError, match="depend on its batch"):
        check_scorer(noisy(0.01), "some/model", "float32")
    with pytest.raises(UserError, match="depend on its batch"):
        check_scorer(noisy(2.0), "some/model", "bfloat16")


def test_what_is_kept_of_the_picture_before_is_found_out() -> None:
    class Stale(Formula):
        """Judges each picture by the one before it, but for the first."""

        shade: float | None = None

        def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
            before, self.shade = self.shade, float(np.asarray(image, dtype=np.float64).mean() / 255)
            return np.array([(before or self.shade) * len(caption) for caption in captions], dtype=np.float32)

    with pytest.raises(UserError, match="state kept between calls"):
        check_scorer(Stale(lambda *_: 0.0), "some/model")


def test_a_wrong_number_of_scores_is_our_own_fault() -> None:
    class Short(Formula):
        def score(self, image: Image.Image, captions: Sequence[str]) -> np.ndarray:
            return super().score(image, captions)[:1]

    with pytest.raises(ValueError, match="one score per caption"):
        check_scorer(Short(lambda shade, length, batch: shade * length), "some/model")


def rounded(scores_IC: np.ndarray) -> tuple[np.ndarray, float]:
    """As a float32 scorer gives them, the pair alone to the last bit."""
    single_IC = scores_IC.astype(np.float32).astype(np.float64)
    return single_IC, float(single_IC[0, 0])


NUMBERS = st.floats(-3, 3)


@given(st.lists(NUMBERS, min_size=2, max_size=2), st.lists(NUMBERS, min_size=3, max_size=3), st.integers(-8, 4))
def test_what_does_not_read_them_together_is_refused_at_any_scale(pictures: list[float], captions: list[float], exponent: int) -> None:
    """One number for the picture plus one for the caption, either of them possibly 0, is refused whatever the rounding."""
    scores_IC = np.add.outer(np.float32(pictures), np.float32(captions)) * np.float32(10.0**exponent)
    assert fault_of(*rounded(scores_IC), "float32") is not None


@given(st.integers(0, 2**32 - 1), st.integers(-8, 4), st.floats(-100, 100))
def test_what_reads_both_is_accepted_at_any_scale(seed: int, exponent: int, offset: float) -> None:
    """Random scores plus an offset a hundred times as large: differences of a thousandth and less are above float32's noise."""
    scores_IC = (np.random.default_rng(seed).normal(size=(2, 3)) + offset) * 10.0**exponent
    assert fault_of(*rounded(scores_IC), "float32") is None


def test_the_drawn_pictures_differ_in_content_and_not_in_size() -> None:
    disc, stripes = drawn_disc(), drawn_stripes()
    assert disc.size == stripes.size
    assert np.abs(np.asarray(disc, dtype=int) - np.asarray(stripes, dtype=int)).mean() > 50
    assert len({len(caption.split()) for caption in CAPTIONS}) == len(CAPTIONS)
    assert min(CAPTIONS, key=len) == CAPTIONS[0]


# Checkpoints on disk, through load_scorer


def zeroed(*names: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Sets every weight to 0 whose name holds one of these."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        held = [name for name in tensors if any(part in name for part in names)]
        assert held
        for name in held:
            tensors[name].zero_()

    return change


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_blip: Path) -> dict[str, Path]:
    """A small random cross-encoder of every kind."""
    base = tmp_path_factory.mktemp("cross-encoders")
    for kind, family in FAMILIES.items():
        family.write(base / kind)
    return {"blip": tiny_blip} | {kind: base / kind for kind in FAMILIES}


@pytest.mark.parametrize(
    ("kind", "broken", "message"),
    [
        ("blip", zeroed("itm_head.weight"), "constant"),
        ("blip-2", zeroed("itm_head.weight"), "constant"),
        ("vilt", zeroed("rank_output.weight"), "constant"),
        ("bridgetower", zeroed("itm_score.fc.weight"), "constant"),
        ("blip", zeroed("crossattention.output.dense"), "ignores the picture"),
        ("blip-2", zeroed("crossattention.output.dense"), "ignores the picture"),
        ("blip", zeroed("vision_model.embeddings.patch_embedding.weight"), "ignores the picture"),
        ("blip-2", zeroed("vision_model.embeddings.patch_embedding.weight"), "ignores the picture"),
        ("vilt", zeroed("patch_embeddings.projection.weight"), "ignores the picture"),
        ("bridgetower", zeroed("patch_embedding.weight"), "ignores the picture"),
        ("bridgetower", zeroed("crossattention.output.dense"), "picture and caption apart"),
        ("bridgetower", zeroed("cross_modal_text_pooler", *(f"image_layers.{i}.crossattention.output.dense" for i in range(3))),
         "ignores the caption"),
    ],
)  # fmt: skip
def test_a_complete_checkpoint_that_ignores_a_side_is_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str, broken: Callable[[dict], None], message: str
) -> None:
    folder = changed_copy(folders[kind], tmp_path / "broken", weights=broken)
    with pytest.raises(UserError, match=f"'{folder}' \\({kind}\\) cannot rerank: .*{message}"):
        load_scorer(str(folder), device="cpu")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["blip", *FAMILIES])
def test_heads_of_a_hundred_thousandth_pass(folders: dict[str, Path], tmp_path: Path, kind: str, precision: Precision) -> None:
    """Tiny weights make tiny scores, which order pairs as well as any."""
    head = FAMILIES[kind].head if kind in FAMILIES else "itm_head"

    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{head}.weight"].mul_(1e-5)
        tensors[f"{head}.bias"].mul_(1e-5)

    folder = changed_copy(folders[kind], tmp_path / "tiny-head", weights=shrink)
    assert load_scorer(str(folder), device="cpu", settings=ScorerSettings(precision=precision)).name == kind


@pytest.mark.skipif(not (DEMO_BLIP / "model.safetensors").exists(), reason="demo/models/blip-itm is not here")
@pytest.mark.parametrize("settings", [ScorerSettings(), ScorerSettings(precision="bfloat16"), ScorerSettings(score_kind="margin")])
def test_the_demo_cross_encoder_passes(settings: ScorerSettings) -> None:
    assert load_scorer(str(DEMO_BLIP), device="cpu", settings=settings).name == "blip"
