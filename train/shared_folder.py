"""What the main process writes, read by all: in place on a disk that all machines share, else from a copy that is sent to them.

Only the main process's machine keeps a run's folder. Whether a process sees it is tried once, by a file of a new name: a shared disk may
show an old listing for a while, but it never hides a name that nobody has asked for yet.
"""

import atexit
import os
import secrets
import shutil
import tempfile
from pathlib import Path

import numpy as np

from eval.processes import Processes

CHUNK_BYTES = 1 << 26


class SharedFolder:
    """A folder of the main process, which exists.

    Attributes:
        everywhere: whether every process sees it.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self._processes = processes
        self._token = str(processes.from_main(lambda: secrets.token_hex(8)))
        probe = folder / f".seen-{self._token}"
        if processes.is_main:
            probe.touch()
        processes.barrier()
        self._sees = probe.exists()
        self.everywhere = all(bool(part[0]) for part in processes.gather(np.array([self._sees])))
        if processes.is_main:
            probe.unlink()
        # One copy per machine, written by its first process; of a name that its others can work out, too.
        self._copies = Path(tempfile.gettempdir()) / f"siglip-tuner-{self._token}"
        self._writes = not self._sees and int(os.environ.get("LOCAL_RANK", "0")) == 0

    def bring(self, folder: Path) -> Path:
        """Where this process reads a folder that the main process has: the folder itself, or a copy that lasts as long as the process.

        Call on every process.

        Raises:
            OSError: there is no room for a copy.
        """
        if self.everywhere:
            self._processes.barrier()  # it is written before anyone reads
            return folder
        copy = self._copies / folder.name
        if self._writes:
            atexit.register(shutil.rmtree, self._copies, ignore_errors=True)
            shutil.rmtree(copy, ignore_errors=True)
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) if self._processes.is_main else []
        sizes = {name: (folder / name).stat().st_size for name in names}
        for name, size in self._processes.from_main(lambda: sizes).items():
            self._send(folder / name, copy / name, size)
        self._processes.barrier()  # nobody reads half of it
        return folder if self._sees else copy

    def drop(self, brought: Path) -> None:
        """Remove a copy that is no longer needed; the folder itself is left alone. Call on every process."""
        self._processes.barrier()
        if self._writes and brought.parent == self._copies:
            shutil.rmtree(brought, ignore_errors=True)

    def _send(self, source: Path, target: Path, size: int) -> None:
        """One file from the main process, a piece at a time."""
        if self._writes:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        for start in range(0, size, CHUNK_BYTES):
            piece = np.zeros(min(CHUNK_BYTES, size - start), dtype=np.uint8)
            if self._processes.is_main:
                piece = np.fromfile(source, dtype=np.uint8, count=len(piece), offset=start)
            self._processes.broadcast(piece)
            if self._writes:
                with target.open("ab") as file:
                    file.write(piece.tobytes())
