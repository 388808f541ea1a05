"""A newcomer can follow one training step: benchmarks/reading_path.py counts the files from launch.sh to the first update."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
MOST_FILES = 25


def test_one_training_step_is_read_in_few_files() -> None:
    command = [sys.executable, "benchmarks/reading_path.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    met = re.findall(r"^ *\d+ +step +(\S+)$", done.stdout, flags=re.MULTILINE)
    expected = {"launch.sh", "train/__main__.py", "train/siglip/step.py", "train/loss/sigmoid.py", "train/optim/update.py"}
    assert expected <= set(met), done.stdout
    assert f"step    {len(met):4} files" in done.stdout
    assert len(met) <= MOST_FILES, done.stdout
