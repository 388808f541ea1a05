"""Pre-train the demo's SigLIPs, "base" and a wider "large": mostly plain drawings and plain words, only scenes that the job never sees.

    python -m demo.pretrain_siglip --output demo/models/siglip-base --epochs 16
    python -m demo.pretrain_siglip --output demo/models/siglip-large --size large --seed 1 --epochs 24
    python -m demo.pretrain_siglip --output /tmp/quick --epochs 1        (a minute or less on a laptop)

An epoch is 6,000 newly drawn scenes. The checkpoint is overwritten after every fifth epoch and at the end.
"""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import SiglipConfig, SiglipModel, SiglipProcessor

from demo.batches import Batch, pixels, random_batch
from demo.drawing import SIDE
from demo.phrases import Wording
from demo.recall import mean_recall_at_1
from demo.vocabulary import NUM_TEXT_TOKENS, save_processor, siglip_processor
from eval.atomic import apply_umask
from train.loss.reference import pairwise_sigmoid_loss

PATCH = 8
SCENES_PER_EPOCH, BATCH_SIZE, NUM_HELD_OUT = 6000, 120, 300
# Like a real checkpoint it has met a little of everything: three drawings in twenty have the job's look and words.
WORDINGS: tuple[Wording, ...] = ("old",) * 17 + ("new",) * 3
WEIGHT_DECAY, NUM_WARMUP_STEPS = 1e-2, 100
# The scale and the bias have far to go in few steps.
SCALE_AND_BIAS_RATE = 1e-2


@dataclass(frozen=True)
class Size:
    """How wide and deep both towers are, and the peak rate that suits them."""

    width: int
    mlp_width: int
    num_layers: int
    num_heads: int
    learning_rate: float


SIZES = {"base": Size(128, 256, 4, 4, 1e-3), "large": Size(192, 448, 4, 6, 7e-4)}


def new_model(num_pieces: int, size: Size = SIZES["base"]) -> SiglipModel:
    """A SigLIP of random parameters (base about 1.3 M, large 3.1 M), scale log 10 and bias -10 as in arXiv 2303.15343."""
    tower = {
        "hidden_size": size.width,
        "intermediate_size": size.mlp_width,
        "num_hidden_layers": size.num_layers,
        "num_attention_heads": size.num_heads,
    }
    words = {"vocab_size": num_pieces, "max_position_embeddings": NUM_TEXT_TOKENS, "projection_size": size.width}
    ends = {"pad_token_id": 1, "bos_token_id": None, "eos_token_id": 1}
    config = SiglipConfig(text_config=tower | words | ends, vision_config=tower | {"image_size": SIDE, "patch_size": PATCH})
    model = SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
        model.logit_bias.fill_(-10)
    return model


def inputs(batch: Batch, processor: SiglipProcessor) -> dict[str, torch.Tensor]:
    """Token ids_BT padded to all T positions, no mask (the text tower pools the last one), and float32 pixels_BCHW."""
    words = processor.tokenizer(batch.captions, padding="max_length", max_length=NUM_TEXT_TOKENS, return_tensors="pt")
    images = processor.image_processor
    return {"input_ids": words.input_ids, "pixel_values": pixels(batch.images, images.image_mean, images.image_std)}


def parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Decay matrices only; scale and bias at their own rate."""
    named = dict(model.named_parameters())
    own = [named.pop(name) for name in ("logit_scale", "logit_bias") if name in named]
    matrices = [parameter for parameter in named.values() if parameter.ndim > 1]
    vectors = [parameter for parameter in named.values() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return groups + [{"params": own, "weight_decay": 0.0, "lr": SCALE_AND_BIAS_RATE}]


def rate_share(step: int, num_steps: int) -> float:
    """Linear warm-up, then a cosine to zero; the share of the full rate at a step counted from 0."""
    if step < NUM_WARMUP_STEPS:
        return (step + 1) / NUM_WARMUP_STEPS
    return 0.5 * (1 + math.cos(math.pi * step / num_steps))


@torch.no_grad()
def recall_on(batch: Batch, model: SiglipModel, processor: SiglipProcessor) -> float:
    """Mean R@1 of both directions among the pairs of one batch."""
    model.eval()
    logits_BB = model(**inputs(batch, processor)).logits_per_image
    model.train()
    return mean_recall_at_1(logits_BB)


def pretrain(output: Path, size: Size, num_epochs: int, seed: int) -> None:
    """Train from nothing and write the checkpoint; prints a line for each epoch."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    processor = siglip_processor()
    model = new_model(processor.tokenizer.vocab_size, size).train()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {processor.tokenizer.vocab_size} pieces", flush=True)
    held_out = {name: random_batch(random.Random(seed + 1), NUM_HELD_OUT, (name,)) for name in ("old", "new")}
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=size.learning_rate, betas=(0.9, 0.95))
    steps_per_epoch = SCENES_PER_EPOCH // BATCH_SIZE
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, num_epochs * steps_per_epoch))
    labels_BB = 2 * torch.eye(BATCH_SIZE) - 1
    for epoch in range(1, num_epochs + 1):
        began, total = time.perf_counter(), 0.0
        for _ in range(steps_per_epoch):
            loss = pairwise_sigmoid_loss(model(**inputs(random_batch(rng, BATCH_SIZE, WORDINGS), processor)).logits_per_image, labels_BB)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            total += loss.item()
        recalls = " ".join(f"R@1[{name}] {recall_on(batch, model, processor):.3f}" for name, batch in held_out.items())
        rate = SCENES_PER_EPOCH / (time.perf_counter() - began)
        print(f"epoch {epoch}/{num_epochs} loss {total / steps_per_epoch:.3f} {recalls} {rate:.0f} images/s", flush=True)
        if epoch % 5 == 0 or epoch == num_epochs:
            model.save_pretrained(output)
            save_processor(processor, output)
            apply_umask(output)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.output, SIZES[arguments.size], arguments.epochs, arguments.seed)


if __name__ == "__main__":
    main()
