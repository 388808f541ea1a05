"""For every test: nothing is fetched from the hub and nothing is sent to a tracker, in this process and in those it starts."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
