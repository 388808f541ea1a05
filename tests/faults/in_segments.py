"""`python -m train` with gradients of even a tiny model summed in several segments, as a large one's are (train/optim/update.py)."""

from train.__main__ import run
from train.engine.command import end_with
from train.optim import update

if __name__ == "__main__":
    update._SEGMENT_BYTES = 1 << 10
    end_with(run)
