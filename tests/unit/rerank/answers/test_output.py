"""Table and page are replaced together or not at all."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from eval.errors import WriteError
from rerank.answers.answers import Answers
from rerank.answers.captions import read_captions
from rerank.answers.collection import Collection
from rerank.answers.files import SUFFIXES
from rerank.answers.first_stage import FirstAnswers
from rerank.answers.output import write_output
from rerank.answers.pictures import read_folder

MADE_BY = {"model": "m", "rerank": None}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, noise) -> FirstAnswers:
    root = tmp_path_factory.mktemp("photos")
    noise(0).save(root / "a.png")
    (root / "c.txt").write_text("\n".join(f"caption number {number}" for number in range(400)))
    return FirstAnswers(Collection(read_folder(str(root)), read_captions(str(root / "c.txt"))), {}, 100.0, -10.0, [], 0, 0)


def answers_in(order: np.ndarray) -> list[Answers]:
    cosines, ranks = np.linspace(1, -1, 400, dtype=np.float32)[None], np.arange(1, 401, dtype=np.int32)[None]
    return [Answers("image_to_text", order[None], cosines, ranks, None)]


@contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: writing more fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("num_bytes", [3000, 100])
def test_where_there_is_no_room_the_old_files_stay_whole(found: FirstAnswers, tmp_path: Path, suffix: str, num_bytes: int) -> None:
    output = tmp_path / f"a{suffix}"
    write_output(output, found, answers_in(np.arange(400)), MADE_BY, 5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {f"a{suffix}", "a.html"} and min(map(len, before.values())) > 3000
    with room_for(num_bytes), pytest.raises(WriteError, match="could not write .*Make room there"):
        write_output(output, found, answers_in(np.arange(400)[::-1].copy()), MADE_BY, 5)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    write_output(output, found, answers_in(np.arange(400)[::-1].copy()), MADE_BY, 5)
    assert all(path.read_bytes() != before[path.name] for path in tmp_path.iterdir())
