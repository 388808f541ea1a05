"""Make the demo's choice set: demo/data/choices.parquet.

python -m demo.make_choices                    writes demo/data/choices.parquet
python -m demo.make_choices --output FILE      the same examples again, anywhere

150 drawings with a true caption among near misses, and 40 pairs of drawings one step apart; the category is the kind of step. True and
false captions are worded alike, and all scenes are of the job's world and of no split: nothing but the picture tells them apart.
"""

import argparse
import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from demo.drawing import draw
from demo.make_data import DATA
from demo.manifest import build_manifest
from demo.phrases import caption
from demo.scenes import STEPS, Scene, neighbours, random_scene, step_between
from demo.truth import full_claims, is_true

SEED = 21
CHOICES_PER_STEP, PAIRS_PER_STEP = 30, 8
MAX_FALSE = 3


def build_choices(known: set[str]) -> list[dict[str, Any]]:
    """Every row, the same at each call.

    Args:
        known: keys of scenes that must not be used, neither shown nor told.
    """
    rng, taken = random.Random(SEED), set(known)
    rows = []
    for step in STEPS:
        examples = _examples(step, rng, taken)
        rows += [_choice(f"choice-{step}-{n:02d}", *example) for n, example in enumerate(itertools.islice(examples, CHOICES_PER_STEP))]
        rows += [_pair(f"pair-{step}-{n:02d}", *example) for n, example in enumerate(itertools.islice(examples, PAIRS_PER_STEP))]
    return rows


def _examples(step: str, rng: random.Random, taken: set[str]) -> Iterator[tuple[str, Scene, list[Scene], random.Random]]:
    """(step, scene, near misses, randomness of its own) without end; no scene comes twice."""
    while True:
        scene = random_scene(rng, "job")
        misses = [
            other
            for other in neighbours(scene)
            if other.world == "job"
            and step_between(scene, other) == step
            and other.key not in taken
            and not is_true(full_claims(other), scene)
        ]
        if scene.key not in taken and misses:
            misses = rng.sample(misses, min(MAX_FALSE, len(misses)))
            taken |= {scene.key, *(other.key for other in misses)}
            yield step, scene, misses, random.Random(rng.random())


def _choice(name: str, step: str, scene: Scene, misses: list[Scene], rng: random.Random) -> dict[str, Any]:
    image = _embedded(name, draw(scene, rng, "busy"))
    true, *false = _said([scene, *misses], rng)
    return {"id": name, "category": step, "image": image, "caption": true, "false_captions": false}


def _pair(name: str, step: str, scene: Scene, misses: list[Scene], rng: random.Random) -> dict[str, Any]:
    both = [scene, misses[0]]
    images = [_embedded(f"{name}-{place}", draw(shown, rng, "busy")) for place, shown in enumerate(both)]
    return {"id": name, "category": step, "images": images, "captions": _said(both, rng)}


def _said(scenes: list[Scene], rng: random.Random) -> list[str]:
    """A complete caption of each scene, all from the same dice: in like words, and alike built where the layout is the same."""
    dice = rng.random()
    return [caption(full_claims(scene), random.Random(dice), "new") for scene in scenes]


def _embedded(name: str, image: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": f"{name}.png"}


def write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the rows; columns of the other kind are null."""
    text, image = pyarrow.string(), pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kinds = {"id": text, "category": text, "image": image, "caption": text, "false_captions": pyarrow.list_(text)}
    kinds |= {"images": pyarrow.list_(image), "captions": pyarrow.list_(text)}
    table = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(list(kinds.items())))
    pyarrow.parquet.write_table(table, path, compression="zstd")


def main() -> None:
    """Read the command line, build the rows, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATA / "choices.parquet", help="file to write")
    output: Path = parser.parse_args().output
    rows = build_choices({row.scene.key for row in build_manifest()})
    write_parquet(rows, output)
    num_pairs = sum("images" in row for row in rows)
    print(f"{output}: {len(rows) - num_pairs} drawings with false captions, {num_pairs} pairs of drawings")


if __name__ == "__main__":
    main()
