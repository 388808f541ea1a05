"""Which use of hard negatives helps? Heads on frozen features, where a run takes seconds: many systems, many seeds, three beds.

    python -m benchmarks.heads tune photographs=DATA/flickr8k fashion=DATA/fashion scenes=DATA/scenes --work WORK
    python -m benchmarks.heads screen (the same) --output results/study/heads
    python -m benchmarks.heads study (the same) --output results/study/heads
    python -m benchmarks.heads page --output results/study/heads

`tune` tries lengths and rates of plain training on val (benchmarks/heads/beds.py holds the best). `screen` trains every system of
benchmarks/heads/systems.py with SCREEN_SEEDS and measures it on val; the best SURVIVORS, and what is always asked about, go on.
`study` writes protocol.json, then trains with fresh seeds and measures on test; `page` compares and writes the page. Finished
runs are not run again.
`python -m demo.make_data --test-scenes 3000 --val-scenes 1000` draws the scenes of the third bed.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.heads.beds import BEDS
from benchmarks.heads.features import Split
from benchmarks.heads.forms import Heads, Trained, train_heads
from benchmarks.heads.page import write_page
from benchmarks.heads.systems import CONTROLS, LENGTHS, PLAIN, PRESETS, SYSTEMS, TWO
from eval.atomic import replace_files

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
SCREEN_SEEDS, SEEDS = (100, 101, 102), tuple(range(8))
SURVIVORS = 5
NEAR_MISSES = 4
IMAGE_COST, TEXT_COST = 3.0, 1.0
"""Of a picture and a caption in SigLIP base's towers, about, in the price of a caption: the heads' own cost is next to nothing."""


def measure(heads: Heads, split: Split) -> dict[str, Any]:
    """R@1 and R@5 both ways, near-miss accuracy, and each image's part of mean R@1.

    Near misses of an image's first caption: the NEAR_MISSES captions, not true of it, that the frozen text features call most like it.
    """
    images_ID, texts_CD = heads.vectors(split)
    logits_IC = images_ID @ texts_CD.T
    num_images, num_captions = logits_IC.shape
    captions_I5, images_C5 = logits_IC.topk(5, dim=1).indices.numpy(), logits_IC.topk(5, dim=0).indices.T.numpy()
    to_text_I5 = split.is_true(np.arange(num_images), captions_I5)
    to_image_C5 = split.is_true(images_C5.reshape(-1), np.repeat(np.arange(num_captions), 5)[:, None]).reshape(num_captions, 5)
    part_I = np.bincount(split.image_C, weights=to_image_C5[:, 0], minlength=num_images) * num_images / num_captions
    own, near = split.offsets[:-1], near_misses(split)
    rows = np.arange(num_images)
    right_I = (logits_IC[rows, own][:, None] > logits_IC[rows[:, None], near]).all(1).numpy()
    return {
        "image_to_text": float(to_text_I5[:, 0].mean()), "text_to_image": float(to_image_C5[:, 0].mean()),
        "R@5": float((to_text_I5.any(1).mean() + to_image_C5.any(1).mean()) / 2), "near_miss": float(right_I.mean()),
        "by_image": (to_text_I5[:, 0] + part_I) / 2,
    }  # fmt: skip


def near_misses(split: Split) -> np.ndarray:
    """Captions most like each image's first one and not true of it, (I, NEAR_MISSES)."""
    unit_CT = torch.nn.functional.normalize(torch.from_numpy(split.texts_CT - split.texts_CT.mean(0)), dim=1)
    own = split.offsets[:-1]
    place = (unit_CT[own] @ unit_CT.T).topk(min(64, len(unit_CT)), dim=1).indices.numpy()
    true = split.is_true(np.arange(len(own)), place)
    return np.take_along_axis(place, np.argsort(true, axis=1, kind="stable")[:, :NEAR_MISSES], 1)


def cost(trained: Trained) -> float:
    """A run's price in SigLIP base's towers: three passes of what is trained on, one of what is searched."""
    return 3 * (IMAGE_COST * trained.trained_images + TEXT_COST * trained.trained_texts) + trained.searched


def run(work: str, source: str, bed: str, name: str, seed: int, part: str, rate: float | None) -> dict[str, Any]:
    """One run, measured on `part`."""
    torch.set_num_threads(1)
    plan = BEDS[bed]
    splits = plan.read(Path(work) / f"{bed}.npz", Path(source))
    began = time.process_time()
    trained = train_heads(
        splits["train"], (SYSTEMS | LENGTHS)[name], seed=seed, steps=plan.steps, batch_size=plan.batch_size, rate=rate or plan.learning_rate
    )
    found = {"bed": bed, "system": name, "seed": seed, "split": part, "rate": rate or plan.learning_rate}
    found |= {"seconds": time.process_time() - began, "cost": cost(trained), "mined": trained.mined}
    return found | measure(trained.heads, splits[part])


def file_of(bed: str, name: str, seed: int, part: str, rate: float | None) -> str:
    """The name of a run's file: with a hash of its system and of the bed's numbers, so that a run of others is never taken for it."""
    plan = BEDS[bed]
    numbers = [asdict((SYSTEMS | LENGTHS)[name]), plan.steps, plan.batch_size, rate or plan.learning_rate]
    digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:8]
    return f"{bed}-{name.replace(' ', '_')}-{seed}-{part}-{digest}.npz"


def run_all(args: argparse.Namespace, asked: Iterable[tuple[str, str, int, str, float | None]], folder: Path) -> list[dict[str, Any]]:
    """Those runs, kept in `folder` one by one, and taken from there where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    plans, waiting = list(asked), {}
    with ProcessPoolExecutor(args.at_once) as pool:
        for plan in plans:
            path = folder / file_of(*plan)
            if not path.exists():
                waiting[path] = pool.submit(run, str(args.work), args.beds[plan[0]], *plan)
        for number, (path, future) in enumerate(waiting.items()):
            found = future.result()
            by_image = found.pop("by_image")
            temporary = path.with_suffix(".tmp.npz")
            np.savez(temporary, by_image=by_image.astype(np.float32), record=json.dumps(found))
            os.replace(temporary, path)
            mean = 50 * (found["image_to_text"] + found["text_to_image"])
            print(f"{number + 1} of {len(waiting)}: {path.stem} {mean:.2f}", file=sys.stderr, flush=True)
    results = []
    for plan in plans:
        with np.load(folder / file_of(*plan)) as stored:
            results.append(json.loads(str(stored["record"])) | {"by_image": stored["by_image"]})
    return results


def mean_recall(results: Sequence[dict[str, Any]]) -> float:
    """Mean R@1 of both directions over runs."""
    return float(np.mean([(each["image_to_text"] + each["text_to_image"]) / 2 for each in results]))


def tune(args: argparse.Namespace) -> None:
    """Print plain's mean R@1 on val at each length and rate."""
    seeds = SCREEN_SEEDS[:2]
    asked = [(bed, name, seed, "val", rate) for bed in args.beds for name in LENGTHS for rate in RATES for seed in seeds]
    results = run_all(args, asked, args.work / "runs")
    for bed in args.beds:
        for name in LENGTHS:
            for rate in RATES:
                rows = [each for each in results if (each["bed"], each["system"], each["rate"]) == (bed, name, rate)]
                print(f"{bed:12} {name:9} {rate:g}  {100 * mean_recall(rows):.2f}")


def screen(args: argparse.Namespace) -> None:
    """Every system with few seeds on val; writes screening.json."""
    asked = [(bed, name, seed, "val", None) for bed in args.beds for name in BEDS[bed].systems() for seed in SCREEN_SEEDS]
    results = run_all(args, asked, args.work / "runs")
    found: dict[str, Any] = {}
    always = (PLAIN, *CONTROLS, *PRESETS, TWO)
    for bed in args.beds:
        own = [each for each in results if each["bed"] == bed]
        means = {name: mean_recall([each for each in own if each["system"] == name]) for name in BEDS[bed].systems()}
        others = sorted((name for name in means if name not in always), key=lambda name: -means[name])
        found[bed] = {"mean_R@1": means, "go on": [*(name for name in always if name in means), *others[:SURVIVORS]]}
    args.output.mkdir(parents=True, exist_ok=True)
    replace_files({args.output / "screening.json": json.dumps(found, indent=1) + "\n"})


def study(args: argparse.Namespace) -> None:
    """The systems that went on, with fresh seeds, on test; the protocol first."""
    screened = json.loads((args.output / "screening.json").read_text(encoding="utf-8"))
    protocol = {
        "command": "python -m benchmarks.heads study BED=FOLDER ...", "seeds": list(SEEDS), "screening seeds": list(SCREEN_SEEDS),
        "measured": "mean R@1 of both directions on test, the last weights of each run", "near misses": NEAR_MISSES,
        "cost": f"a picture {IMAGE_COST:g}, a caption {TEXT_COST:g}; training three passes, a search one",
        "beds": {
            bed: {
                "steps": BEDS[bed].steps, "batch_size": BEDS[bed].batch_size, "learning_rate": BEDS[bed].learning_rate,
                "systems": {name: asdict(SYSTEMS[name]) for name in screened[bed]["go on"]},
            }
            for bed in args.beds
        },
    }  # fmt: skip
    path = args.output / "protocol.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != protocol:
        raise SystemExit(f"{path} is another protocol, and a protocol is written before the figures: give this one an --output of its own")
    replace_files({path: json.dumps(protocol, indent=1) + "\n"})
    asked = [(bed, name, seed, "test", None) for bed in args.beds for seed in SEEDS for name in screened[bed]["go on"]]
    results = run_all(args, asked, args.work / "runs")
    write_page(args.output, results)


def main() -> None:
    """Parse arguments, and do what is asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tune", "screen", "study", "page"])
    parser.add_argument("beds", nargs="*", metavar="BED=FOLDER")
    parser.add_argument("--work", type=Path, default=Path("runs/heads"), help="features and finished runs")
    parser.add_argument("--output", type=Path, default=Path("results/study/heads"))
    parser.add_argument("--at-once", type=int, default=1)
    args = parser.parse_args()
    args.beds = dict(each.split("=", 1) for each in args.beds if "=" in each)
    if args.what != "page" and (not args.beds or not args.beds.keys() <= BEDS.keys()):
        parser.error(f"expected BED=FOLDER with beds of {', '.join(BEDS)}; found {list(args.beds)}")
    if args.what == "page":
        write_page(args.output, None)
    else:
        {"tune": tune, "screen": screen, "study": study}[args.what](args)


if __name__ == "__main__":
    main()
