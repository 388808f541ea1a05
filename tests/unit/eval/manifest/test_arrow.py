"""Folders that `datasets` saved and data sets of the hub, against the same rows in a .jsonl."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.dataset.images import ImageError
from eval.dataset.retrieval_set import load_split
from eval.errors import UserError
from eval.manifest.formats.hub import HubId
from eval.manifest.manifest import Manifest, ManifestError, read_manifest
from tests.unit.eval.manifest.written_formats import tar_of

COLOURS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    yield


def png(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), COLOURS[name]).save(file, "PNG")
    return file.getvalue()


def table(names: str, **columns: list[Any]) -> datasets.Dataset:
    """Rows with an Image feature, embedded under the inner path NAME.png."""
    record = {"image": [{"bytes": png(name), "path": f"{name}.png"} for name in names]} | columns
    text = datasets.Value("string")
    features = {name: datasets.List(text) if isinstance(values[0], list) else text for name, values in columns.items()}
    return datasets.Dataset.from_dict(record, features=datasets.Features({"image": datasets.Image()} | features))


def contents(manifest: Manifest) -> dict[tuple[str | None, str], list[str]]:
    return {(image.split, image.id): image.captions for image in manifest.images}


def colour(manifest: Manifest, split: str | None, number: int) -> Any:
    return load_split(manifest, split).load_image(number).getpixel((0, 0))


def test_a_saved_table(tmp_path: Path) -> None:
    saved = table("ab", captions=[["one", "two"], ["three"]], split=["test", "train"])
    saved.with_format("torch").save_to_disk(str(tmp_path / "saved"))
    manifest = read_manifest(tmp_path / "saved", require_splits=["train"])
    assert contents(manifest) == {("test", "a.png"): ["one", "two"], ("train", "b.png"): ["three"]}
    assert colour(manifest, "train", 0) == COLOURS["b"]


def test_a_saved_table_without_splits_that_was_shuffled_and_cut(tmp_path: Path) -> None:
    table("abc", caption=["A", "B", "C"]).select([2, 0]).save_to_disk(str(tmp_path / "saved"))
    manifest = read_manifest(tmp_path / "saved")
    assert contents(manifest) == {(None, "a.png"): ["A"], (None, "c.png"): ["C"]}
    assert [colour(manifest, None, number) for number in (0, 1)] == [COLOURS["a"], COLOURS["c"]]


def test_the_keys_of_a_saved_dict_are_splits(tmp_path: Path) -> None:
    """Rows are numbered within their split, and pictures are found across tables."""
    tables = {"train": table("ab", caption=["A", "B"]), "test": table("c", caption=["C"])}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    manifest = read_manifest(tmp_path / "saved", require_splits=["train", "test"])
    assert contents(manifest) == {("train", "a.png"): ["A"], ("train", "b.png"): ["B"], ("test", "c.png"): ["C"]}
    assert colour(manifest, "test", 0) == COLOURS["c"] and colour(manifest, "train", 1) == COLOURS["b"]
    assert [image.where for image in manifest.images] == [
        f"{tmp_path}/saved {place}" for place in ("train row 1", "train row 2", "test row 1")
    ]


def test_a_split_column_goes_before_the_keys(tmp_path: Path) -> None:
    """Flickr30k lies on the hub so: one key, `test`, and the splits of Karpathy in a column."""
    both = {"test": table("ab", caption=["A", "B"], part=["train", "val"])}
    datasets.DatasetDict(both).save_to_disk(str(tmp_path / "saved"))
    assert set(contents(read_manifest(tmp_path / "saved", columns={"split": "part"}))) == {("train", "a.png"), ("val", "b.png")}
    with pytest.raises(ManifestError, match="maps split to 'nowhere', which is not there"):
        read_manifest(tmp_path / "saved", columns={"split": "nowhere"})


def test_other_names_and_classes(tmp_path: Path) -> None:
    features = {"kind": datasets.ClassLabel(names=["cat", "dog"])}
    record = {"picture": [{"bytes": png(n), "path": None} for n in "abc"], "kind": [1, 0, None], "text": ["A", "B", "C"]}
    whole = datasets.Features({"picture": datasets.Image(), "text": datasets.Value("string")} | features)
    datasets.Dataset.from_dict(record, features=whole).save_to_disk(str(tmp_path / "saved"))
    manifest = read_manifest(tmp_path / "saved", columns={"image": "picture", "caption": "text", "group": "kind"})
    assert [(image.id, image.group) for image in manifest.images] == [("row-0000001", "dog"), ("row-0000002", "cat"), ("row-0000003", None)]


def test_paths_of_a_saved_table_are_relative_to_it_or_to_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(png("a"))
    datasets.Dataset.from_dict({"image": ["a.png"], "caption": ["A"]}).save_to_disk(str(tmp_path / "saved"))
    assert contents(read_manifest(tmp_path / "saved", image_root=tmp_path / "pictures")) == {(None, "a.png"): ["A"]}
    with pytest.raises(ManifestError, match="saved row 1: .*saved/a.png' does not exist"):
        read_manifest(tmp_path / "saved")


def test_faults_name_split_and_row(tmp_path: Path) -> None:
    good, bad = table("a", captions=[["A"]]), table("bc", captions=[["B"], ["..."]])
    datasets.DatasetDict({"train": good, "val": bad}).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ManifestError, match=r"1 fault\(s\): 1 x empty caption\n  .*/saved val row 2: nothing is left of '...'"):
        read_manifest(tmp_path / "saved")


def test_many_rows_are_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.manifest.formats.arrow._ROWS_AT_ONCE", 4)
    names, numbers = "abc" * 5, range(15)
    tables = {
        split: table(names, id=[f"{split}-{n:02d}" for n in numbers], caption=[f"{split} {n}" for n in numbers]) for split in ("x", "y")
    }
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    manifest = read_manifest(tmp_path / "saved")
    assert contents(manifest) == {(split, f"{split}-{n:02d}"): [f"{split} {n}"] for split in ("x", "y") for n in numbers}
    assert [colour(manifest, "y", n) for n in numbers] == [COLOURS[name] for name in names]


def test_a_damaged_saved_folder(tmp_path: Path) -> None:
    table("a", caption=["A"]).save_to_disk(str(tmp_path / "saved"))
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(UserError, match=r"saved: cannot be read as a folder of datasets.save_to_disk"):
        read_manifest(tmp_path / "saved")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nlphuji/flickr30k", ("nlphuji/flickr30k", None)),
        ("owner/name-1.0_x:TEST", ("owner/name-1.0_x", "TEST")),
        ("data/manifest.jsonl", None),
        ("data/MANIFEST.CSV", None),
        ("name", None),
        ("../owner/name", None),
        ("./name", None),
        ("/owner/name", None),
        ("a/b/c", None),
        ("owner/na me", None),
        ("owner/name:", None),
    ],
)
def test_what_may_be_a_hub_id(source: str, expected: tuple[str, str | None] | None) -> None:
    found = HubId.parse(source)
    assert (found and (found.name, found.config)) == expected


class Hub:
    """Folders in place of the hub: `datasets` reads a local folder as it reads one that it fetched."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.asked = root, []  # type: tuple[Path, list[tuple[str, str | None]]]
        self._load = datasets.load_dataset
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def load(self, name: str, config: str | None = None, **options: Any) -> Any:
        assert options == {"trust_remote_code": False}
        self.asked.append((name, config))
        return self._load(str(self.root / name), config, cache_dir=str(self.root / "cache"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_a_data_set_of_parquet_on_the_hub(hub: Hub) -> None:
    folder = hub.root / "owner" / "pairs" / "data"
    folder.mkdir(parents=True)
    for name, rows in {"train-00000-of-00002": "a", "train-00001-of-00002": "b", "test-00000-of-00001": "c"}.items():
        table(rows, caption=[f"{row} dog" for row in rows]).to_parquet(str(folder / f"{name}.parquet"))
    manifest = read_manifest("owner/pairs", require_splits=["train", "test"])
    assert contents(manifest) == {("train", "a.png"): ["a dog"], ("train", "b.png"): ["b dog"], ("test", "c.png"): ["c dog"]}
    assert colour(manifest, "train", 1) == COLOURS["b"]
    assert [image.where for image in manifest.images][1:] == ["owner/pairs train row 2", "owner/pairs test row 1"]
    assert hub.asked == [("owner/pairs", None)] and manifest.source == "owner/pairs"


def test_pictures_that_lie_on_the_hub_as_files_have_ids_without_the_place_of_the_cache(hub: Hub) -> None:
    for split, name in {"train": "a", "test": "b"}.items():
        folder = hub.root / "owner" / "files" / split
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / f"{name}.png").write_bytes(png(name))
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": f"sub/{name}.png", "text": f"a {name}"}) + "\n")
    manifest = read_manifest("owner/files", columns={"caption": "text"})
    assert contents(manifest) == {("train", "train/sub/a.png"): ["a a"], ("test", "test/sub/b.png"): ["a b"]}
    assert colour(manifest, "test", 0) == COLOURS["b"]


def test_webdataset_shards_on_the_hub(hub: Hub) -> None:
    for split, name in {"train": "a", "validation": "b"}.items():
        (hub.root / "owner" / "shards").mkdir(parents=True, exist_ok=True)
        tar_of(hub.root / "owner" / "shards" / f"cc-{split}-0000.tar", [(f"{name}.png", png(name)), (f"{name}.txt", f"of {name}".encode())])
    manifest = read_manifest("owner/shards", require_splits=["train"])
    assert contents(manifest) == {("train", "a"): ["of a"], ("validation", "b"): ["of b"]}
    assert colour(manifest, "validation", 0) == COLOURS["b"]


def test_a_configuration_is_chosen_and_a_missing_choice_is_named(hub: Hub) -> None:
    folder = hub.root / "owner" / "two"
    for name in ("one", "other"):
        (folder / name).mkdir(parents=True)
        pq.write_table(pa.table({"image": [{"bytes": png("a"), "path": "a.png"}], "caption": [name]}), folder / name / "train.parquet")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("one", "other"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert contents(read_manifest("owner/two:other")) == {("train", "a.png"): ["other"]}
    with pytest.raises(UserError, match=r"owner/two: the data set on the hub cannot be read .*(?s:.)*'one', 'other'"):
        read_manifest("owner/two")


def test_code_of_a_data_set_is_never_run(hub: Hub) -> None:
    folder = hub.root / "owner" / "coded"
    folder.mkdir(parents=True)
    (folder / "coded.py").write_text("open('ran', 'w')\nraise SystemExit\n")
    with pytest.raises(UserError, match="owner/coded: the data set on the hub cannot be read"):
        read_manifest("owner/coded")
    assert not Path("ran").exists()


def test_offline_and_never_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.manifest.formats.hub._ask_the_hub", lambda _: pytest.fail("offline, nobody is asked"))
    with pytest.raises(UserError, match="nobody/nothing: no such file or folder .*as a hub id: HF_HUB_OFFLINE is set and no copy"):
        read_manifest("nobody/nothing")


def test_without_a_network_one_question_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` itself would try six times, for half a minute."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # but the hub's own library still refuses to go out
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: pytest.fail("the hub cannot be reached"))
    with pytest.raises(UserError, match="nobody/nothing: no such file or folder .*the hub cannot be asked .*HF_HUB_OFFLINE=1 a copy"):
        read_manifest("nobody/nothing")


def test_a_folder_of_that_name_goes_before_the_hub(hub: Hub, tmp_path: Path) -> None:
    table("a", caption=["A"]).save_to_disk(str(tmp_path / "owner" / "name"))
    assert contents(read_manifest("owner/name")) == {(None, "a.png"): ["A"]}
    shutil.rmtree(tmp_path / "owner")
    with pytest.raises(UserError):
        read_manifest("owner/name")
    assert hub.asked == [("owner/name", None)]


def test_a_file_of_no_rows_among_others_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    table = pa.table({"image": ["a.jpg"], "caption": ["x"]})
    pq.write_table(table, tmp_path / "train-0.parquet")
    pq.write_table(table[:0], tmp_path / "train-1.parquet")
    assert [image.id for image in read_manifest(tmp_path).images] == ["a.jpg"]
    with pytest.raises(ManifestError, match="has no rows"):
        read_manifest(tmp_path / "train-1.parquet")


def test_an_embedded_picture_of_no_bytes_is_no_file_of_its_name(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": "a.png"} for data in (b"", (tmp_path / "a.png").read_bytes())]
    pq.write_table(pa.table({"image": pa.array(rows, kind), "caption": ["x", "y"]}), tmp_path / "m.parquet")
    dataset = load_split(read_manifest(tmp_path / "m.parquet"), None)
    assert list(dataset.image_ids) == ["row-0000001", "row-0000002"] and dataset.load_image(1).size == (4, 4)
    with pytest.raises(ImageError, match="0 embedded bytes"):
        dataset.load_image(0)
