"""Pages in a headless browser, where one is installed."""

import subprocess
from pathlib import Path

import pytest

CHROMIUM = Path("/usr/bin/chromium")
needs_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason="no browser here")


def opened(page: Path, folder: Path) -> subprocess.CompletedProcess:
    """Open a page from disk: stdout has its DOM when it has settled, stderr what it logs.

    Args:
        folder: where the browser may write.
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--enable-logging=stderr", "--dump-dom"]
    return subprocess.run([str(CHROMIUM), *options, page.as_uri()], capture_output=True, text=True, timeout=120)
