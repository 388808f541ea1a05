"""Published compositional benchmarks, as their authors lay them out, as the rows of a choice set."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.atomic import check_writable, is_desktop_file, replace_files
from eval.choices.choice_set import jsonl_rows, read_choices
from eval.errors import UserError
from eval.files import read_text
from eval.manifest.formats.text import parse_json
from eval.manifest.manifest import Fault, ManifestError
from eval.manifest.rows import is_unicode

Item = tuple[str, Mapping[str, Any]]
ImagePath = Callable[[str], str]


def sugarcrepe(source: Path, image_path: ImagePath, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    """Rows of SugarCrepe (Hsieh et al. 2023): CATEGORY.json, or a folder of them, {number: {filename, caption, negative_caption}}.

    The pictures are COCO's val2017. Source: github.com/RAIVNLab/sugar-crepe, main_eval.py and data/.
    """
    files = sorted(file for file in source.glob("*.json") if not is_desktop_file(file.name)) if source.is_dir() else [source]
    if not files:
        raise UserError(f"{source}: expected SugarCrepe's files, such as swap_att.json; found no *.json")
    for file in files:
        items = _json(file)
        if not isinstance(items, dict):
            raise UserError(f"{file}: expected {{number: {{filename, caption, negative_caption}}}}, found a {type(items).__name__}")
        for number, item in _complete(((f"{file} {number}", item) for number, item in items.items()), SUGARCREPE, faults):
            yield {
                "id": f"{file.stem}-{number.rpartition(' ')[2]}",
                "category": file.stem,
                "image": image_path(item["filename"]),
                "caption": item["caption"],
                "false_captions": [item["negative_caption"]],
            }


def winoground(source: Path, image_path: ImagePath, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    """Rows of Winoground (Thrush et al. 2022): examples.jsonl with image_0, image_1 (names of PNG files), caption_0, caption_1.

    The category is collapsed_tag (Object, Relation, Both), by which the paper reports; where that is absent, tag. Source: the data set's
    card, huggingface.co/datasets/facebook/winoground.
    """
    rows = jsonl_rows(source / "examples.jsonl" if source.is_dir() else source, faults)
    for where, item in _complete(rows, WINOGROUND, faults):
        names = [name if Path(name).suffix else f"{name}.png" for name in (item["image_0"], item["image_1"])]
        yield {
            "id": str(item.get("id", where.rpartition(":")[2])),
            "category": item.get("collapsed_tag") or item.get("tag") or None,
            "images": [image_path(name) for name in names],
            "captions": [item["caption_0"], item["caption_1"]],
        }


def aro(source: Path, image_path: ImagePath, faults: list[Fault]) -> Iterator[dict[str, Any]]:
    """Rows of ARO's Visual Genome sets (Yuksekgonul et al. 2023): visual_genome_relation.json or visual_genome_attribution.json.

    A list of {image_path, bbox_x, bbox_y, bbox_w, bbox_h, true_caption, false_caption} with relation_name or attributes; the picture is cut
    to the box. Source: github.com/mertyg/vision-language-models-are-bows, dataset_zoo/aro_datasets.py.

    Raises:
        UserError: it is one of ARO's order sets, which state no false captions.
    """
    items = _json(source)
    if not isinstance(items, list):
        raise UserError(f"{source}: expected ARO's list of test cases, found a {type(items).__name__}")
    if items and all(isinstance(item, dict) and {"image", "caption"} <= set(item) and "false_caption" not in item for item in items):
        raise UserError(
            f"{source}: COCO and Flickr30k Order cannot be converted: this file holds true captions only; ARO shuffles their words, with "
            "spaCy and at random, when it loads them. Write down what its code makes, as rows of `image`, `caption` and `false_captions`"
        )
    for where, item in _complete(((f"{source} item {number}", item) for number, item in enumerate(items)), ARO, faults):
        yield {
            "id": f"{source.stem}-{where.rpartition(' ')[2]}",
            "category": item.get("relation_name") or "_".join(map(str, item.get("attributes") or ())) or None,
            "image": image_path(item["image_path"]),
            "box": [item[name] for name in ("bbox_x", "bbox_y", "bbox_w", "bbox_h")],
            "caption": item["true_caption"],
            "false_captions": [item["false_caption"]],
        }


SUGARCREPE = {"filename": str, "caption": str, "negative_caption": str}
WINOGROUND = {"image_0": str, "image_1": str, "caption_0": str, "caption_1": str}
ARO = {"image_path": str, "true_caption": str, "false_caption": str} | dict.fromkeys(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), (int, float))
LAYOUTS = {"sugarcrepe": sugarcrepe, "winoground": winoground, "aro": aro}


def _complete(items: Iterable[Item], wanted: Mapping[str, Any], faults: list[Fault]) -> Iterator[Item]:
    """The items that have every key of the right type; the others go to `faults`."""
    for where, item in items:
        if not isinstance(item, dict):
            faults.append(Fault(where, "not of this layout", f"expected an object with {list(wanted)}, found {type(item).__name__}"))
        elif wrong := [key for key, kind in wanted.items() if not isinstance(item.get(key), kind) or not is_unicode(str(item[key]))]:
            faults.append(Fault(where, "not of this layout", f"{wrong} are missing or of another type; expected {list(wanted)}"))
        else:
            yield where, item


def _json(file: Path) -> Any:
    try:
        return parse_json(read_text(file).encode())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({error})") from error


def convert(layout: str, source: Path, images: Path, output: Path) -> int:
    """Write a choice set and read it back, so that missing pictures are named now. Returns the number of rows.

    Raises:
        UserError: the source is not of that layout, or the choice set has faults; the message names all of them.
        OSError: the output cannot be written.
    """
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output}: the choice set is written as .jsonl")
    check_writable(output)
    folder = os.path.relpath(images.resolve(), output.parent.resolve())  # links out of the choice set's folder are not followed
    if folder.split(os.sep)[0] == "..":
        remedy = f"write it to {images.parent / output.name}, say"
        raise UserError(f"--output {output}: paths are relative to the choice set's folder, which must hold {images}; {remedy}")
    faults: list[Fault] = []
    try:
        rows = list(LAYOUTS[layout](source, lambda name: os.path.normpath(os.path.join(folder, name)), faults))
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error})") from error
    if faults:
        raise ManifestError(str(source), faults)
    replace_files({output: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)})
    return len(read_choices(output).examples)
