"""Rows out of .json: a list of objects, COCO's captions, Karpathy's splits, or one object a line."""

import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eval.errors import UserError
from eval.files import MB, TABLE_BYTES, encoding_of, read_bytes
from eval.manifest.formats.text import TextRows, parse_json, read_jsonl

Faults = list[tuple[str, str]]
_EXPECTED = (
    "expected a list of objects, COCO captions (images and annotations), Karpathy's splits (images with sentences), or one object a line"
)


def open_json(path: Path, mapping: Mapping[str, str], image_root: Path | None = None) -> TextRows:
    """The rows of a .json file, by what it holds.

    Raises:
        FileError, OSError: it cannot be read.
        UserError: it holds something else.
    """
    raw = read_bytes(path, TABLE_BYTES)
    encoding = encoding_of(raw[:4])
    try:
        value = parse_json(raw.decode(encoding).encode() if encoding != "utf-8" else raw)
    except (ValueError, RecursionError) as error:
        if _is_json_lines(raw, encoding):
            return TextRows(path, mapping, read_jsonl)
        raise UserError(f"{path}: not JSON: {error}; {_EXPECTED}") from error
    del raw
    folder = None
    match value:
        case {"images": list(images), "annotations": list(annotations)}:
            folder, prefix = _coco_folder(path, images, image_root)
            rows = partial(_coco_rows, images, annotations, prefix)
        case {"images": list(images)}:
            rows = partial(_karpathy_rows, images)
        case list():
            rows = partial(_list_rows, value)
        case {} if any(name in value for name in ("image", "caption", "captions", *mapping.values())) and not _is_by_columns(value):
            rows = partial(_list_rows, [value])
        case _:
            raise UserError(f"{path}: {_found(value)}; {_EXPECTED}")
    return TextRows(path, mapping, partial(_read, rows), folder)


def _is_json_lines(raw: bytes, encoding: str) -> bool:
    """Whether the first line alone is an object."""
    first = raw[: 16 * MB].decode(encoding, "replace").lstrip().partition("\n")[0]
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _is_by_columns(value: dict[str, Any]) -> bool:
    """Whether an object holds the cells of a table column by column, as pandas writes one unless told otherwise."""
    return bool(value) and all(isinstance(column, dict) for column in value.values())


def _found(value: Any) -> str:
    if not isinstance(value, dict):
        return f"found {type(value).__name__}"
    if _is_by_columns(value):
        return f'found a table by columns {list(value)[:8]}; write it by rows: DATAFRAME.to_json(PATH, orient="records", lines=True)'
    return f"found an object with the keys {list(value)[:8]}"


def _read(rows: Any, path: Path, faults: Faults) -> tuple[list[str], list[tuple[int | str, dict[str, Any]]]]:
    """A reader (eval/manifest/formats/text.py) of what `rows` yields: (place, record), or (place, what is wrong)."""
    columns: dict[str, None] = {}
    records: list[tuple[int | str, dict[str, Any]]] = []
    for place, record in rows():
        if isinstance(record, str):
            faults.append((f"{path} {place}", record))
        else:
            columns.update(dict.fromkeys(record))
            records.append((place, record))
    return list(columns), records


def _list_rows(values: list[Any]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """A row for each object of a list; coco_karpathy_train.json of BLIP and LAVIS is one."""
    for number, value in enumerate(values, 1):
        yield f"element {number}", value if isinstance(value, dict) else f"expected an object, found {type(value).__name__}"


def _karpathy_rows(images: list[Any]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """A row for each image of dataset_coco.json and its like; `restval` is a part of train."""
    for number, image in enumerate(images, 1):
        place = f"image {number}"
        match image:
            case {"filename": str(name), "sentences": list(sentences)}:
                raws = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
                folder = image.get("filepath")
                path = f"{folder}/{name}" if isinstance(folder, str) and folder else name
                record = {key: value for key, value in image.items() if key not in ("sentences", "id")}
                if record.get("split") == "restval":
                    record["split"] = "train"
                yield place, record | {"image": path, "captions": raws}
            case _:
                yield place, f"expected an object with filename and sentences, found {image!r:.100}"


def _coco_rows(images: list[Any], annotations: list[Any], prefix: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """A row for each caption of captions_train2017.json and its like, and one for each image without any."""
    by_id: dict[Any, dict[str, Any]] = {}
    for number, image in enumerate(images, 1):
        match image:
            case {"id": int() | str() as id_, "file_name": str()} if id_ not in by_id:
                by_id[id_] = image
            case {"id": int() | str() as id_, "file_name": str()}:
                yield f"image {number}", f"image id {id_!r} is there twice"
            case _:
                yield f"image {number}", f"expected an object with id and file_name, found {image!r:.100}"
    described = set()
    for number, annotation in enumerate(annotations, 1):
        place = f"annotation {number}"
        match annotation:
            case {"image_id": int() | str() as id_, "caption": caption} if id_ in by_id:
                described.add(id_)
                yield place, _coco_record(by_id[id_], prefix, caption)
            case {"image_id": id_, "caption": _}:
                yield place, f"no image of `images` has the id {id_!r:.80}"
            case _:
                yield place, f"expected an object with image_id and caption, found {annotation!r:.100}; captions are in captions_*.json"
    for number, image in enumerate(images, 1):
        if isinstance(image, dict) and by_id.get(_hashable(image.get("id"))) is image and image["id"] not in described:
            yield f"image {number}", _coco_record(image, prefix, None)


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | str) else None


def _coco_record(image: dict[str, Any], prefix: str, caption: Any) -> dict[str, Any]:
    others = {key: value for key, value in image.items() if key not in ("id", "file_name", "captions")}  # annotations are the captions
    return others | {"image_id": image["id"], "image": prefix + image["file_name"], "caption": caption}


def _coco_folder(path: Path, images: list[Any], image_root: Path | None) -> tuple[Path | None, str]:
    """(folder of the pictures, what goes before file_name) of COCO captions, where the first picture that is there is found.

    COCO's own layout is annotations/captions_NAME.json next to NAME/: file names are then relative to NAME, also where no picture is there.
    """
    name = path.stem.removeprefix("captions_")
    folders = [image_root] if image_root is not None else [path.parent, path.parent.parent]
    places = [(folder, prefix) for folder in folders for prefix in ("", f"{name}/")]
    for file in (image["file_name"] for image in images if isinstance(image, dict) and isinstance(image.get("file_name"), str)):
        for folder, prefix in places:
            if os.path.isfile(os.path.join(folder, prefix + file)):
                return folder, prefix
    return next(((folder, prefix) for folder, prefix in places if prefix and (folder / name).is_dir()), (None, ""))
