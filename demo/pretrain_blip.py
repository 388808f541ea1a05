"""Pre-train the demo's BLIP: both looks and both wordings, scenes that the job never sees.

    python -m demo.pretrain_blip --output demo/models/blip-itm
    python -m demo.pretrain_blip --output /tmp/quick --align-epochs 1 --match-epochs 1

First each tower learns alone to predict the attributes of its input; then both are aligned contrastively; then matching is learnt, of true
captions against random ones and those of near-duplicate scenes. An epoch is 6,000 newly drawn scenes; the checkpoint is overwritten after
every epoch of matching.
"""

import argparse
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import BlipConfig, BlipForImageTextRetrieval, BlipProcessor

from demo.batches import Batch, pixels, random_batch
from demo.drawing import SIDE
from demo.pairs import BOTH, Saying, match_pairs, mismatches, told_targets
from demo.phrases import complete_caption
from demo.pretrain_siglip import parameter_groups, rate_share
from demo.recall import mean_recall_at_1
from demo.scenes import STEPS, Scene, neighbours, random_scene, step_between
from demo.slots import PATCH_ANSWERS, SCENE_ANSWERS, SlotHead, patch_targets, slot_targets
from demo.vocabulary import NUM_BLIP_TOKENS, blip_processor, blip_text, save_processor
from eval.atomic import apply_umask

WIDTH, MLP_WIDTH, NUM_HEADS, PATCH = 128, 256, 4, 8
NUM_VISION_LAYERS, NUM_TEXT_LAYERS, NUM_SHARED = 4, 4, 64
SCENES_PER_EPOCH, READ_BATCH, LOOK_BATCH, ALIGN_BATCH, MATCH_BATCH = 6000, 60, 32, 60, 30
NUM_HELD_OUT, NUM_PREFERENCES = 40, 300
LEARNING_RATES, TEMPERATURE = {"read": 7e-4, "look": 1e-3, "align": 7e-4, "match": 1e-3}, 0.07
POSITION_SCALE = 0.5
# Weights of the attribute losses: with the contrastive loss; with the matching loss, of what differs in a pair, of the attributes that
# [ENC] predicts of both sides, and of those that each tower predicts alone.
SLOT_WEIGHT, DIFFER_WEIGHT, REPORT_WEIGHT, KEEP_WEIGHT = 0.3, 0.3, 0.2, 0.1


def new_model(num_words: int) -> BlipForImageTextRetrieval:
    """A BLIP of about 1.4 M random parameters; the two ids beyond the vocabulary are [DEC] and [ENC], as in the released one."""
    # At the usual 0.02 so narrow a tower attends to everything alike, and takes very long to learn to compare.
    size = {"hidden_size": WIDTH, "intermediate_size": MLP_WIDTH, "num_attention_heads": NUM_HEADS, "initializer_range": WIDTH**-0.5}
    ends = {"bos_token_id": num_words, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    words = {"vocab_size": num_words + 2, "max_position_embeddings": NUM_BLIP_TOKENS, "num_hidden_layers": NUM_TEXT_LAYERS}
    image = {"image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": NUM_VISION_LAYERS}
    config = BlipConfig(
        text_config=size | words | ends, vision_config=size | image, image_text_hidden_size=NUM_SHARED, projection_dim=NUM_SHARED
    )
    model = BlipForImageTextRetrieval(config)
    with torch.no_grad():
        model.vision_model.embeddings.position_embedding[0, 1:] = POSITION_SCALE * grid_waves(SIDE // PATCH, WIDTH)
    return model


def grid_waves(per_side: int, num_features: int) -> torch.Tensor:
    """Sines and cosines of row and column, float32 waves_NF for N = per_side ** 2 patches, row by row.

    Where a small tower begins with random positions it learns colours for a long time before it learns order.
    """
    rates_Q = 100.0 ** -(torch.arange(num_features // 4) / (num_features // 4))
    rows_NQ = torch.arange(per_side).repeat_interleave(per_side)[:, None] * rates_Q
    columns_NQ = torch.arange(per_side).repeat(per_side)[:, None] * rates_Q
    return torch.cat([columns_NQ.sin(), columns_NQ.cos(), rows_NQ.sin(), rows_NQ.cos()], dim=1)


class BlipWithHeads(nn.Module):
    """The BLIP with the heads that predict attributes, which only training needs."""

    def __init__(self, processor: BlipProcessor) -> None:
        super().__init__()
        self.processor = processor
        num_words = len(processor.tokenizer)
        self.blip = new_model(num_words)
        self.encode_id = num_words + 1
        self.image_slots, self.text_slots = SlotHead(WIDTH, SCENE_ANSWERS), SlotHead(WIDTH, SCENE_ANSWERS)
        self.patch_slots = SlotHead(WIDTH, PATCH_ANSWERS)
        self.mismatch_slots = SlotHead(WIDTH, [2] * len(SCENE_ANSWERS))
        self.shown_slots, self.told_slots = SlotHead(WIDTH, SCENE_ANSWERS), SlotHead(WIDTH, SCENE_ANSWERS)

    def image_tokens(self, batch: Batch) -> torch.Tensor:
        """Encode the drawings: float32 tokens_BPF, the class token first."""
        settings = self.processor.image_processor
        return self.blip.vision_model(pixel_values=pixels(batch.images, settings.image_mean, settings.image_std)).last_hidden_state

    def words(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Clean and tokenize: ids and mask, padded to the longest."""
        cleaned = [blip_text(text) for text in captions]
        return dict(self.processor.tokenizer(cleaned, padding=True, truncation=True, max_length=NUM_BLIP_TOKENS, return_tensors="pt"))

    def text_features(self, captions: list[str]) -> torch.Tensor:
        """Read captions without an image: float32 text_BF, that of [CLS]."""
        words = self.words(captions)
        return self.blip.text_encoder(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).last_hidden_state[:, 0]

    def read_loss(self, scenes: list[Scene], captions: list[str]) -> torch.Tensor:
        """Cross-entropy of what complete captions say of the layout and of each thing."""
        return self.text_slots(self.text_features(captions), slot_targets(scenes))

    def look_loss(self, tokens_BPF: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross-entropy of what the class token tells of the scene, and each patch of the thing that covers it."""
        of_patches = self.patch_slots(tokens_BPF[:, 1:].flatten(0, 1), patch_targets(batch.placements, PATCH))
        return of_patches + self.image_slots(tokens_BPF[:, 0], slot_targets(batch.scenes))

    def align_loss(self, batch: Batch) -> torch.Tensor:
        """Contrastive loss over the batch, and what each tower alone tells."""
        tokens_BPF, text_BF = self.image_tokens(batch), self.text_features(batch.captions)
        images_BE = nn.functional.normalize(self.blip.vision_proj(tokens_BPF[:, 0]), dim=-1)
        texts_BE = nn.functional.normalize(self.blip.text_proj(text_BF), dim=-1)
        logits_BB, right_B = images_BE @ texts_BE.T / TEMPERATURE, torch.arange(len(text_BF))
        contrast = (nn.functional.cross_entropy(logits_BB, right_B) + nn.functional.cross_entropy(logits_BB.T, right_B)) / 2
        read = self.text_slots(text_BF, slot_targets(batch.scenes))
        return contrast + SLOT_WEIGHT * (read + self.look_loss(tokens_BPF, batch))

    def encode_pairs(self, tokens_NPF: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Read captions before N images, with [ENC] in the place of [CLS]: float32 pairs_NF, the state of [ENC]."""
        words = self.words(captions)
        words["input_ids"][:, 0] = self.encode_id
        return self.blip.text_encoder(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], encoder_hidden_states=tokens_NPF
        ).last_hidden_state[:, 0]

    def match_loss(self, batch: Batch, sayings: list[Saying], labels_N: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of N = n * B pairs, saying i belonging to image i modulo B, and of what differs, what is shown and what is said.

        With the matching loss alone it learns the colours, then guesses size, shape and layout for very long: hence [ENC] also predicts
        the attributes of both sides.
        """
        tokens_BPF = self.image_tokens(batch)
        pairs_NF = self.encode_pairs(tokens_BPF.repeat(len(sayings) // len(tokens_BPF), 1, 1), [saying.text for saying in sayings])
        matching = nn.functional.cross_entropy(self.blip.itm_head(pairs_NF), labels_N)
        differing = self.mismatch_slots(pairs_NF, mismatches(batch.scenes, sayings))
        shown = self.shown_slots(pairs_NF, slot_targets([batch.scenes[pair % len(batch.scenes)] for pair in range(len(sayings))]))
        told = self.told_slots(pairs_NF, told_targets(sayings))
        kept = self.look_loss(tokens_BPF, batch) + self.read_loss(batch.scenes, batch.captions)
        return matching + DIFFER_WEIGHT * differing + REPORT_WEIGHT * (shown + told) + KEEP_WEIGHT * kept

    @torch.no_grad()
    def begin_matching(self) -> None:
        """Let [ENC] begin as [CLS], which has learned to gather what a caption says."""
        embedding = self.blip.text_encoder.embeddings.word_embeddings.weight
        embedding[self.encode_id] = embedding[self.processor.tokenizer.cls_token_id]


@torch.no_grad()
def matching_recall(model: BlipWithHeads, batch: Batch) -> float:
    """Mean R@1 of both directions when every pair of the batch is scored by match less no match."""
    model.eval()
    tokens_BPF = model.image_tokens(batch)
    pairs = [model.encode_pairs(tokens_PF.expand(len(batch.captions), -1, -1), batch.captions) for tokens_PF in tokens_BPF]
    rows = [model.blip.itm_head(pairs_NF) for pairs_NF in pairs]
    model.train()
    return mean_recall_at_1(torch.stack([logits_N2[:, 1] - logits_N2[:, 0] for logits_N2 in rows]))


@torch.no_grad()
def preferences(model: BlipWithHeads, rng: random.Random, num_scenes: int) -> dict[str, float]:
    """Share of drawings whose true caption scores above a near miss's, by the step between the two scenes; 0.5 is guessing."""
    model.eval()
    batch = random_batch(rng, num_scenes, BOTH)
    by_step = [{step_between(scene, other): other for other in _shuffled(neighbours(scene), rng)} for scene in batch.scenes]
    tokens_BPF, shares = model.image_tokens(batch), {}
    true_B = _margins(model, tokens_BPF, batch.captions)
    for step in STEPS:
        able = [place for place, others in enumerate(by_step) if step in others]  # two things that differ in size alone have no such step
        false = [complete_caption(by_step[place][step], rng, rng.choice(BOTH)) for place in able]
        shares[step] = float((true_B[able] > _margins(model, tokens_BPF[able], false)).float().mean())
    model.train()
    return shares


def _shuffled(scenes: list[Scene], rng: random.Random) -> list[Scene]:
    return rng.sample(scenes, len(scenes))


def _margins(model: BlipWithHeads, tokens_BPF: torch.Tensor, captions: list[str]) -> torch.Tensor:
    logits_B2 = model.blip.itm_head(model.encode_pairs(tokens_BPF, captions))
    return logits_B2[:, 1] - logits_B2[:, 0]


def run_epoch(
    loss_of: Callable[[], torch.Tensor],
    num_steps: int,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LambdaLR,
    parameters: list[nn.Parameter],
) -> tuple[float, float]:
    """Take some steps; the mean loss and the seconds it took."""
    began, total = time.perf_counter(), 0.0
    for _ in range(num_steps):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        total += loss.item()
    return total / num_steps, time.perf_counter() - began


def stages(model: BlipWithHeads, rng: random.Random) -> dict[str, tuple[Callable[[], torch.Tensor], int]]:
    """The loss of one fresh batch in each stage, and the batch's number of scenes."""

    def read() -> torch.Tensor:
        scenes = [random_scene(rng, "past") for _ in range(READ_BATCH)]
        return model.read_loss(scenes, [complete_caption(scene, rng, rng.choice(BOTH)) for scene in scenes])

    def look() -> torch.Tensor:
        batch = random_batch(rng, LOOK_BATCH, BOTH)
        return model.look_loss(model.image_tokens(batch), batch)

    def align() -> torch.Tensor:
        return model.align_loss(random_batch(rng, ALIGN_BATCH, BOTH))

    def match() -> torch.Tensor:
        batch = random_batch(rng, MATCH_BATCH, BOTH)
        return model.match_loss(batch, *match_pairs(batch, rng))

    return {"read": (read, READ_BATCH), "look": (look, LOOK_BATCH), "align": (align, ALIGN_BATCH), "match": (match, MATCH_BATCH)}


def pretrain(output: Path, num_epochs: dict[str, int], seed: int) -> None:
    """Read, look, align, then match, and write the checkpoint; prints a line for each epoch."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = BlipWithHeads(blip_processor()).train()
    print(f"{sum(p.numel() for p in model.blip.parameters()):,} parameters, [ENC] is {model.encode_id}", flush=True)
    held_out = {name: random_batch(random.Random(seed + 1), NUM_HELD_OUT, (name,)) for name in BOTH}
    for stage, (loss_of, batch_size) in stages(model, rng).items():
        if stage == "match":
            model.begin_matching()
        num_steps = SCENES_PER_EPOCH // batch_size
        optimizer = torch.optim.AdamW(parameter_groups(model), lr=LEARNING_RATES[stage], betas=(0.9, 0.98))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate_share, num_steps=num_epochs[stage] * num_steps))
        for epoch in range(1, num_epochs[stage] + 1):
            loss, seconds = run_epoch(loss_of, num_steps, optimizer, scheduler, list(model.parameters()))
            print(f"{stage} {epoch}/{num_epochs[stage]} loss {loss:.4f} {SCENES_PER_EPOCH / seconds:.0f} scenes/s", flush=True)
            if stage == "match":
                recalls = " ".join(f"R@1[{name}] {matching_recall(model, b):.3f}" for name, b in held_out.items())
                preferred = preferences(model, random.Random(seed + 2), NUM_PREFERENCES)
                print(f"  {recalls}  " + " ".join(f"{step} {share:.2f}" for step, share in preferred.items()), flush=True)
                model.blip.save_pretrained(output)
                save_processor(model.processor, output)
                apply_umask(output)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--read-epochs", type=int, default=8)
    parser.add_argument("--look-epochs", type=int, default=16)
    parser.add_argument("--align-epochs", type=int, default=2)
    parser.add_argument("--match-epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    num_epochs = {stage: getattr(arguments, f"{stage}_epochs") for stage in LEARNING_RATES}
    pretrain(arguments.output, num_epochs, arguments.seed)


if __name__ == "__main__":
    main()
