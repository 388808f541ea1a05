"""Folders of cross-encoders with a damaged file: an error that names the model, never a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.errors import UserError
from rerank.scorers.load import load_scorer
from tests.unit.rerank.scorers.tiny_cross_encoders import FAMILIES, changed_copy


@pytest.fixture(scope="module")
def cross_encoders(tmp_path_factory: pytest.TempPathFactory, tiny_blip: Path) -> dict[str, Path]:
    """A small random cross-encoder of every kind of transformers."""
    base = tmp_path_factory.mktemp("whole")
    for kind, family in FAMILIES.items():
        family.write(base / kind)
    return {"blip": tiny_blip} | {kind: base / kind for kind in FAMILIES}


def edited(name: str, section: str | None, **values: object) -> Callable[[Path], None]:
    """A JSON file of a folder with values put in, of one of its sections if it has that."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content.get(section, content).update(values)
        (folder / name).write_text(json.dumps(content))

    return edit


@pytest.mark.parametrize("kind", ["blip", *FAMILIES])
@pytest.mark.parametrize(
    "damage",
    [
        edited("processor_config.json", "image_processor", image_mean=[0.5]),
        edited("processor_config.json", "image_processor", resample=99),
        edited("processor_config.json", "image_processor", size={"height": 0, "width": 0}),
        edited("config.json", "vision_config", patch_size=0),
        edited("config.json", "vision_config", image_size="large"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
    ],
    ids=["mean", "resample", "size", "patch", "image size", "tokenizer", "tokenizer config"],
)
def test_files_that_transformers_stumbles_over_are_an_error_that_names_the_model(
    cross_encoders: dict[str, Path], tmp_path: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    folder = changed_copy(cross_encoders[kind], tmp_path / "damaged")
    damage(folder)
    with pytest.raises(UserError, match=r"damaged'?(: \w+\.json)?( could not|: expected a shortest_edge)"):
        load_scorer(str(folder))
