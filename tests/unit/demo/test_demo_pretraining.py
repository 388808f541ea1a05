"""The pre-training scripts: the world they draw from, the loss they take, and a whole short run of each."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BlipForImageTextRetrieval, BlipProcessor, SiglipModel, SiglipProcessor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from demo import pretrain_blip, pretrain_siglip
from demo.batches import pixels, random_batch
from demo.image_tower import adopt_image_tower
from demo.pairs import match_pairs
from demo.recall import mean_recall_at_1
from demo.scenes import COLOURS, SHAPES, SIZES, Scene
from demo.slots import ABSENT, PATCH_ANSWERS, SCENE_ANSWERS, SlotHead, patch_targets, slot_targets
from demo.vocabulary import blip_processor, siglip_processor
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
        captions, labels_N = match_pairs(batch, rng)
        drawn = DrawnScenes(batch.scenes)
        true = [bool(drawn.where_true(read(text))[number % 30]) for number, text in enumerate(captions)]
        assert true == labels_N.bool().tolist() and labels_N.sum() == 30
        for number, text in enumerate(captions[30:60]):
            said, of_scene = read(text)[1], {tuple(row) for row in drawn.attributes_SPK[number] if row[0] >= 0}
            num_order_only += set(said) == of_scene
    assert num_order_only > 10, "some near misses must differ in order or layout alone"


def test_sigmoid_loss_is_the_sum_over_pairs_by_hand() -> None:
    logits_BB = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    by_hand = [math.log1p(math.exp(-value)) for value in (2.0, 1.0, -0.5, 3.0)]
    assert pretrain_siglip.sigmoid_loss(logits_BB).item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)


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


@torch.no_grad()
def test_the_adopted_image_tower_sees_the_same_picture() -> None:
    siglip, images = pretrain_siglip.new_model(300), SiglipImageProcessorPil()
    trainee = pretrain_blip.Trainee(blip_processor())
    adopt_image_tower(trainee.blip, trainee.processor, siglip, SiglipProcessor(images, siglip_processor().tokenizer))
    drawn, words = random_batch(random.Random(3), 3, ("new",)).images, trainee.processor.image_processor
    theirs_BPF = siglip.vision_model.embeddings(pixels(drawn, images.image_mean, images.image_std))
    ours_BPF = trainee.blip.vision_model.embeddings(pixels(drawn, words.image_mean, words.image_std))[:, 1:]
    torch.testing.assert_close(ours_BPF, theirs_BPF, rtol=0, atol=1e-4)
    theirs_BPF = siglip.vision_model.encoder(inputs_embeds=theirs_BPF).last_hidden_state
    ours_BPF = trainee.blip.vision_model.encoder(inputs_embeds=ours_BPF).last_hidden_state
    # SigLIP's GELU is the tanh approximation, BLIP's the exact one.
    torch.testing.assert_close(ours_BPF, theirs_BPF, rtol=0, atol=2e-2)


def test_mean_recall_counts_both_directions() -> None:
    # Rows: both right. Columns: the second is won by the first row.
    assert mean_recall_at_1(torch.tensor([[9.0, 8.0], [0.0, 1.0]])) == pytest.approx(0.75)


def test_a_short_run_of_each_script_writes_what_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script, batch_size in ((pretrain_siglip, pretrain_siglip.BATCH_SIZE), (pretrain_blip, pretrain_blip.ALIGN_BATCH)):
        monkeypatch.setattr(script, "SCENES_PER_EPOCH", batch_size)
        monkeypatch.setattr(script, "NUM_HELD_OUT", 6)
    pretrain_siglip.pretrain(tmp_path / "base", num_epochs=1, seed=0)
    assert SiglipProcessor.from_pretrained(tmp_path / "base").tokenizer.vocab_size
    trained = SiglipModel.from_pretrained(tmp_path / "base").state_dict()
    torch.manual_seed(0)
    untrained = pretrain_siglip.new_model(300).state_dict()
    assert any(not torch.equal(trained[name], untrained[name]) for name in trained)

    pretrain_blip.pretrain(tmp_path / "blip", tmp_path / "base", {"read": 1, "align": 1, "match": 1}, seed=0)
    words = BlipProcessor.from_pretrained(tmp_path / "blip").tokenizer
    model = BlipForImageTextRetrieval.from_pretrained(tmp_path / "blip")
    assert model.config.text_config.vocab_size == len(words) + 2
    assert (tmp_path / "blip" / "vocab.txt").read_text(encoding="utf-8").splitlines()[2] == "[CLS]"
    assert "is_local" not in json.loads((tmp_path / "base" / "tokenizer_config.json").read_text(encoding="utf-8"))
