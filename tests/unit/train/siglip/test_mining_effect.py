"""train/siglip/mining_effect.py: averages and sentences, counted by hand."""

from typing import Any

import pytest

from train.config.mining import MiningConfig
from train.siglip.mining_effect import MiningEffect, few_mined


def refresh(step: int, num_images: int, num_mined: int, **more: Any) -> dict[str, Any]:
    """A line on a mining."""
    return {"step": step, "num_images": num_images, "num_mined": num_mined, "num_relabelled": 0, "filtered_out": {}} | more


def mining(**keys: Any) -> MiningConfig:
    return MiningConfig.model_validate({"mine_every_steps": 10} | keys)


def test_the_average_is_over_all_images_of_all_refreshes() -> None:
    effect = MiningEffect.of(mining(), [refresh(0, 100, 10), refresh(10, 300, 90)], 20)
    assert effect.per_query == 100 / 400
    (sentence,) = effect.sentences()
    assert sentence.startswith("Mining found 0.25 captions an image on average, of 4 asked for, which is almost nothing to learn from.")
    assert MiningEffect.of(mining(), [], 20).per_query is None and MiningEffect.of(mining(), [], 20).sentences() == []


def test_half_a_caption_an_image_is_enough_and_less_is_not() -> None:
    assert few_mined(mining(), 50, 100, {}) == "" and few_mined(mining(), 49, 100, {}) and few_mined(mining(), 0, 0, {}) == ""


@pytest.mark.parametrize(
    ("margin", "remedy"),
    [
        (2.0, "Take a smaller or negative mining.margin (now 2; null: no such rule), then a larger mining.pool_top_k (now 32)"),
        (None, "Take a larger mining.pool_top_k (now 32)"),
    ],
)
def test_the_remedy_names_the_keys_and_their_values(margin: float | None, remedy: str) -> None:
    filtered_out = {"known_positive": 20, "margin": 500 if margin is not None else 0, "max_uses": 0}
    sentence = few_mined(mining(margin=margin, pool_top_k=32), 3, 100, filtered_out)
    assert sentence.endswith(remedy) and ("(most candidates: within the margin)" in sentence) is (margin is not None)
    assert "most candidates" not in few_mined(mining(), 3, 100, {"margin": 0})


@pytest.mark.parametrize(
    ("keys", "rule", "remedy"),
    [
        ({"rank_min": 60}, "rank_min", "Take a smaller mining.rank_min (now 60), then a larger"),
        ({"max_uses": 2}, "max_uses", "Take a larger mining.max_uses (now 2), then a larger"),
        ({"margin_pos": 0.05}, "margin_pos", "Take a smaller mining.margin_pos (now 0.05), then a larger"),
        ({"perc_pos": 0.5}, "perc_pos", "Take a larger mining.perc_pos (now 0.5), then a larger"),
        ({"denoise": {"threshold": 0.2}}, "match", "Take a larger mining.denoise.threshold (now 0.2), then a larger"),
        ({}, "known_positive", "Take a larger mining.pool_top_k"),
    ],
)
def test_the_remedy_is_that_of_the_rule_that_filtered_most_out(keys: dict[str, Any], rule: str, remedy: str) -> None:
    assert remedy in few_mined(mining(**keys), 3, 100, {"margin": 5, rule: 500})


def test_captions_relabelled_as_positives_are_learnt_from_too_and_earlier_runs_are_read() -> None:
    assert MiningEffect.of(mining(), [refresh(0, 100, 0, num_relabelled=60)], 1).sentences() == []
    earlier = {"step": 0, "num_images": 100, "num_mined": 10, "passed_over": {"margin": 9}}
    assert "within the margin" in MiningEffect.of(mining(), [earlier], 1).sentences()[0]


@pytest.mark.parametrize(
    ("step", "is_trained_with", "why"),
    [
        (0, False, "mining began after step 20"),
        (20, False, "mining began after step 20"),
        (25, False, "nothing had been mined before it"),  # the first refresh mined nothing
        (30, False, "nothing had been mined before it"),  # the second comes after this step
        (31, True, ""),
    ],
)
def test_a_checkpoint_is_trained_with_what_was_mined_before_its_last_step(step: int, is_trained_with: bool, why: str) -> None:
    refreshes = [refresh(20, 100, 0), refresh(30, 100, 200)]
    effect = MiningEffect.of(mining(start_step=20), refreshes, step)
    assert effect.is_trained_with is is_trained_with
    found = [sentence for sentence in effect.sentences() if f"(step {step}) was trained with mined captions: {why}." in sentence]
    assert len(found) == (not is_trained_with) and (effect.sentences() == []) is is_trained_with


def test_what_a_cross_encoder_relabelled_is_mined_too_and_a_run_without_lines_goes_by_its_start_step() -> None:
    assert MiningEffect.of(mining(), [refresh(0, 10, 0, num_relabelled=1)], 1).is_trained_with
    assert [MiningEffect.of(mining(start_step=20), [], step).is_trained_with for step in (20, 21)] == [False, True]


def test_in_the_form_images_captions_are_what_is_mined_for() -> None:
    effect = MiningEffect.of(mining(form="images"), [refresh(0, 10, 1)], 0)
    assert "trained with mined images" in effect.sentences()[0] and "found 0.10 images a caption" in effect.sentences()[1]
    record = effect.as_record()
    assert (record["mined_per_caption"], record["is_trained_with"], record["notes"]) == (0.1, False, effect.sentences())
