"""The pre-training scripts: the world they draw from, the loss they take, and a whole short run of each."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BlipForImageTextRetrieval, BlipProcessor, SiglipModel, SiglipProcessor

from demo import pretrain_blip, pretrain_siglip
from demo.batches import random_batch
from demo.pairs import Saying, match_pairs, mismatches
from demo.recall import mean_recall_at_1
from demo.scenes import COLOURS, SHAPES, SIZES, Scene
from demo.slots import ABSENT, PATCH_ANSWERS, SCENE_ANSWERS, SlotHead, patch_targets, slot_targets
from demo.truth import full_claims
from tests.unit.demo.demo_reading import DrawnScenes, read


def test_batches_hold_different_scenes_of_the_past_world_and_say_the_truth() -> None:
    rng = random.Random(0)
    for wording in ("old", "new"):
        batch = random_batch(rng, 50, (wording,))
        assert len({scene.key for scene in batch.scenes}) == 50 == len(batch.images) == len(batch.captions)
        assert {scene.world for scene in batch.scenes} == {"past"}
        drawn = DrawnScenes(batch.scenes)
        assert all(drawn.where_true(read(text))[number] for number, text in enumerate(batch.captions))


def test_matching_pairs_are_labelled_by_truth() -> None:
    rng = random.Random(1)
    num_order_only = 0
    for _ in range(5):
        batch = random_batch(rng, 30, ("old", "new"))
        sayings, labels_N = match_pairs(batch, rng)
        drawn = DrawnScenes(batch.scenes)
        readings = [read(saying.text) for saying in sayings]
        true = [bool(drawn.where_true(reading)[number % 30]) for number, reading in enumerate(readings)]
        assert true == labels_N.bool().tolist() and labels_N.sum() == 30
        for number, (_, said) in enumerate(readings[30:60]):
            num_order_only += set(said) == {tuple(row) for row in drawn.attributes_SPK[number] if row[0] >= 0}
    assert num_order_only > 10, "some near misses must differ in order or layout alone"


def test_mismatches_are_where_a_complete_saying_differs_and_unsaid_of_a_partial_one() -> None:
    keys = ("row: large red circle, small blue star", "row: large red circle, small green star")
    scenes = [Scene.from_key(key) for key in keys]
    sayings = [Saying("", full_claims(scene), scene) for scene in (scenes[0], scenes[0], scenes[1], scenes[1])]
    sayings += [Saying("", full_claims(scenes[0]), None)] * 2
    differs = mismatches(scenes, sayings).tolist()
    colour_of_second = 2 + 3 + 1
    same, other = [0] * len(SCENE_ANSWERS), [int(question == colour_of_second) for question in range(len(SCENE_ANSWERS))]
    assert differs == [same, other, other, same, [ABSENT] * len(SCENE_ANSWERS), [ABSENT] * len(SCENE_ANSWERS)]


def test_base_starts_at_the_scale_and_bias_of_the_paper_and_decays_matrices_only() -> None:
    model = pretrain_siglip.new_model(100)
    assert model.logit_scale.item() == pytest.approx(math.log(10)) and model.logit_bias.item() == -10
    matrices, vectors, own = pretrain_siglip.parameter_groups(model)
    assert all(parameter.ndim > 1 for parameter in matrices["params"]) and matrices["weight_decay"] > 0
    assert vectors["weight_decay"] == own["weight_decay"] == 0 and len(own["params"]) == 2
    num_grouped = sum(len(group["params"]) for group in (matrices, vectors, own))
    assert num_grouped == len(list(model.parameters()))


def flat_head(num_answers: list[int]) -> SlotHead:
    head = SlotHead(4, num_answers)
    torch.nn.init.zeros_(head.answers.weight)
    torch.nn.init.zeros_(head.answers.bias)
    return head


def test_slots_ask_only_of_things_that_are_there() -> None:
    targets_BS = slot_targets([Scene.from_key("row: large red circle, small blue star")])
    assert targets_BS.shape == (1, len(SCENE_ANSWERS)) and (targets_BS == ABSENT).sum() == 3
    answered = [num for num, target in zip(SCENE_ANSWERS, targets_BS[0].tolist(), strict=True) if target != ABSENT]
    assert flat_head(SCENE_ANSWERS)(torch.zeros(1, 4), targets_BS).item() == pytest.approx(np.log(answered).sum(), rel=1e-5)
    column = slot_targets([Scene.from_key("column: small blue star, large red circle")])
    assert (column != targets_BS)[0, [0, 2, 3, 4, 5, 6, 7]].all() and column[0, 1] == targets_BS[0, 1]


def test_patches_tell_the_thing_that_covers_them() -> None:
    batch = random_batch(random.Random(2), 20, ("new",))
    targets_BHWS = patch_targets(batch.placements, 8).view(20, 8, 8, len(PATCH_ANSWERS))
    for scene, placements, targets_HWS in zip(batch.scenes, batch.placements, targets_BHWS, strict=True):
        assert [placed.thing for placed in placements] == list(scene.things)
        for placed in placements:
            told = targets_HWS[int(placed.y // 8), int(placed.x // 8)].tolist()
            expected = [SIZES.index(placed.thing.size), COLOURS.index(placed.thing.colour), SHAPES.index(placed.thing.shape)]
            assert told == [1, *expected]
        covered_HW = targets_HWS[..., 0] == 1
        assert len(scene.things) <= covered_HW.sum() <= 6 * len(scene.things)
        assert (targets_HWS[~covered_HW][:, 1:] == ABSENT).all()


def test_positions_begin_as_waves_of_row_and_column() -> None:
    waves_NF = pretrain_blip.grid_waves(8, 128)
    assert waves_NF.shape == (64, 128)
    # By hand for the patch in row 2, column 5, whose number is 21.
    assert waves_NF[21, 0].item() == pytest.approx(math.sin(5)) and waves_NF[21, 32].item() == pytest.approx(math.cos(5))
    assert waves_NF[21, 64].item() == pytest.approx(math.sin(2)) and waves_NF[21, 96].item() == pytest.approx(math.cos(2))
    assert waves_NF[21, 16].item() == pytest.approx(math.sin(5 / 10), rel=1e-5)
    model = pretrain_blip.new_model(10)
    torch.testing.assert_close(model.vision_model.embeddings.position_embedding[0, 1:], pretrain_blip.POSITION_SCALE * waves_NF)


def test_mean_recall_counts_both_directions() -> None:
    # Rows: both right. Columns: the second is won by the first row.
    assert mean_recall_at_1(torch.tensor([[9.0, 8.0], [0.0, 1.0]])) == pytest.approx(0.75)


def test_a_short_run_of_each_script_writes_what_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script, batch_size in ((pretrain_siglip, pretrain_siglip.BATCH_SIZE), (pretrain_blip, pretrain_blip.ALIGN_BATCH)):
        monkeypatch.setattr(script, "SCENES_PER_EPOCH", batch_size)
        monkeypatch.setattr(script, "NUM_HELD_OUT", 6)
    monkeypatch.setattr(pretrain_blip, "NUM_PREFERENCES", 20)
    pretrain_siglip.pretrain(tmp_path / "base", pretrain_siglip.SIZES["base"], num_epochs=1, seed=0)
    assert SiglipProcessor.from_pretrained(tmp_path / "base").tokenizer.vocab_size
    assert "attention_mask" not in SiglipProcessor.from_pretrained(tmp_path / "base").tokenizer("a red circle")
    trained = SiglipModel.from_pretrained(tmp_path / "base").state_dict()
    torch.manual_seed(0)
    untrained = pretrain_siglip.new_model(300).state_dict()
    assert any(not torch.equal(trained[name], untrained[name]) for name in trained)

    pretrain_blip.pretrain(tmp_path / "blip", dict.fromkeys(pretrain_blip.LEARNING_RATES, 1), seed=0)
    words = BlipProcessor.from_pretrained(tmp_path / "blip").tokenizer
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path / "blip")
    assert model.config.text_config.vocab_size == len(words) + 2
    assert (tmp_path / "blip" / "vocab.txt").read_text(encoding="utf-8").splitlines()[2] == "[CLS]"
    assert "is_local" not in json.loads((tmp_path / "base" / "tokenizer_config.json").read_text(encoding="utf-8"))
