"""What a run costs, counted: floating-point operations of its towers, in training and in mining."""

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from eval.encoder.checkpoint import load_siglip
from eval.encoder.inputs import image_features, text_features
from train.config.job import JobConfig
from train.model.grad_cache import cached_size
from train.study.runs import Result

_PASSES = 3  # forward, and backward, which takes two


@dataclass(frozen=True)
class TowerCost:
    """Floating-point operations of one forward pass of a picture, and of a caption."""

    image: int
    text: int

    @classmethod
    def of(cls, base: str) -> "TowerCost":
        """Counted by torch on one picture and one caption, matrix products alone.

        Raises:
            UserError: the checkpoint cannot be loaded.
        """
        model, inputs = load_siglip(base)
        pixels, tokens = torch.zeros(1, 3, inputs.image_size, inputs.image_size), torch.zeros(1, inputs.num_tokens, dtype=torch.int64)
        counts = []
        for features, rows in ((image_features, pixels), (text_features, tokens)):
            with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # fused kernels are not counted
                features(model, rows)
            counts.append(int(counter.get_total_flops()))
        return cls(*counts)


def flops(result: Result, config: JobConfig, towers: TowerCost, num_images: int, num_captions: int) -> float:
    """Floating-point operations of a run's steps and minings.

    Args:
        num_images, num_captions: of the train split, with the captions of mining.pool.
    """
    batch_size, per_image, frozen = config.train.batch_size, config.train.captions_per_image, config.model.freeze
    steps = [line for line in result.lines if line["event"] == "step"]
    images, texts = len(steps) * batch_size, sum(batch_size * per_image + line["num_mined"] for line in steps)
    passes = _PASSES + (cached_size(config.train.micro_batch_size, batch_size, per_image + config.most_mined) is not None)
    once = 0.0
    for tower, rows, cost, num_once in (("image", images, towers.image, num_images), ("text", texts, towers.text, num_captions)):
        once += num_once * cost if tower in frozen else rows * cost * passes
    minings = sum(line["event"] == "mining" for line in result.lines)
    mined = sum(
        num * cost
        for tower, num, cost in (("image", num_images, towers.image), ("text", num_captions, towers.text))
        if tower not in frozen
    )
    return once + minings * mined
