"""Pre-train the demo's BLIP matcher: both looks and both wordings, scenes that the job never sees.

    python -m demo.pretrain_blip --output demo/models/blip-itm --align-epochs 10 --match-epochs 30
    python -m demo.pretrain_blip --output /tmp/quick --align-epochs 1 --match-epochs 1

First both towers are aligned: contrastively, and by telling the attributes of each thing. Then the matcher learns to tell true captions
from random ones and from those of near-duplicate scenes. An epoch is 6,000 newly drawn scenes; the checkpoint is overwritten after
every fifth.
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
from demo.phrases import Wording, caption, partial_claims
from demo.pretrain_siglip import parameter_groups, rate_share
from demo.recall import mean_recall_at_1
from demo.scenes import Scene, neighbours
from demo.slots import SlotHead, slot_targets
from demo.truth import Claims, full_claims, is_true
from demo.vocabulary import NUM_MATCHER_TOKENS, blip_processor, blip_text, save_processor

WIDTH, MLP_WIDTH, NUM_HEADS, PATCH = 128, 256, 4, 8
NUM_VISION_LAYERS, NUM_TEXT_LAYERS, NUM_SHARED = 4, 4, 64
SCENES_PER_EPOCH, ALIGN_BATCH, MATCH_BATCH = 6000, 120, 60
LEARNING_RATE, TEMPERATURE = 1e-3, 0.07
BOTH: tuple[Wording, Wording] = ("old", "new")
PARTIAL_SHARE, RANDOM_SHARE = 0.15, 0.4


def new_model(num_words: int) -> BlipForImageTextRetrieval:
    """A BLIP of about 1.4 M random parameters; the two ids beyond the vocabulary are [DEC] and [ENC], as in the released one."""
    size = {"hidden_size": WIDTH, "intermediate_size": MLP_WIDTH, "num_attention_heads": NUM_HEADS, "initializer_range": 0.02}
    ends = {"bos_token_id": num_words, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    words = {"vocab_size": num_words + 2, "max_position_embeddings": NUM_MATCHER_TOKENS, "num_hidden_layers": NUM_TEXT_LAYERS}
    image = {"image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": NUM_VISION_LAYERS}
    config = BlipConfig(
        text_config=size | words | ends, vision_config=size | image, image_text_hidden_size=NUM_SHARED, projection_dim=NUM_SHARED
    )
    return BlipForImageTextRetrieval(config)


class Trainee(nn.Module):
    """The matcher together with what only training needs: the heads that tell attributes."""

    def __init__(self, processor: BlipProcessor) -> None:
        super().__init__()
        self.processor = processor
        num_words = len(processor.tokenizer)
        self.blip = new_model(num_words)
        self.encode_id = num_words + 1
        self.image_slots, self.text_slots = SlotHead(WIDTH), SlotHead(WIDTH)

    def image_tokens(self, batch: Batch) -> torch.Tensor:
        """Encode the drawings: float32 tokens_BPF, the class token first."""
        settings = self.processor.image_processor
        return self.blip.vision_model(pixel_values=pixels(batch.images, settings.image_mean, settings.image_std)).last_hidden_state

    def words(self, captions: list[str]) -> dict[str, torch.Tensor]:
        """Clean and tokenize: ids and mask, padded to the longest."""
        cleaned = [blip_text(text) for text in captions]
        return dict(self.processor.tokenizer(cleaned, padding=True, truncation=True, max_length=NUM_MATCHER_TOKENS, return_tensors="pt"))

    def align_loss(self, batch: Batch) -> torch.Tensor:
        """Contrastive loss over the batch, and the attributes told by each tower alone."""
        words = self.words(batch.captions)
        image_BF = self.image_tokens(batch)[:, 0]
        text_BF = self.blip.text_encoder(input_ids=words["input_ids"], attention_mask=words["attention_mask"]).last_hidden_state[:, 0]
        images_BE = nn.functional.normalize(self.blip.vision_proj(image_BF), dim=-1)
        texts_BE = nn.functional.normalize(self.blip.text_proj(text_BF), dim=-1)
        logits_BB, right_B = images_BE @ texts_BE.T / TEMPERATURE, torch.arange(len(image_BF))
        contrast = (nn.functional.cross_entropy(logits_BB, right_B) + nn.functional.cross_entropy(logits_BB.T, right_B)) / 2
        targets_BS = slot_targets(batch.scenes)
        return contrast + self.image_slots(image_BF, targets_BS) + self.text_slots(text_BF, targets_BS)

    def match_logits(self, tokens_NPF: torch.Tensor, captions: list[str]) -> torch.Tensor:
        """Score N pairs with [ENC] in the place of [CLS]: float32 logits_N2, column 1 is "match"."""
        words = self.words(captions)
        words["input_ids"][:, 0] = self.encode_id
        hidden = self.blip.text_encoder(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], encoder_hidden_states=tokens_NPF
        ).last_hidden_state
        return self.blip.itm_head(hidden[:, 0])

    def match_loss(self, batch: Batch, captions: list[str], labels_N: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over N = n * B pairs, caption i belonging to image i modulo B; the images' attributes are kept alive."""
        tokens_BPF = self.image_tokens(batch)
        repeated_NPF = tokens_BPF.repeat(len(captions) // len(tokens_BPF), 1, 1)
        matching = nn.functional.cross_entropy(self.match_logits(repeated_NPF, captions), labels_N)
        return matching + 0.25 * self.image_slots(tokens_BPF[:, 0], slot_targets(batch.scenes))


def said_of(scene: Scene, rng: random.Random) -> tuple[str, Claims]:
    """Say something of a scene in either wording, at times leaving something out."""
    claims = partial_claims(scene, rng) if rng.random() < PARTIAL_SHARE else full_claims(scene)
    return caption(claims, rng, rng.choice(BOTH)), claims


def near_miss(scene: Scene, rng: random.Random) -> str:
    """Say something of a neighbour that is false of the scene."""
    others = neighbours(scene)
    # Order and layout are two or three of some forty steps: without this the matcher would hardly ever be asked for them.
    steps = [other for other in others if other.layout != scene.layout or set(other.things) == set(scene.things)]
    while True:
        text, claims = said_of(rng.choice(steps if rng.random() < 0.35 else others), rng)
        if not is_true(claims, scene):
            return text


def other_caption(batch: Batch, place: int, rng: random.Random) -> str:
    """Say something of another scene of the batch that is false of this one."""
    scene = batch.scenes[place]
    text, claims = said_of(batch.scenes[(place + rng.randrange(1, len(batch.scenes))) % len(batch.scenes)], rng)
    return near_miss(scene, rng) if is_true(claims, scene) else text


def match_pairs(batch: Batch, rng: random.Random) -> tuple[list[str], torch.Tensor]:
    """For each image a true caption, a near miss, and either another or another image's caption: 3 * B captions and int64 labels."""
    true = [said_of(scene, rng)[0] for scene in batch.scenes]
    near = [near_miss(scene, rng) for scene in batch.scenes]
    last = [other_caption(batch, i, rng) if rng.random() < RANDOM_SHARE else near_miss(scene, rng) for i, scene in enumerate(batch.scenes)]
    labels_N = torch.zeros(3 * len(true), dtype=torch.long)
    labels_N[: len(true)] = 1
    return true + near + last, labels_N


@torch.no_grad()
def matching_recall(trainee: Trainee, batch: Batch) -> float:
    """Mean R@1 of both directions when every pair of the batch is scored by match less no match."""
    trainee.eval()
    tokens_BPF = trainee.image_tokens(batch)
    rows = [trainee.match_logits(tokens_PF.expand(len(batch.captions), -1, -1), batch.captions) for tokens_PF in tokens_BPF]
    trainee.train()
    return mean_recall_at_1(torch.stack([logits_N2[:, 1] - logits_N2[:, 0] for logits_N2 in rows]))


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


def pretrain(output: Path, num_align_epochs: int, num_match_epochs: int, seed: int) -> None:
    """Align, then match, and write the checkpoint; prints a line for each epoch."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    trainee = Trainee(blip_processor()).train()
    print(f"{sum(p.numel() for p in trainee.blip.parameters()):,} parameters, [ENC] is {trainee.encode_id}", flush=True)
    held_out = {name: random_batch(random.Random(seed + 1), 40, (name,)) for name in BOTH}

    def align() -> torch.Tensor:
        return trainee.align_loss(random_batch(rng, ALIGN_BATCH, BOTH))

    def match() -> torch.Tensor:
        batch = random_batch(rng, MATCH_BATCH, BOTH)
        return trainee.match_loss(batch, *match_pairs(batch, rng))

    for stage, loss_of, num_epochs, batch_size in (
        ("align", align, num_align_epochs, ALIGN_BATCH),
        ("match", match, num_match_epochs, MATCH_BATCH),
    ):
        num_steps = SCENES_PER_EPOCH // batch_size
        optimizer = torch.optim.AdamW(parameter_groups(trainee), lr=LEARNING_RATE, betas=(0.9, 0.98))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate_share, num_steps=num_epochs * num_steps))
        for epoch in range(1, num_epochs + 1):
            loss, seconds = run_epoch(loss_of, num_steps, optimizer, scheduler, list(trainee.parameters()))
            recalls = " ".join(f"R@1[{name}] {matching_recall(trainee, b):.3f}" for name, b in held_out.items()) if stage == "match" else ""
            print(f"{stage} {epoch}/{num_epochs} loss {loss:.4f} {recalls} {SCENES_PER_EPOCH / seconds:.0f} images/s", flush=True)
            if epoch % 5 == 0 or epoch == num_epochs:
                trainee.blip.save_pretrained(output)
                save_processor(trainee.processor, output)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--align-epochs", type=int, default=10)
    parser.add_argument("--match-epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.output, arguments.align_epochs, arguments.match_epochs, arguments.seed)


if __name__ == "__main__":
    main()
