"""How each term of a run grows with its data: time and memory at 1x, 2x, 4x, 8x, and the exponent.

    OMP_NUM_THREADS=1 python -m benchmarks.scale --write

Synthetic rows and embeddings of width 64, one thread, no model (benchmarks/scale/terms.py). Each measurement is of a process of its own,
after the same work at 1x (what is imported or allocated once is no cost of an item). Seconds are the processor's, the median of the rounds;
the exponent is the slope of log(seconds) over log(size) by least squares, of each round: their median, and the lowest and highest. What a
term takes at any size pulls the exponent below that of its algorithm. Held and peak are bytes an item at 8x of the process's own memory
(anonymous; mapped files, which the system drops as it needs, are not in what is held).
`--write` writes results/scale.md and the table of
docs/scale.md; `--costs` writes the latter alone, from the results that are there.
"""

import argparse
import gc
import multiprocessing
import os
import platform
import re
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np

from benchmarks.conclusion import INDEX, title_lines
from benchmarks.manifest_at_size import own_bytes
from benchmarks.scale.costs import read_measured, table

ROOT = Path(__file__).resolve().parents[2]
PAGE, DOCS = ROOT / "results" / "scale.md", ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- table: python -m benchmarks.scale --write -->", "<!-- end of table -->"
TIMES = (1, 2, 4, 8)
PROPORTIONAL = 1.2
"""Up to this exponent a term is said to grow in proportion to its data."""
Work = Callable[[], Any]


def measured(warm_up: Work, work: Work) -> dict[str, float]:
    """Processor's seconds of a piece of work, and bytes held and at most, in this process, after a smaller piece."""
    from eval.manifest.memory import release_unused

    warm_up()
    gc.collect()
    release_unused()
    before, mapped = own_bytes("RssAnon"), own_bytes("VmRSS") - own_bytes("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")  # the most so far begins anew
    began = process_time()
    held = work()
    seconds = process_time() - began
    release_unused()
    found = {"seconds": seconds, "held": own_bytes("RssAnon") - before, "peak": own_bytes("VmHWM") - mapped - before}
    del held
    return found


def of_own_process(name: str, warm_up: Work, work: Work) -> dict[str, float]:
    """`measured` in a process of its own.

    Raises:
        SystemExit: it ended without a result.
    """

    def child(end: Connection) -> None:
        end.send(measured(warm_up, work))

    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(there,))
    process.start()
    there.close()
    try:
        found: dict[str, float] = here.recv()
    except EOFError:
        raise SystemExit(f"{name}: its process ended without a result; see above") from None
    finally:
        process.join()
    return found


def slope(sizes: list[int], seconds: list[float]) -> float:
    """The exponent: least squares in logarithms.

    >>> round(slope([1, 2, 4, 8], [3, 12, 48, 192]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(seconds, 1e-6)), 1)[0])


def line(term: Any, rounds: list[list[dict[str, float]]]) -> str:
    """A term's line; rounds: a list of its sizes each."""
    sizes = [term.base * times for times in TIMES]
    seconds = np.median([[one["seconds"] for one in found] for found in rounds], axis=0)
    slopes = [slope(sizes, [one["seconds"] for one in found]) for found in rounds]
    held, peak = (max(0.0, float(np.median([found[-1][key] for found in rounds]))) / sizes[-1] for key in ("held", "peak"))
    exponent = f"{np.median(slopes):.2f} ({min(slopes):.2f} to {max(slopes):.2f})"
    cells = [*(f"{size:,}" for size in sizes), *(f"{one:.3g}" for one in seconds), exponent, f"{held:.0f}", f"{peak:.0f}"]
    return f"| {term.name} | {term.grows_with} | {' | '.join(cells)} |"


def run(num_rounds: int, chosen: list[str], folder: Path) -> list[str]:
    """Measure the terms, in rounds; the table's lines."""
    import torch

    from benchmarks.scale.terms import TERMS

    torch.set_num_threads(1)
    terms = [term for term in TERMS if not chosen or term.name in chosen]
    works = {term.name: [term.prepare(term.base * times, folder) for times in TIMES] for term in terms}
    found: dict[str, list[list[dict[str, float]]]] = {term.name: [] for term in terms}
    for _ in range(num_rounds):
        for name, of_sizes in works.items():
            found[name].append([of_own_process(name, of_sizes[0], work) for work in of_sizes])
    heads = [*(f"{times}x" for times in TIMES), *(f"s at {times}x" for times in TIMES), "exponent", "held, B an item", "peak, B an item"]
    return [f"| term | grows with | {' | '.join(heads)} |", "|---" * 13 + "|", *(line(term, found[term.name]) for term in terms)]


def conclusion(lines: list[str], num_rounds: int, load: float, num_processors: int) -> str:
    """The page's first line: which terms grow faster than in proportion, and how many rounds say so.

    >>> row = "| {} | rows | 1 | 2 | 4 | 8 | 1 | 2 | 4 | 8 | {} (0.98 to 1.47) | 8 | 9 |"
    >>> conclusion([row.format("manifest", "1.00"), row.format("leakage", "1.29")], 1, 19.0, 2)  # doctest: +ELLIPSIS
    'All but 1 of 2 terms grow with their data to a power of 1.00 or less; faster: leakage 1.29. 1 round on a busy machine (load 19.0), ...
    """
    powers = {name: float(found.exponent.split()[0]) for name, found in read_measured("\n".join(lines)).items()}
    beyond = sorted((power, name) for name, power in powers.items() if power > PROPORTIONAL)
    faster = "; faster: " + ", ".join(f"{name} {power:.2f}" for power, name in beyond) if beyond else ""
    within = max((power for power in powers.values() if power <= PROPORTIONAL), default=PROPORTIONAL)
    rounds, machine = f"{num_rounds} round{'s' if num_rounds > 1 else ''}", "busy" if load > num_processors else "quiet"
    unsure = ", so intervals say nothing" if num_rounds == 1 else ""
    grown = f"All but {len(beyond)} of {len(powers)} terms grow with their data to a power of {within:.2f} or less{faster}."
    return f"{grown} {rounds} on a {machine} machine (load {load:.1f}){unsure}."


def write_conclusion(text: str) -> None:
    """Write the page's line of results/README.md."""
    index = INDEX.read_text(encoding="utf-8")
    INDEX.write_text(re.sub(r"(?m)^(\| \[scale\]\(scale\.md\) \| ).* \|$", lambda match: f"{match[1]}{text} |", index), encoding="utf-8")


def write_costs() -> None:
    """Write the table of docs/scale.md."""
    text, lines = DOCS.read_text(encoding="utf-8"), table(read_measured(PAGE.read_text(encoding="utf-8")))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    DOCS.write_text("\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]), encoding="utf-8")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each size (default 3)")
    parser.add_argument("--term", action="append", default=[], metavar="NAME", help="one term alone, printed; may be repeated")
    parser.add_argument("--write", action="store_true", help="write results/scale.md and the table of docs/scale.md")
    parser.add_argument("--costs", action="store_true", help="write the table of docs/scale.md from the results that are there")
    asked = parser.parse_args()
    if not asked.costs:
        with tempfile.TemporaryDirectory() as folder:
            lines = run(asked.rounds, asked.term, Path(folder))
        load, num_processors = os.getloadavg()[0], os.cpu_count() or 1
        machine = f"{num_processors} processors, {platform.machine()}, Python {platform.python_version()}; load {load:.1f}; "
        machine += f"rounds: {asked.rounds}."
        print("\n".join([*lines, "", machine]))
        if asked.write and not asked.term:
            write_conclusion(conclusion(lines, asked.rounds, load, num_processors))
            title = title_lines("scale", "How each term of a run grows")
            PAGE.write_text("\n".join([*title, (__doc__ or "").strip(), "", *lines, "", machine, ""]), encoding="utf-8")
    if asked.costs or (asked.write and not asked.term):
        write_costs()


if __name__ == "__main__":
    main()
