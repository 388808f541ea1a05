"""train/reranker/model.py and the export: a plain matcher of the same weights, which rerank/ loads."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from eval.errors import UserError
from rerank.scorers.blip.scorer import BlipScorer
from rerank.scorers.load import load_scorer
from tests.small_job import load
from tests.small_reranker_job import RerankerWorld
from train.config.load import load_run_config
from train.config.reranker import CrossEncoderConfig, RerankerConfig
from train.engine.checkpoint import Checkpoints, State
from train.export.__main__ import main
from train.reranker.finish import export_cross_encoder
from train.reranker.model import TunedCrossEncoder, build_cross_encoder, make_cross_encoder_optimizer

CAPTIONS = ["a red circle on the left", "the blue square", "a dog runs"]


def shaken(world: RerankerWorld, **model: object) -> TunedCrossEncoder:
    """A matcher whose trained weights are no longer the base's."""
    tuned = build_cross_encoder(CrossEncoderConfig.model_validate({"base": str(world.blip), **model}), 0)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, value in tuned.trainable():
            value += 0.05 * torch.randn(value.shape, generator=draws)
    tuned.module.eval()
    return tuned


def logits(tuned: TunedCrossEncoder, world: RerankerWorld) -> np.ndarray:
    """Match logits of the model under training itself, adapters in place."""
    ids = [torch.tensor([row]) for row in tuned.inputs.token_ids(CAPTIONS)]
    pixels = tuned.inputs.pixels(load(world.manifest).load_image(0))[None]
    with torch.no_grad():
        return np.array([float(tuned.logits(pixels, torch.tensor([0]), row, torch.ones_like(row))[0, 1]) for row in ids])


@pytest.mark.parametrize("model", [{"what": "head"}, {"what": "lora", "lora": {"rank": 3}}, {"what": "all"}], ids=str)
def test_the_plain_one_scores_as_the_one_under_training_and_shares_nothing_with_it(reranker_world: RerankerWorld, model: dict) -> None:
    tuned = shaken(reranker_world, **model)
    plain = tuned.plain()
    picture = load(reranker_world.manifest).load_image(0)
    before = logits(tuned, reranker_world)
    assert np.abs(BlipScorer(plain).score(picture, CAPTIONS) - before).max() < 1e-5
    assert np.abs(before - load_scorer(str(reranker_world.blip), device="cpu").score(picture, CAPTIONS)).max() > 1e-3
    with torch.no_grad():
        for value in plain.model.parameters():
            value.zero_()
    assert np.array_equal(logits(tuned, reranker_world), before)


@pytest.mark.parametrize("what", ["lora", "all"])
def test_an_export_is_a_plain_folder_with_the_weights_of_the_chosen_checkpoint(
    reranker_world: RerankerWorld, tmp_path: Path, what: str
) -> None:
    config = load_run_config(RerankerConfig, reranker_world.write_config(tmp_path, model__what=what))
    tuned = shaken(reranker_world, what=what)
    optimizer = make_cross_encoder_optimizer(tuned, config.train)
    state = State(
        step=4, evaluated=True, mined_at_step=0, negatives="a", best_step=4, best_score=0.5,
        base_sha256=tuned.base_sha256, data_sha256="data",
    )  # fmt: skip
    Checkpoints(config.run_folder / "checkpoints").save(state, tuned, optimizer, None)
    (config.run_folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main([str(config.run_folder), "--output", str(tmp_path / "export")]) == 0
    weights = load_file(tmp_path / "export" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32} and not any("lora" in name for name in weights)
    assert weights.keys() == load_file(reranker_world.blip / "model.safetensors").keys()
    scorer = load_scorer(str(tmp_path / "export"), device="cpu")
    picture = load(reranker_world.manifest).load_image(0)
    assert np.abs(scorer.score(picture, CAPTIONS) - logits(tuned, reranker_world)).max() < 1e-5
    card = (tmp_path / "export" / "README.md").read_text()
    assert "step 4 of 6 (mean R@1 on val 50.00)" in card and "pipeline_tag: text-ranking" in card


def test_another_base_is_refused(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    config = load_run_config(RerankerConfig, reranker_world.write_config(tmp_path))
    tuned = build_cross_encoder(config.model, 0)
    state = State(evaluated=True, mined_at_step=0, negatives="a", base_sha256="other", data_sha256="data")
    Checkpoints(config.run_folder / "checkpoints").save(state, tuned, make_cross_encoder_optimizer(tuned, config.train), None)
    with pytest.raises(UserError, match="other weights than when"):
        export_cross_encoder(config, "last", tmp_path / "export")


def test_what_is_no_matcher_is_refused(reranker_world: RerankerWorld) -> None:
    with pytest.raises(UserError):
        build_cross_encoder(CrossEncoderConfig(base=str(reranker_world.base)), 0)


def test_the_head_can_have_a_rate_of_its_own_and_only_matrices_decay(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    config = load_run_config(RerankerConfig, reranker_world.write_config(tmp_path, train__head_learning_rate=0.5))
    tuned = build_cross_encoder(config.model, 0)
    groups = make_cross_encoder_optimizer(tuned, config.train).param_groups
    assert {group["part"]: group["peak"] for group in groups} == {"image": 1e-3, "text": 1e-3, "head": 0.5}
    decayed = {name for group in groups if group["weight_decay"] for name in group["names"]}
    assert "itm_head.weight" in decayed and "vision_model.embeddings.patch_embedding.weight" in decayed
    still = {name for group in groups if not group["weight_decay"] for name in group["names"]}
    assert {"vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding"} <= still
    assert "text_encoder.embeddings.word_embeddings.weight" in still and "itm_head.bias" in still
    assert decayed | still == {name for name, _ in tuned.trainable()}
