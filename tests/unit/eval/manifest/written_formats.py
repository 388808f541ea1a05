"""Every format that is read: how it is recognised, and the same three pictures written by the tool that people write it with.

The table of docs/data.md is `table()`.
"""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

COLOURS = {"a": (255, 0, 0), "b": (0, 255, 0), "c": (0, 0, 255)}
SPLITS = {"a": "train", "b": "train", "c": "test"}
CAPTIONS = {"a": ["a red square", 'red, "bright" and plain'], "b": ["green | grass; 100 %"], "c": ["ein blaues Café"]}
PAIRS = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


def picture(name: str) -> bytes:
    """A PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), COLOURS[name]).save(file, "PNG")
    return file.getvalue()


def pictures(folder: Path, suffix: str = "png", names: str = "abc") -> None:
    """NAME.png in a folder. (A suffix says nothing about what a file holds.)"""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.{suffix}").write_bytes(picture(name))


@dataclass(frozen=True)
class Written:
    """What a writer wrote.

    Attributes:
        source, image_root: as they are given; the root only where it has to be said.
        has_splits: whether the splits train and test come with it.
        has_lists: whether a picture can have two captions.
    """

    source: Path | str
    image_root: Path | None = None
    has_splits: bool = True
    has_lists: bool = True

    @property
    def expected(self) -> dict[tuple[str | None, tuple[int, int, int]], list[str]]:
        """(split, colour) -> captions."""
        return {
            (SPLITS[name] if self.has_splits else None, COLOURS[name]): captions if self.has_lists else captions[:1]
            for name, captions in CAPTIONS.items()
        }


@dataclass(frozen=True)
class Format:
    """One row of the table, and who writes it."""

    name: str
    recognised: str
    example: str
    splits: str
    writers: Sequence[Callable[[Path], Written]]


def dump(path: Path, value: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def frame(**more: Any) -> pd.DataFrame:
    """A row a caption."""
    columns = {"image": [f"{name}.png" for name, _ in PAIRS], "caption": [caption for _, caption in PAIRS]}
    return pd.DataFrame(columns | {"split": [SPLITS[name] for name, _ in PAIRS]} | more)


def jsonl_by_pandas(folder: Path) -> Written:
    pictures(folder)
    frame().to_json(folder / "pairs.jsonl", orient="records", lines=True)
    return Written(folder / "pairs.jsonl")


def jsonl_by_polars(folder: Path) -> Written:
    polars = pytest.importorskip("polars")
    pictures(folder)
    rows = {"image": [f"{name}.png" for name in CAPTIONS], "captions": list(CAPTIONS.values()), "split": list(SPLITS.values())}
    polars.DataFrame(rows).write_ndjson(folder / "pairs.jsonl")
    return Written(folder / "pairs.jsonl")


def jsonl_by_datasets(folder: Path) -> Written:
    """`to_json` writes one object a line, whatever the file is called."""
    pictures(folder)
    datasets.Dataset.from_pandas(frame()).to_json(str(folder / "pairs.json"))
    return Written(folder / "pairs.json")


def csv_by(separator: str, encoding: str, end: str, name: str = "pairs.csv", first: str = "") -> Callable[[Path], Written]:
    """A table written by pandas with a spreadsheet's separators, encodings and line ends."""

    def write(folder: Path) -> Written:
        pictures(folder)
        text = first + frame().to_csv(index=False, sep=separator, lineterminator=end)
        (folder / name).write_bytes(text.encode(encoding))
        return Written(folder / name)

    write.__name__ = f"{name}-{separator!r}-{encoding}-{end!r}-{first!r}"
    return write


def csv_by_polars(folder: Path) -> Written:
    polars = pytest.importorskip("polars")
    pictures(folder)
    polars.DataFrame(frame().to_dict("list")).write_csv(folder / "pairs.csv", separator=";", include_bom=True)
    return Written(folder / "pairs.csv")


def csv_of_open_clip(folder: Path) -> Written:
    """`--csv-img-key filepath --csv-caption-key title`, separated by tabs: open_clip's defaults."""
    pictures(folder)
    names = {"image": "filepath", "caption": "title"}
    frame().rename(columns=names).to_csv(folder / "pairs.csv", index=False, sep="\t")
    return Written(folder / "pairs.csv")


def parquet_by_pandas(folder: Path) -> Written:
    pictures(folder)
    frame().to_parquet(folder / "pairs.parquet")
    return Written(folder / "pairs.parquet")


def embedded(names: str) -> datasets.Dataset:
    """Embedded pictures with a list of captions each."""
    rows = {"image": [{"bytes": picture(name), "path": f"{name}.png"} for name in names], "captions": [CAPTIONS[name] for name in names]}
    features = {"image": datasets.Image(), "captions": datasets.List(datasets.Value("string"))}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def hub_layout(*parts: str) -> Callable[[Path], Written]:
    """Parquet by split, as `push_to_hub` names it."""

    def write(folder: Path) -> Written:
        place = folder.joinpath(*parts)
        place.mkdir(parents=True, exist_ok=True)
        for number, (split, name) in enumerate((("train", "a"), ("train", "b"), ("test", "c"))):
            embedded(name).to_parquet(str(place / f"{split}-0000{number}-of-00003.parquet"))
        return Written(folder)

    write.__name__ = "/".join(("parquet", *parts))
    return write


def saved_dict(folder: Path) -> Written:
    datasets.DatasetDict({"train": embedded("ab"), "test": embedded("c")}).save_to_disk(str(folder / "saved"))
    return Written(folder / "saved")


def image_folder(folder: Path) -> Written:
    for name, split in SPLITS.items():
        pictures(folder / split, names=name)
        (folder / split / f"{name}.txt").write_text("\n".join(CAPTIONS[name]), encoding="utf-8")
    return Written(folder)


def image_folder_with_metadata(folder: Path) -> Written:
    for split, names in (("train", "ab"), ("test", "c")):
        pictures(folder / split, names=names)
        rows = [{"file_name": f"{name}.png", "text": caption} for name, caption in PAIRS if name in names]
        pd.DataFrame(rows).to_csv(folder / split / "metadata.csv", index=False)
    return Written(folder)


def texts_by_split(folder: Path) -> Written:
    pictures(folder / "pictures")
    for split in ("train", "test"):
        part = frame().query("split == @split").drop(columns="split")
        part.assign(image="pictures/" + part["image"]).to_csv(folder / f"{split}.csv", index=False)
    return Written(folder)


def list_by_pandas(folder: Path) -> Written:
    pictures(folder)
    frame().to_json(folder / "pairs.json", orient="records", indent=1)
    return Written(folder / "pairs.json")


def blip_lists(folder: Path) -> Written:
    """A caption a row to train on, a list of captions a picture to test on, as BLIP and LAVIS have them."""
    pictures(folder / "val2014")
    train = [{"caption": text, "image": f"val2014/{name}.png", "image_id": f"coco_{name}"} for name, text in PAIRS if name != "c"]
    dump(folder / "coco_karpathy_train.json", train)
    dump(folder / "coco_karpathy_test.json", [{"image": "val2014/c.png", "caption": CAPTIONS["c"]}])
    return Written(folder / "coco_karpathy_*.json")


def coco(folder: Path) -> Written:
    """annotations/captions_NAME.json next to NAME/, other annotations beside them; pycocotools reads the same captions."""
    for year, names in (("train2017", "ab"), ("test2017", "c")):
        pictures(folder / year, names=names)
        images = [{"id": 100 + ord(name), "file_name": f"{name}.png", "width": 4, "height": 3, "license": 1} for name in names]
        captions = [(name, caption) for name, caption in PAIRS if name in names]
        annotations = [{"id": n, "image_id": 100 + ord(name), "caption": text} for n, (name, text) in enumerate(captions)]
        path = dump(folder / "annotations" / f"captions_{year}.json", {"info": {}, "images": images, "annotations": annotations})
        dump(folder / "annotations" / f"instances_{year}.json", {"images": images, "annotations": [{"id": 1, "image_id": 1, "bbox": []}]})
        assert read_by_pycocotools(path) in ([caption for _, caption in captions], None)
    return Written(folder)


def coco_annotations(folder: Path) -> Written:
    return Written(Path(coco(folder).source) / "annotations")


def read_by_pycocotools(path: Path) -> list[str] | None:
    """The captions as its COCO class has them; None where it is not installed."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        return None
    read = COCO(str(path))
    return [annotation["caption"] for annotation in read.loadAnns(read.getAnnIds())]


def karpathy(folder: Path) -> Written:
    images = []
    for name, split in (("a", "train"), ("b", "restval"), ("c", "test")):
        sentences = [{"raw": caption, "tokens": caption.split(), "imgid": 0, "sentid": 0} for caption in CAPTIONS[name]]
        image = {"filepath": "val2014", "filename": f"{name}.jpg", "imgid": 0, "sentids": [0]}
        images.append(image | {"split": split, "sentences": sentences})
    pictures(folder / "val2014", "jpg")
    return Written(dump(folder / "dataset_coco.json", {"images": images, "dataset": "coco"}))


def karpathy_of_flickr(folder: Path) -> Written:
    images = [{"filename": f"{n}.jpg", "split": s, "sentences": [{"raw": text} for text in CAPTIONS[n]]} for n, s in SPLITS.items()]
    pictures(folder / "pictures", "jpg")
    return Written(dump(folder / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"}), folder / "pictures")


def flickr30k(folder: Path) -> Written:
    """The header and separators of results.csv, and the line without a second | that is in it."""
    pictures(folder, "jpg")
    rows = [f"{name}.jpg| {CAPTIONS[name].index(caption)}| {caption}" for name, caption in PAIRS]
    rows[1] = rows[1].replace("| 1| ", "| 1   ")
    (folder / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows, ""]), encoding="utf-8")
    return Written(folder / "results.csv", has_splits=False)


def flickr8k(folder: Path) -> Written:
    pictures(folder / "Flicker8k_Dataset", "jpg")
    rows = [f"{name}.jpg#{CAPTIONS[name].index(caption)}\t{caption}\n" for name, caption in PAIRS]
    (folder / "Flickr8k.token.txt").write_text("".join(rows), encoding="utf-8")
    (folder / "Flickr_8k.trainImages.txt").write_text("a.jpg\nb.jpg\n")
    (folder / "Flickr_8k.devImages.txt").write_text("")
    (folder / "Flickr_8k.testImages.txt").write_text("c.jpg\n")
    return Written(folder / "Flickr8k.token.txt", folder / "Flicker8k_Dataset")


def kaggle(folder: Path) -> Written:
    pictures(folder / "Images")
    frame().drop(columns="split").to_csv(folder / "captions.txt", index=False)
    return Written(folder / "captions.txt", folder / "Images", has_splits=False)


def downloaded_cc3m(folder: Path) -> Written:
    pictures(folder / "training")
    rows = [f"{caption}\ttraining/{name}.png\n" for name, caption in PAIRS]
    (folder / "Train_GCC-training.tsv").write_text("".join(rows), encoding="utf-8")
    return Written(folder / "Train_GCC-training.tsv", has_splits=False)


def tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar as `tar cf` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shards_by_tar(folder: Path) -> Written:
    """The captions in KEY.json; a name is in both shards."""
    for split, names in (("train", "ab"), ("test", "c")):
        members = [
            member
            for number, name in enumerate(names)
            for member in ((f"./{number}.PNG", picture(name)), (f"./{number}.json", json.dumps({"captions": CAPTIONS[name]}).encode()))
        ]
        tar_of(folder / f"{split}-000000.tar", members)
    return Written(folder)


def shards_by_webdataset(folder: Path) -> Written:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(folder / "shard-%06d.tar"), maxcount=2, verbose=0) as writer:
        for name in CAPTIONS:
            writer.write({"__key__": f"sub/{name}", "png": Image.new("RGB", (4, 3), COLOURS[name]), "json": {"captions": CAPTIONS[name]}})
    return Written(str(folder / "shard-{000000..000001}.tar"), has_splits=False)


def texts_in_shards_by_webdataset(folder: Path) -> Written:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(folder / "pairs.tar")) as writer:
        for name, captions in CAPTIONS.items():
            writer.write({"__key__": name, "png": picture(name), "txt": captions[0], "cls": 1})
    return Written(folder / "pairs.tar", has_splits=False, has_lists=False)


_SCHEMA = {name: pa.string() for name in ("caption", "url", "key", "status", "error_message", "sha256")} | {"width": pa.int32()}
DOWNLOADS = [*CAPTIONS, "failed"]


def download(name: str) -> dict[str, Any]:
    """What img2dataset notes of a download."""
    number = DOWNLOADS.index(name)
    is_there = name in CAPTIONS
    return {
        "caption": CAPTIONS[name][0] if is_there else "never seen",
        "url": f"https://example.com/{name}",
        "key": f"{number // 2:05d}{number % 2:04d}",
        "status": "success" if is_there else "failed_to_download",
        "error_message": None if is_there else "HTTP Error 404: Not Found",
        "width": 4 if is_there else None,
        "sha256": None,
    }


def shards_of_downloads(folder: Path, write: Callable[[Path, list[str]], None]) -> Written:
    """Two shards of two downloads each, the last of which failed, with img2dataset's record and statistics."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        names, shard = DOWNLOADS[2 * number : 2 * number + 2], folder / f"{number:05d}"
        table = pa.Table.from_pylist([download(name) for name in names], pa.schema(list(_SCHEMA.items())))
        pq.write_table(table, f"{shard}.parquet")
        dump(Path(f"{shard}_stats.json"), {"count": 2, "successes": 2 - number, "failed_to_download": number})
        write(shard, names)
    return Written(folder, has_splits=False, has_lists=False)


def img2dataset_files(folder: Path) -> Written:
    def write(shard: Path, names: list[str]) -> None:
        shard.mkdir()
        for name in set(names) & set(CAPTIONS):
            noted = download(name)
            (shard / f"{noted['key']}.png").write_bytes(picture(name))
            (shard / f"{noted['key']}.txt").write_text(noted["caption"], encoding="utf-8")
            dump(shard / f"{noted['key']}.json", noted)

    return shards_of_downloads(folder, write)


def img2dataset_shards(folder: Path) -> Written:
    def write(shard: Path, names: list[str]) -> None:
        members = []
        for noted, name in ((download(name), name) for name in names if name in CAPTIONS):
            parts = (("json", json.dumps(noted, indent=4).encode()), ("png", picture(name)), ("txt", noted["caption"].encode()))
            members += [(f"{noted['key']}.{suffix}", content) for suffix, content in parts]
        tar_of(Path(f"{shard}.tar"), members)

    return shards_of_downloads(folder, write)


def img2dataset_parquet(folder: Path) -> Written:
    def write(shard: Path, names: list[str]) -> None:
        rows = [download(name) | {"png": picture(name) if name in CAPTIONS else None} for name in names]
        pq.write_table(pa.Table.from_pylist(rows, pa.schema([*_SCHEMA.items(), ("png", pa.binary())])), f"{shard}.parquet")

    return shards_of_downloads(folder, write)


def judgements(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    """qrels/SPLIT.tsv of (query id, corpus id), by the name of the picture that each pair has."""
    (folder / "qrels").mkdir(parents=True)
    for split in ("train", "test"):
        lines = [f"{query}\t{item}\t1\n" for query, item in pairs if any(SPLITS.get(id_) == split for id_ in (query, item))]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))


def beir_of_pictures(folder: Path) -> Written:
    """Text queries, a corpus of embedded pictures."""
    texts = {f"q{number}": pair for number, pair in enumerate(PAIRS)}
    judgements(folder, [(query, name) for query, (name, _) in texts.items()])
    pd.DataFrame([{"_id": query, "text": text} for query, (_, text) in texts.items()]).to_json(
        folder / "queries.jsonl", orient="records", lines=True
    )
    rows = {"id": list(CAPTIONS), "image": [{"bytes": picture(name), "path": None} for name in CAPTIONS], "modality": ["image"] * 3}
    datasets.Dataset.from_dict(rows, features=None).to_parquet(str(folder / "corpus.parquet"))
    return Written(folder)


def beir_of_texts(folder: Path) -> Written:
    """Queries that are pictures, a corpus of texts."""
    pictures(folder / "pictures")
    texts = {f"d{number}": pair for number, pair in enumerate(PAIRS)}
    judgements(folder, [(name, document) for document, (name, _) in texts.items()])
    documents = [{"_id": document, "title": "", "text": text} for document, (_, text) in texts.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    queries = [{"_id": name, "image": f"pictures/{name}.png"} for name in CAPTIONS]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    return Written(folder)


FORMATS = [
    Format(
        "JSON lines",
        "`.jsonl`, `.ndjson`, or `.json` with one object a line",
        '`{"image": "a.jpg", "captions": ["a dog", "a puppy"], "split": "train"}`',
        "column `split`",
        [jsonl_by_pandas, jsonl_by_polars, jsonl_by_datasets],
    ),
    Format(
        "JSON list",
        "`.json` that is a list of objects; BLIP's and LAVIS' `coco_karpathy_*.json` are",
        '`[{"image": "val2014/a.jpg", "caption": "a dog"}, ...]`',
        "column `split`, or several files by name",
        [list_by_pandas, blip_lists],
    ),
    Format(
        "Spreadsheet text",
        "`.csv`, `.tsv`, `.txt`; separated by `,` `;` `\\|` or tabs, UTF-8 or UTF-16 with its mark, with or without a line `sep=;`",
        "`image;caption;split`, then `a.jpg;a dog;train`",
        "column `split`, or several files by name",
        [
            csv_by(",", "utf-8", "\n"),
            csv_by(";", "utf-8-sig", "\r\n"),
            csv_by("\t", "utf-16", "\r\n", "pairs.txt"),
            csv_by("|", "utf-8", "\r\n"),
            csv_by("\t", "utf-8", "\n", "pairs.tsv"),
            csv_by("^", "utf-8-sig", "\r\n", first="sep=^\r\n"),
            csv_by_polars,
            csv_of_open_clip,
            texts_by_split,
        ],
    ),
    Format(
        "Text without a header",
        "the same with two columns, one of them paths of pictures, as a downloaded CC3M has; also Kaggle's Flickr8k `captions.txt`",
        "`a dog`, tab, `training/a.jpg`",
        "several files by name",
        [downloaded_cc3m, kaggle],
    ),
    Format(
        "Parquet",
        "`.parquet`, or a folder or glob of them (also in `data/`), as on the hub; paths or an `Image` column",
        "`image: {bytes, path}`, `caption: string`",
        "column `split`, or several files by name: `train-00000-of-00002.parquet`",
        [parquet_by_pandas, hub_layout(), hub_layout("data")],
    ),
    Format(
        "`datasets` on disk",
        "a folder of `save_to_disk`; or a hub id `OWNER/NAME[:CONFIG][@REVISION]`",
        "as Parquet",
        "column `split`, or the keys of the `DatasetDict`",
        [saved_dict],
    ),
    Format(
        "Image folder",
        "pictures with a `.txt` next to each, or `metadata.jsonl`/`.csv` with `file_name`",
        "`train/a.jpg` and `train/a.txt`, one caption a line",
        "subfolders `train`, `val`, `validation`, `valid`, `dev`, `test`",
        [image_folder, image_folder_with_metadata],
    ),
    Format(
        "COCO captions",
        "`.json` with `images` and `annotations`; or COCO's folder, or its `annotations/`",
        '`{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a dog"}]}`',
        "several files by name: `captions_val2017.json`",
        [coco, coco_annotations],
    ),
    Format(
        "Karpathy's splits",
        "`.json` with `images` that have `sentences`: `dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`",
        '`{"images": [{"filepath": "val2014", "filename": "a.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}]}`',
        "key `split`; `restval` is `train`",
        [karpathy, karpathy_of_flickr],
    ),
    Format(
        "Flickr30k",
        r"`results.csv`, by its header `image_name\| comment_number\| comment`",
        r"`a.jpg\| 0\| a dog`",
        "none",
        [flickr30k],
    ),
    Format(
        "Flickr8k",
        "`Flickr8k.token.txt`, by its first line",
        "`a.jpg#0`, tab, `a dog`",
        "`Flickr_8k.trainImages.txt`, `devImages` (`dev`), `testImages` next to it; other pictures are of the split `unlisted`",
        [flickr8k],
    ),
    Format(
        "webdataset",
        "`.tar`, or a folder, a glob or `shard-{000000..000012}.tar` of them",
        "`KEY.jpg` and `KEY.json` with `captions` or `caption`; or `KEY.txt` (`.text`, `.caption`), a whole file one caption",
        "key `split`, or several files by name",
        [shards_by_tar, shards_by_webdataset, texts_in_shards_by_webdataset],
    ),
    Format(
        "img2dataset",
        "its output folder, of the formats `files`, `webdataset` and `parquet`",
        "`00000/000000000.jpg` with `.txt` and `.json`; `00000.tar`; `00000.parquet`",
        "none",
        [img2dataset_files, img2dataset_shards, img2dataset_parquet],
    ),
    Format(
        "BEIR, MTEB",
        "a folder with `corpus.jsonl` or `.parquet`, `queries.jsonl` or `.parquet`, and `qrels/`",
        "`qrels/test.tsv`: `query-id`, tab, `corpus-id`, tab, `score`",
        "`qrels/SPLIT.tsv`",
        [beir_of_pictures, beir_of_texts],
    ),
]


def table() -> str:
    """The formats as a table of docs/data.md."""
    rows = [[form.name, form.recognised, form.example, form.splits] for form in FORMATS]
    return "\n".join(
        ["| format | recognised by | one row | splits |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    )
