"""The learning rate as a function of the step: linear warm-up, then a cosine to zero. No state, so nothing to resume."""

import math


def rate_factor(step: int, max_steps: int, num_warmup_steps: int) -> float:
    """Share of the peak rate at a step (from 1): step / warm-up while warming up, then half a cosine that ends at 0 after the last step."""
    if step <= num_warmup_steps:
        return step / num_warmup_steps
    progress = (step - num_warmup_steps - 1) / max(1, max_steps - num_warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
