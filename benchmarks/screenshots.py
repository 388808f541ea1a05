"""Pictures of the pages that people see, of a finished run that has a reranker, for docs/pictures/.

    ./launch.sh && python -m benchmarks.screenshots runs/demo
    python -m benchmarks.screenshots runs/demo --other runs/plain      # the page of compare: this run against another

Each page at 1280 and 390 pixels, in light and dark, as NAME-WIDTH-SCHEME.webp of at most 150 KB: report, mining, compare, rerank, explore.
Report and mining page are the run's; the others are made by their commands, into a folder that is removed. It needs Chromium, and explore
needs gradio; what cannot be made is said, and the exit code is then 1.
"""

import argparse
import base64
import io
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from eval.errors import UserError
from tests.browser import CHROMIUM, LOOKS, Tab, browser

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
MOST_BYTES = 150_000
HEIGHTS = {1280: 800, 390: 844}
SENTENCE = "a small blue circle left of a big red square"
_QUALITIES = (90, 80, 70, 55, 40)
_SECONDS = 300


@dataclass(frozen=True)
class RunPlaces:
    """What the commands need of a run, as its config.yaml has it."""

    folder: Path
    data: dict[str, Any]
    reranker: str

    @classmethod
    def of(cls, folder: Path) -> "RunPlaces":
        """Read a finished run.

        Raises:
            UserError: it is none, or has no reranker.
        """
        path = folder / "config.yaml"
        if not path.is_file() or not (folder / "export").is_dir():
            raise UserError(f"{folder}: expected a finished run, with config.yaml and export/; finish it first, or name another")
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not config.get("rerank"):
            raise UserError(f"{folder}: this run has no reranker; take one with the key rerank.model, such as runs/demo")
        return cls(folder, config["data"], config["rerank"]["model"])

    def pictures(self) -> list[str]:
        """Options that name the pictures of the test split, and the reranker."""
        named = {key: name for key, name in (self.data.get("columns") or {}).items() if key in ("image", "id")}
        columns = [part for key, name in named.items() for part in ("--column", f"{key}={name}")]
        root = ["--image-root", self.data["image_root"]] if self.data.get("image_root") else []
        return ["--images", self.data["source"], *root, *columns, "--split", self.data["test_split"], "--rerank", self.reranker]


Prepare = Callable[[Tab], None]


def no_preparation(tab: Tab) -> None:
    """The page as it opens."""


def first(paths: Iterator[Path], what: str) -> Path:
    """The last of some paths by name.

    Raises:
        UserError: there is none.
    """
    found = sorted(paths)
    if not found:
        raise UserError(f"there is no {what}")
    return found[-1]


def named(path: Path) -> str:
    """A path as the commands get it, and the pages show it: as seen from this repository where it lies in it."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def called(module: str, arguments: list[str]) -> None:
    """Run a command of this project.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise UserError(f"python -m {module} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


@contextmanager
def report(run: RunPlaces, other: Path, scratch: Path) -> Iterator[tuple[str, Prepare]]:
    """The run's report."""
    yield first(run.folder.glob("eval/*/report.html"), "report.html").as_uri(), no_preparation


@contextmanager
def mining(run: RunPlaces, other: Path, scratch: Path) -> Iterator[tuple[str, Prepare]]:
    """Its newest mining page."""
    pages = sorted(run.folder.glob("negatives/*.html"), key=lambda path: (path.stat().st_mtime, path.name))
    yield first(iter(pages[-1:]), "mining page").as_uri(), no_preparation


@contextmanager
def compare(run: RunPlaces, other: Path, scratch: Path) -> Iterator[tuple[str, Prepare]]:
    """The page of two runs' queries that differ."""
    called("eval.compare", [named(run.folder), named(other), "--output", str(scratch)])
    yield first(scratch.glob("*.html"), "compare.html").as_uri(), no_preparation


@contextmanager
def rerank(run: RunPlaces, other: Path, scratch: Path) -> Iterator[tuple[str, Prepare]]:
    """The page of answers without ground truth."""
    model = ["--model", named(run.folder / "export")]
    called("rerank", [*model, *run.pictures(), "--top-k", "8", "--pages", "20", "--output", str(scratch / "answers.parquet")])
    yield (scratch / "answers.html").as_uri(), no_preparation


@contextmanager
def explore(run: RunPlaces, other: Path, scratch: Path) -> Iterator[tuple[str, Prepare]]:
    """The page to search with, after a sentence."""

    def ask(tab: Tab) -> None:
        tab.wait_for("document.querySelector('textarea')")
        tab.value("document.querySelector('textarea').focus()")
        tab.send("Input.insertText", text=SENTENCE)
        tab.press("Enter", 13, "\r")
        tab.wait_for("document.querySelectorAll('#results ol.pictures').length == 2")
        tab.wait_for("[...document.querySelectorAll('#results img')].every(one => one.complete)")

    words = [sys.executable, "-m", "rerank.explore", named(run.folder), *run.pictures(), "--port", "0"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = []
        for line in process.stdout or ():
            said.append(line)
            if url := re.search(r"http://127\.0\.0\.1:\d+/?", line):
                yield url.group(), ask
                return
        raise UserError(f"python -m rerank.explore failed: {''.join(said[-1:]).strip()}")
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


PAGES = {one.__name__: one for one in (report, mining, compare, rerank, explore)}


def small(png: bytes) -> bytes:
    """A screenshot as WebP of at most MOST_BYTES, or the smallest that there is."""
    with Image.open(io.BytesIO(png)) as image:
        for quality in _QUALITIES:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "WEBP", quality=quality, method=6)
            if buffer.tell() <= MOST_BYTES:
                break
    return buffer.getvalue()


def take(tab: Tab, name: str, url: str, prepare: Prepare, folder: Path) -> list[Path]:
    """The first screen of a page in every look."""
    paths = []
    for width, is_dark in LOOKS:
        tab.go("about:blank")
        tab.go(url, width=width, height=HEIGHTS[width], is_dark=is_dark)
        tab.wait_for("location.href != 'about:blank' && document.readyState === 'complete'")
        prepare(tab)
        shot = tab.send("Page.captureScreenshot")
        paths.append(folder / f"{name}-{width}-{'dark' if is_dark else 'light'}.webp")
        paths[-1].write_bytes(small(base64.b64decode(shot["data"])))
    return paths


def main(arguments: list[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run with a reranker, such as runs/demo")
    parser.add_argument("--other", type=Path, metavar="RUN", help="another finished run, for the page of compare (default: the same)")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the pictures are written (default docs/pictures)")
    parser.add_argument("--pages", nargs="+", choices=list(PAGES), default=list(PAGES), help="which pages (default: all)")
    asked = parser.parse_args(arguments)
    if not CHROMIUM.exists():
        print(f"there is no browser at {CHROMIUM}; install Chromium", file=sys.stderr)
        return 1
    failed = 0
    try:
        run = RunPlaces.of(asked.run.resolve())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    asked.folder.mkdir(parents=True, exist_ok=True)
    for name in asked.pages:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                with PAGES[name](run, (asked.other or asked.run).resolve(), Path(scratch)) as (url, prepare), browser(Path(scratch)) as tab:
                    for path in take(tab, name, url, prepare, asked.folder):
                        print(f"{path.stat().st_size / 1000:6.1f} KB  {path}", flush=True)
            except UserError as error:
                failed = 1
                print(f"{name}: not taken: {error}", file=sys.stderr, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
