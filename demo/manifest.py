"""The manifest: which scenes each split holds, how often each is drawn, and its captions."""

import io
import json
import random
import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from demo.drawing import draw
from demo.phrases import caption, partial_claims
from demo.scenes import Scene, random_family
from demo.truth import Claims, full_claims, is_true

SEED = 20
NUM_SCENES = {"test": 300, "val": 200, "train": 1000}
# Near-duplicates come in families; those of val and test are larger, which makes retrieval hard.
FAMILY_SIZES = {"test": 5, "val": 5, "train": 3}
CAPTIONS_PER_IMAGE = (3, 4, 5)
DRAWINGS_OF_TRAIN_SCENE, DRAWING_WEIGHTS = (1, 2, 3, 4), (3, 4, 2, 1)
PARTIAL_SHARE = 0.35
PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


@dataclass(frozen=True)
class Row:
    """One drawing with its captions, and what each of them claims."""

    id: str
    split: str
    scene: Scene
    image: Image.Image
    captions: tuple[str, ...]
    claims: tuple[Claims, ...]


def normalised(text: str) -> str:
    """A caption as texts are compared: NFKC, lower case, punctuation stripped, blanks collapsed."""
    return " ".join(PUNCTUATION.sub("", unicodedata.normalize("NFKC", text).lower()).split())


def build_manifest(num_scenes: Mapping[str, int] = NUM_SCENES, *, seed: int = SEED) -> list[Row]:
    """Build every row of every split, the same at each call.

    Args:
        num_scenes: of each split; train draws some of its scenes several times.
        seed: another draws other scenes, in other words, which may be among those of the demo's.
    """
    taken: set[str] = set()
    scenes = {split: _scenes(split, num_scenes[split], random.Random(f"{seed} scenes {split}"), taken) for split in NUM_SCENES}
    # The fewest captions can be said of val and test, so they choose first: train must find other words.
    foreign: set[str] = set()
    rows: dict[str, list[Row]] = {}
    for split in NUM_SCENES:
        rows[split] = _rows(split, scenes[split], random.Random(f"{seed} rows {split}"), foreign)
        foreign |= {normalised(text) for row in rows[split] for text in row.captions}
    return rows["train"] + rows["val"] + rows["test"]


def write_parquet(manifest: list[Row], path: Path) -> None:
    """Write the rows with PNG bytes embedded, typed as ``datasets`` types images."""
    string_type = pyarrow.string()
    image_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", string_type)])
    text = {"dtype": "string", "_type": "Value"}
    features = {"id": text, "image": {"_type": "Image"}, "captions": {"feature": text, "_type": "List"}, "split": text, "scene": text}
    types = {"id": string_type, "image": image_type, "captions": pyarrow.list_(string_type), "split": string_type, "scene": string_type}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = {
        "id": [row.id for row in manifest],
        "image": [{"bytes": _png(row.image), "path": f"{row.id}.png"} for row in manifest],
        "captions": [list(row.captions) for row in manifest],
        "split": [row.split for row in manifest],
        "scene": [row.scene.key for row in manifest],
    }
    table = pyarrow.table(columns, schema=pyarrow.schema(list(types.items()), metadata=metadata))
    pyarrow.parquet.write_table(table, path, compression="zstd")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _scenes(split: str, num_scenes: int, rng: random.Random, taken: set[str]) -> list[Scene]:
    """Choose scenes in families, no key twice in any split; outside train no scene may hold all that is said of another."""
    chosen: list[Scene] = []
    while len(chosen) < num_scenes:
        for scene in random_family(rng, "job", FAMILY_SIZES[split])[: num_scenes - len(chosen)]:
            if scene.key not in taken and (split == "train" or not any(_one_holds_other(scene, other) for other in chosen)):
                taken.add(scene.key)
                chosen.append(scene)
    return chosen


def _one_holds_other(first: Scene, second: Scene) -> bool:
    return is_true(full_claims(first), second) or is_true(full_claims(second), first)


def _rows(split: str, scenes: list[Scene], rng: random.Random, foreign: set[str]) -> list[Row]:
    drawings = scenes
    if split == "train":
        drawings = [scene for scene in scenes for _ in range(rng.choices(DRAWINGS_OF_TRAIN_SCENE, DRAWING_WEIGHTS)[0])]
        rng.shuffle(drawings)
    rows = []
    for number, scene in enumerate(drawings):
        said = _captions(scene, rng, foreign, PARTIAL_SHARE if split == "train" else 0.0)
        rows.append(Row(f"{split}-{number:04d}", split, scene, draw(scene, rng, "busy"), tuple(said), tuple(said.values())))
    return rows


def _captions(scene: Scene, rng: random.Random, foreign: set[str], partial_share: float) -> dict[str, Claims]:
    """Say different things of one drawing, the first of them complete, none in words that another split uses."""
    said: dict[str, Claims] = {}
    num_captions = rng.choice(CAPTIONS_PER_IMAGE)
    while len(said) < num_captions:
        claims = partial_claims(scene, rng) if said and rng.random() < partial_share else full_claims(scene)
        text = caption(claims, rng, "new")
        if normalised(text) not in foreign and normalised(text) not in map(normalised, said):
            said[text] = claims
    return said
