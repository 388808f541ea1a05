"""data.skip_broken: what a job reads, and a run that is gone on with after the key was given."""

from pathlib import Path
from typing import Any

import pytest

from eval.errors import UserError
from tests.small_job import SmallWorld, write_pictures
from train.config.job import JobConfig
from train.data.data_record import check_data, record_data
from train.data.splits import Splits, load_data


def test_a_job_leaves_broken_pictures_of_every_set_it_measures_out(small_world: SmallWorld, tmp_path: Path) -> None:
    manifest = write_pictures(tmp_path / "data")
    watched = write_pictures(tmp_path / "watched", {"other": 6})
    names = ["data/pictures/train-003.png", "data/pictures/val-003.png", "data/pictures/test-004.png", "watched/pictures/other-001.png"]

    def read(**changes: Any) -> Splits:
        watch = [{"name": "other", "source": str(watched), "split": "other"}]
        return load_data(JobConfig.model_validate(small_world.record(tmp_path, data__source=str(manifest), watch=watch, **changes)))

    record_data(tmp_path / "data.parquet", read())  # as it was when the run began
    whole = {path: (tmp_path / path).read_bytes() for path in names}
    for path, data in whole.items():
        (tmp_path / path).write_bytes(b"none" + data[4:])
    splits = read(data__skip_broken=True)
    assert [split.num_images for split in splits.all()] == [40, 13, 13, 5], "of train none is left out: it is replaced"
    assert [(one.split, Path(one.image).name) for one in splits.skipped] == [
        ("val", "val-003.png"),
        ("test", "test-004.png"),
        ("other", "other-001.png"),
    ]
    (tmp_path / names[0]).write_bytes(whole[names[0]])
    check_data(tmp_path / "data.parquet", read(data__skip_broken=True), "the data")  # what is left out is no change
    for path, data in whole.items():
        (tmp_path / path).write_bytes(data)
    check_data(tmp_path / "data.parquet", read(), "the data")  # nor is what was mended
    for path in names[1:]:
        (tmp_path / path).write_bytes(b"none")
    with pytest.raises(UserError, match="picture\\(s\\) of val have other bytes"):
        check_data(tmp_path / "data.parquet", read(), "the data")
