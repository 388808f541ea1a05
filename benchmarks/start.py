"""Where the demo's whole time goes, and the time from ./launch.sh to the first step: spans between the lines that a run prints.

    git worktree add PATH/TO/OLDER COMMIT
    python -m benchmarks.start --against PATH/TO/OLDER --turns 3

The environment that runs this is the one that launch.sh uses. The first steps of the demo and of configs/small.yaml (with the demo's
pictures and base) are timed in turns with the older tree, and the run is stopped there; the whole demo, once, in this tree. What each
package costs to import is counted by Python itself (PYTHONPROFILEIMPORTTIME) in one more start, which it makes slower.
"""

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from threading import Thread

from benchmarks.conclusion import title_lines

ROOT = Path(__file__).resolve().parents[1]
JOBS = {
    "demo": ["configs/demo.yaml"],
    "small.yaml": ["configs/small.yaml", "data.source=demo/data/scenes.parquet", "data.columns={group: scene}"]
    + ["model.base=demo/models/siglip-base"],
}
MARKS = {
    "launch.sh: using": "launch.sh: the environment is found",
    "run ": "Python starts, torch and what trains are imported",
    "model ": "data and models are read, captions tokenised",
    "pictures ": "pictures of evaluations are decoded once",
    "step 0: ": "first checkpoint handed over, first evaluation",
}
"""What a line begins with -> the span that ends there."""
FIRST_STEP, END, CPU = "workers start, first step", "end", "CPU time of all its processes, until they have stopped"


def timed(tree: Path, words: list[str], runs: Path, *, is_whole: bool = False, profiled: bool = False) -> tuple[dict[str, float], str]:
    """Start a run of a tree and stop it after its first step, or see it end.

    Returns:
        (span -> seconds from the start to its end, what was printed). Each span ends at the last of its lines.
    """
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix} | ({"PYTHONPROFILEIMPORTTIME": "1"} if profiled else {})
    started, ends, printed = time.perf_counter(), dict[str, float](), list[str]()
    used = _used()
    command = [str(tree / "launch.sh"), *words, "name=job", f"runs_folder={runs}"]
    process = subprocess.Popen(command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            for beginning, span in MARKS.items():
                if re.sub(r"^\S+ [\d:]+ ", "", line).startswith(beginning):
                    ends[span] = time.perf_counter() - started

    reader = Thread(target=read)
    reader.start()
    metrics = runs / "job" / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and '"event": "step"' in metrics.read_text(encoding="utf-8")):
        time.sleep(0.01)
    ends[FIRST_STEP] = time.perf_counter() - started
    if not is_whole:
        process.send_signal(signal.SIGTERM)
    code = process.wait()
    reader.join()
    if code != (0 if is_whole else 143):
        raise SystemExit(f"{command} ended with {code}:\n{''.join(printed)[-3000:]}")
    ends |= {END: time.perf_counter() - started, CPU: _used() - used}
    return ends, "".join(printed)


def _used() -> float:
    """CPU seconds of all processes that this one has started and seen end."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def in_runs(work: Callable[[Path], dict[str, float]], folder: Path | None) -> dict[str, float]:
    """What `work` gives in a folder for runs of its own."""
    with tempfile.TemporaryDirectory(prefix="start-", dir=folder) as name:
        return work(Path(name))


def spans(ends: Mapping[str, float]) -> dict[str, float]:
    """Span -> its seconds, of what ends one after another."""
    order = sorted((end, span) for span, end in ends.items() if span not in (END, CPU))
    return {span: end - before for (end, span), before in zip(order, [0.0, *(end for end, _ in order)], strict=False)}


def whole_demo(runs: Path) -> dict[str, float]:
    """Span -> seconds of the whole demo."""
    ends, _ = timed(ROOT, JOBS["demo"], runs, is_whole=True)
    lines = [json.loads(line) for line in (runs / "job/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = spans(ends)
    later = [line for line in lines if line["step"] > 0]
    named = {"steps 2 to the last": [line for line in later if line["event"] == "step" and line["step"] > 1]}
    named |= {f"{event}, after step 0": [line for line in later if line["event"] == event] for event in ("eval", "watch", "mining")}
    found |= {name: sum(line.get("seconds", 0.0) for line in rows) for name, rows in named.items() if rows}
    report = json.loads((runs / "job/eval/test/report.json").read_text(encoding="utf-8"))
    costs = {stage: one["cost"]["seconds"] for stage, one in report["stages"].items() if "seconds" in one["cost"]}
    found |= {f"final evaluation: {stage}": seconds for stage, seconds in costs.items()}
    found["export, report, checkpoints, curves, the rest"] = ends[END] - sum(found.values())
    return found | {"all": ends[END]}


def imported(printed: str) -> dict[str, float]:
    """Top-level package -> seconds of its own modules at import, the largest first, by what Python printed."""
    seconds: dict[str, float] = {}
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", printed, flags=re.MULTILINE):
        package = name.partition(".")[0]
        package = "ours" if package in ("eval", "rerank", "train") else package
        seconds[package] = seconds.get(package, 0.0) + int(own) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table of Markdown."""
    return ["", *(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]), ""]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the folder of another version (default: none)")
    parser.add_argument("--turns", type=int, default=3, help="starts of each (default 3)")
    parser.add_argument("--folder", type=Path, help="where runs are written (default: the system's folder for temporary files)")
    parser.add_argument("--no-demo", action="store_true", help="leave the whole demo out")
    parser.add_argument("--output", type=Path, help="write the page there")
    asked = parser.parse_args()
    trees = ({"before": asked.against.resolve()} if asked.against else {}) | {"now": ROOT}
    text = [f"Made by `python -m benchmarks.start {' '.join(sys.argv[1:])}` on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}.", ""]
    for job, words in JOBS.items():
        found: dict[str, list[dict[str, float]]] = {name: [] for name in trees}
        for turn in range(asked.turns):
            for name in list(trees)[:: 1 if turn % 2 else -1]:
                found[name].append(in_runs(lambda runs, name=name, words=words: timed(trees[name], words, runs)[0], asked.folder))
        firsts = {name: [ends[FIRST_STEP] for ends in one] for name, one in found.items()}
        text += [f"## To the first step: {job}"]
        names = list(spans(found["now"][0]))
        rows = [[span, *(f"{median(spans(ends).get(span, 0.0) for ends in found[name]):.2f}" for name in trees)] for span in names]
        used = {name: [ends[CPU] for ends in one] for name, one in found.items()}
        for name, part in (("from `./launch.sh` to the first step", firsts), (CPU, used)):
            rows.append([f"**{name}**", *(f"**{median(one):.2f}** ({min(one):.2f} to {max(one):.2f})" for one in part.values())])
        text += table(["span", *(f"{name}, s" for name in trees)], rows)
        if asked.against:
            ratios = [median(part["before"]) / median(part["now"]) for part in (firsts, used)]
            text += [f"Before over now: {ratios[0]:.2f} in time, {ratios[1]:.2f} in CPU time.", ""]
    seconds = in_runs(lambda runs: imported(timed(ROOT, JOBS["demo"], runs, profiled=True)[1]), asked.folder)
    text += ["## Imports of a start", *table(["package", "s"], [[name, f"{one:.2f}"] for name, one in list(seconds.items())[:8]])]
    text += [f"{sum(seconds.values()):.2f} s in all, with Python's counting, before the first step."]
    if not asked.no_demo:
        seconds = in_runs(whole_demo, asked.folder)
        rows = [[span, f"{one:.1f}", f"{100 * one / seconds['all']:.0f}%"] for span, one in seconds.items()]
        text += ["", "## The whole demo", *table(["span", "s", "share"], rows)]
    print("\n".join(text))
    if asked.output is not None:
        page = [*title_lines("start", "Start: where the time to the first step goes"), *text]
        asked.output.write_text("\n".join(page).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
