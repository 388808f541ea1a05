"""A collection of images and captions without ground truth."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eval.captions import caption_hash
from eval.dataset.images import ImageError
from eval.encoder.caption_tokens import CaptionTokens
from eval.encoder.inputs import SiglipInputs
from eval.errors import UserError
from eval.manifest.manifest import ManifestError, RowRules, read_manifest
from eval.manifest.skipped import Skipped
from eval.processes import Processes
from eval.report.texts import text_record
from eval.search.ranking import Direction
from rerank.answers.captions import Captions, manifest_captions, read_captions
from rerank.answers.pictures import PictureList, is_picture_folder, read_folder, read_rows

NO_CAPTIONS = Captions("", [], [])


class Collection:
    """Images in id order, captions in the order given (a `rerank.scoring.cached_scoring.ScoringData`)."""

    def __init__(self, pictures: PictureList, captions: Captions) -> None:
        self.pictures, self.captions_read = pictures, captions
        self.image_ids: Sequence[str] = pictures.image_ids
        self.caption_ids: Sequence[str] = captions.ids
        self.captions: Sequence[str] = captions.texts
        self.load_image, self.image_digest = pictures.load_image, pictures.image_digest

    @property
    def num_images(self) -> int:
        """Number of pictures."""
        return len(self.image_ids)

    @property
    def num_captions(self) -> int:
        """Number of captions."""
        return len(self.captions)

    def skipped(self, image: int) -> Skipped:
        """A picture that does not decode, and why."""
        reason = f"{self.image_ids[image]}: did not decode a moment ago"
        try:
            self.load_image(image)
        except ImageError as error:
            reason = str(error)
        return Skipped(self.pictures.image_place(image), self.image_ids[image], reason, self.pictures.split(image))

    def text_record(self, inputs: SiglipInputs, processes: Processes) -> dict[str, Any]:
        """What the captions are like, and what a checkpoint's tokenizer makes of them; call on every process."""
        hash_C = np.array([caption_hash(caption) for caption in self.captions], dtype=np.int64)
        return text_record(self.captions, hash_C, {"model": CaptionTokens.of(inputs, self.captions, processes)}, gallery="different")

    def gallery_size(self, direction: Direction) -> int:
        """Number of items that a query of a direction is ranked against."""
        return self.num_captions if direction == "image_to_text" else self.num_images

    def without_images(self, broken: np.ndarray) -> "Collection":
        """The collection without some images, by index."""
        return Collection(self.pictures.without(broken), self.captions_read)

    def check_shared(self, processes: Processes) -> None:
        """Refuse processes that found different pictures or captions; call on every process.

        Raises:
            UserError: on every process.
        """
        digest = hashlib.sha256()
        for name in (*self.image_ids, "", *self.caption_ids, "", *self.captions):
            digest.update(name.encode() + b"\0")
        found = {part.tobytes() for part in processes.gather(np.frombuffer(digest.digest(), dtype=np.uint8))}
        if len(found) > 1:
            raise UserError(
                f"the {processes.world_size} processes do not see the same pictures and captions (here {self.num_images} and "
                f"{self.num_captions}). Copy them to every machine, or give a folder that all of them share"
            )


def read_collection(
    images: str,
    captions: str | None,
    *,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    skip_missing: bool = False,
    caption_column: str | None = None,
    caption_id_column: str | None = None,
) -> Collection:
    """Pictures from a folder or manifest, and captions from a file or, where none is given, from that manifest.

    Args:
        images: a folder of pictures, or whatever `eval.manifest.manifest.read_manifest` takes.
        captions: a file (see `read_captions`); None: the manifest's own.
        image_root, columns, split: of a manifest.
        skip_missing: leave out rows of a manifest whose picture is not there.
        caption_column, caption_id_column: of a table of captions; without `captions` the first is the manifest's column.

    Raises:
        UserError: either cannot be used, or an option does not apply; ManifestError with every fault where a file has some.
    """
    if captions is None:
        own = dict(columns or {}) | ({"captions": caption_column} if caption_column is not None else {})
        return _read_both(images, image_root, own, split, skip_missing)
    pictures = _read_pictures(images, image_root, columns or {}, split, skip_missing)
    return Collection(pictures, read_captions(captions, column=caption_column, id_column=caption_id_column))


def read_gallery(
    images: str,
    *,
    image_root: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    skip_missing: bool = False,
) -> Collection:
    """The pictures of a folder; or those of a manifest, with its captions where it has a column of them.

    Args:
        images: a folder of pictures, or whatever `eval.manifest.manifest.read_manifest` takes.
        image_root, columns, split, skip_missing: of a manifest, as of `read_collection`.

    Raises:
        UserError: they cannot be used, or an option does not apply; ManifestError with every fault where a file has some.
    """
    if is_picture_folder(images):
        return Collection(_read_pictures(images, image_root, columns or {}, split, skip_missing), NO_CAPTIONS)
    try:
        return _read_both(images, image_root, columns or {}, split, skip_missing)
    except ManifestError as error:
        lacks_columns = all(fault.kind == "unknown column" for fault in error.faults)
        if not lacks_columns or {"caption", "captions"} & set(columns or {}):
            raise
    return Collection(_read_pictures(images, image_root, columns or {}, split, skip_missing), NO_CAPTIONS)


def _read_pictures(images: str, image_root: str | None, columns: Mapping[str, str], split: str | None, skip_missing: bool) -> PictureList:
    """The pictures of a folder, or of a manifest without its captions."""
    if not is_picture_folder(images):
        return read_rows(images, image_root=image_root, columns=columns, split=split, skip_missing=skip_missing)
    if image_root is None and not columns and split is None and not skip_missing:
        return read_folder(images)
    options = "--image-root, --column, --skip-missing and --split"
    raise UserError(f"--images {images} is a folder of pictures: {options} are for manifests; leave them out")


def _read_both(source: str, image_root: str | None, columns: Mapping[str, str], split: str | None, skip_missing: bool) -> Collection:
    rules = RowRules(skip_missing=skip_missing, is_one_set=split is None)
    wanted = [split] if split is not None else []
    try:
        manifest = read_manifest(source, image_root=image_root, columns=columns, require_splits=wanted, rules=rules)
    except UserError as error:
        if not is_picture_folder(source):
            raise
        told = error.faults[0].what if isinstance(error, ManifestError) else str(error)
        raise UserError(
            f"--images {source}: without --captions FILE each picture's own captions are read, and not every one has some ({told}). "
            "Give --captions FILE, one caption a line"
        ) from error
    images = manifest.images if split is None else manifest.images.of_split(split)
    return Collection(PictureList.of_manifest(images, manifest), manifest_captions(images, source))
