"""The constant answer: what a cross-encoder's loss is when it says the same of every pair, and how a run that is stuck there is found.

A cross-encoder that learns nothing but how many of its pairs are true gives each the share of true pairs as its probability. Its cross-
entropy is the entropy of that share: 0.6365 nats at 1 true to 2 false. Fine-tuning runs are known to sit there (BLIP#200).
"""

import math
from dataclasses import dataclass

WITHIN = 0.03
"""The running mean of the loss is a constant answer's when it is this near, as a share, to what a constant answer gets."""
OVER_STEPS = 50
"""Steps that the running mean looks back over, and that pass before anything is said."""
LEAST_SCORE_STD = 0.01
"""Match logits that differ by less than this tell nothing apart."""

REMEDY = (
    "What helps: a lower train.learning_rate; easy negatives before hard ones (negatives.easy_until_step); and a base that was aligned "
    "first: one trained contrastively, then to match (from random weights, hard negatives alone stay at the constant answer for epochs)"
)


def constant_loss(num_true: float, num_false: float) -> float:
    """Entropy, in nats, of the share of true pairs: -q ln q - (1 - q) ln (1 - q) with q = num_true / (num_true + num_false); 0 where there
    is one kind alone."""
    share = num_true / (num_true + num_false)
    return sum(part * math.log(1 / part) for part in (share, 1 - share) if part > 0)


@dataclass(frozen=True)
class RunningLoss:
    """The loss and the constant answer's, each as an exponentially weighted sum of the last steps; part of a checkpoint.

    Attributes:
        loss, constant: the sums; their quotient is that of the running means.
        weight: sum of the weights, which makes a mean of a sum.
        num_steps: steps so far.
        named: whether the constant answer has been named and the run has not left it since.
    """

    loss: float = 0.0
    constant: float = 0.0
    weight: float = 0.0
    num_steps: int = 0
    named: bool = False

    def after(self, loss: float, constant: float) -> "RunningLoss":
        """One step later."""
        keep, num_steps = 1 - 1 / OVER_STEPS, self.num_steps + 1
        loss, constant = keep * self.loss + (1 - keep) * loss, keep * self.constant + (1 - keep) * constant
        named = num_steps >= OVER_STEPS and abs(loss - constant) <= WITHIN * constant
        return RunningLoss(loss, constant, keep * self.weight + (1 - keep), num_steps, named)

    @property
    def means(self) -> tuple[float, float]:
        """Running means of the loss and of the constant answer's; 0 before the first step."""
        return (self.loss / self.weight, self.constant / self.weight) if self.weight else (0.0, 0.0)


def loss_warning(running: RunningLoss, num_true: int, num_false: int) -> str:
    """What is said when the loss is a constant answer's."""
    loss, constant = running.means
    ratio = f"1 : {num_false / num_true:.2g}" if num_true else "0 : 1"
    return (
        f"constant answer: the loss has stayed at {loss:.4f}, and a cross-encoder that answers the same to every pair gets "
        f"{constant:.4f} at {ratio} true to false. {REMEDY}"
    )
