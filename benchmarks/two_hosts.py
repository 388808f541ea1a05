"""The division over two hosts: the gradient job on two machines, which are network namespaces joined by gloo over virtual ethernet.

python -m benchmarks.batch_division --prepare FOLDER
python -m benchmarks.two_hosts FOLDER PATH                                        root and ip of iproute2 are needed
python -m benchmarks.batch_division --work FOLDER --further "two hosts=PATH" --output results/batch-division.md
"""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.batch_division import NUM_STEPS
from tests.hosts import two_hosts, why_not


def main() -> int:
    """Run the division; its files go to PATH."""
    work, output = Path(sys.argv[1]), Path(sys.argv[2])
    if reason := why_not():
        raise SystemExit(reason)
    output.mkdir(parents=True, exist_ok=True)
    job = ["tests.integration.train.gradients", str(work / "data" / "pairs.jsonl"), str(work / "base"), str(output)]
    with two_hosts() as hosts:
        started = []
        for rank, host in enumerate(hosts):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
            torchrun += ["--master-addr", hosts[0].address, "--master-port", "29500", "-m", *job, "--num-steps", str(NUM_STEPS)]
            environment = os.environ | host.variables() | {"OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(host.command(*torchrun), env=environment))
        return max(abs(process.wait()) for process in started)


if __name__ == "__main__":
    sys.exit(main())
