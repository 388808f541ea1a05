"""Refused checkpoints as the command shows them: exit code 2, one message with the remedy, nothing computed and no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from tests.nursery import Nursery
from tests.small_job import SmallWorld
from tests.unit.rerank.scorers.tiny_cross_encoders import changed_copy


def text_cross_encoder(folder: Path, blip: Path) -> None:
    """As sentence-transformers saves cross-encoder/ms-marco-MiniLM-L-6-v2, but small."""
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "num_labels": 1}
    config = BertConfig(**sizes)
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity", "version": "5.1.0"}
    BertForSequenceClassification(config).save_pretrained(folder)


def blip_model(folder: Path, blip: Path) -> None:
    changed_copy(blip, folder, config=lambda config: config.update(architectures=["BlipModel"]))


def eight_heads(folder: Path, blip: Path) -> None:
    changed_copy(blip, folder, config=lambda config: config["text_config"].update(hidden_size=768, num_attention_heads=8))


def headless(folder: Path, blip: Path) -> None:
    changed_copy(blip, folder, weights=lambda tensors: tensors.pop("itm_head.weight"))


def constant(folder: Path, blip: Path) -> None:
    def zero(tensors: dict[str, torch.Tensor]) -> None:
        tensors["itm_head.weight"].zero_()

    changed_copy(blip, folder, weights=zero)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (text_cross_encoder, "text-text reranker (a CrossEncoder of sentence-transformers, BertForSequenceClassification)"),
        (blip_model, "transformers#28034"),
        (eight_heads, "text_config.num_attention_heads"),
        (headless, "lacks 1 weights of BlipForImageTextRetrieval"),
        (constant, "its score is constant"),
    ],
)
def test_what_cannot_rerank_ends_the_command_with_code_2(
    nursery: Nursery, small_world: SmallWorld, tiny_blip: Path, tmp_path: Path, make: Callable[[Path, Path], None], message: str
) -> None:
    make(tmp_path / "reranker", tiny_blip)
    asked = ["--model", str(small_world.base), "--data", str(small_world.manifest), "--split", "val", "--output", str(tmp_path / "report")]
    child = nursery.start("eval", [*asked, "--rerank", str(tmp_path / "reranker"), "--top-k", "2"], env={"ACCELERATE_USE_CPU": "true"})
    assert child.wait() == 2, child.output()
    printed = " ".join(child.output().split())
    assert "error: --rerank: " in printed and str(tmp_path / "reranker") in printed
    assert message in printed and "Traceback" not in printed
    assert not (tmp_path / "report" / "report.json").exists()
