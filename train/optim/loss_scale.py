"""fp16's loss scale: the loss is multiplied before the backward pass, so that small gradients do not underflow in float16, and the
gradients are divided after it.

The rule is torch.amp.GradScaler's (Micikevicius et al. 2018, arXiv 1710.03740): halve and skip the step where a gradient overflowed, double
after 2,000 steps without overflow. GradScaler itself checks each process's own gradients; ours are summed over processes first, so that all
skip the same steps, and the state is two numbers in a checkpoint's JSON.
"""

from dataclasses import dataclass, replace

GROWTH_INTERVAL_STEPS = 2_000
SMALLEST = 1.0
"""At a scale below it an overflow is not caused by scaling."""


@dataclass(frozen=True)
class LossScale:
    """The current scale; a power of two, so that scaling does not round.

    Attributes:
        scale: what the loss is multiplied by.
        num_good_steps: steps taken since it last changed.
        num_skipped: steps skipped so far.
    """

    scale: float = 2.0**16
    num_good_steps: int = 0
    num_skipped: int = 0

    def after(self, *, overflowed: bool) -> "LossScale":
        """The scale of the next step."""
        if overflowed:
            return LossScale(self.scale / 2, 0, self.num_skipped + 1)
        if self.num_good_steps + 1 == GROWTH_INTERVAL_STEPS:
            return replace(self, scale=2 * self.scale, num_good_steps=0)
        return replace(self, num_good_steps=self.num_good_steps + 1)
