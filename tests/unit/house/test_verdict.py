"""train/launch/supervise.sh: which exit code the whole has, from the codes that the trainers left."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = 'set -u; source train/launch/supervise.sh; marks=$1 stopped_by=$2 local_processes=$3; verdict "$4"'


@pytest.mark.parametrize(
    ("codes", "stopped_by", "launcher", "expected"),
    [
        ({0: "0", 1: "0"}, "", 0, 0),
        ({0: "0", 1: "0"}, "", 137, 0),  # the launcher died after all was done
        ({0: "0", 1: "0"}, "TERM", 1, 0),  # the signal came too late
        ({0: "2", 1: "2"}, "", 1, 2),
        ({1: "3"}, "", 1, 3),
        ({0: "143", 1: "4"}, "", 1, 4),  # rank 1 could not write; the launcher then stopped rank 0
        ({0: "5", 1: "143"}, "", 1, 5),
        ({0: "1", 1: "6"}, "", 1, 6),  # rank 1 ran out of memory; rank 0 lost it
        ({0: "143", 1: "143"}, "", 1, 143),
        ({0: "143"}, "TERM", 1, 143),
        ({0: "143"}, "", 1, 1),  # rank 1 was killed and left nothing: this is no clean stop
        ({0: "143", 1: "1"}, "", 1, 1),
        ({0: "130", 1: "130"}, "INT", 1, 130),
        ({0: "0"}, "", 0, 1),  # rank 1 never finished, whatever the launcher says
        ({}, "", 0, 1),
        ({}, "", 137, 137),
        ({}, "TERM", 1, 143),  # killed by it before it could be handled, as a plain process would be
        ({}, "INT", 1, 130),
        ({0: "", 1: "0"}, "", 1, 1),  # killed while it wrote its code
        ({10: "5", 9: "4"}, "", 1, 4),  # the lowest rank's, by number
    ],
)
def test_verdict(tmp_path: Path, codes: dict[int, str], stopped_by: str, launcher: int, expected: int) -> None:
    for rank, code in codes.items():
        (tmp_path / f"exit.{rank}").write_text(code)
    command = ["bash", "-c", SCRIPT, "verdict", str(tmp_path), stopped_by, "2", str(launcher)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")
