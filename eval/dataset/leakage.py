"""Leakage between two splits: images and captions that are in both, counted and reported."""

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow.compute as pc

from eval.dataset.retrieval_set import RetrievalSet


@dataclass(frozen=True)
class Leakage:
    """Images and captions of one split that another also holds."""

    split: str
    other: str
    num_shared_images: int
    num_shared_groups_images: int
    num_shared_captions: int
    example_images: list[str]
    example_captions: list[str]

    @property
    def any(self) -> bool:
        """True if anything is shared."""
        return bool(self.num_shared_images or self.num_shared_groups_images or self.num_shared_captions)

    def as_record(self) -> dict[str, object]:
        """The fields, for a line of metrics.jsonl."""
        return asdict(self)

    def __str__(self) -> str:
        text = f"{self.split} and {self.other} share {self.num_shared_images} image(s) and {self.num_shared_captions} caption(s)"
        if self.num_shared_groups_images:
            text += f"; {self.num_shared_groups_images} image(s) of {self.split} have a group that {self.other} has too"
        examples = [repr(example) for example in (*self.example_images, *self.example_captions)]
        return text + (f", e.g. {', '.join(examples[:4])}" if examples else "")


def find_leakage(split: RetrievalSet, other: RetrievalSet) -> Leakage:
    """Count the images (by id and size in bytes) and the captions (by normalised text) of `split` that are in `other` too.

    The size is compared too, as two different embedded images are often both called 0.jpg.
    """
    other_I = pc.fill_null(pc.index_in(split.image_ids.array, other.image_ids.array), -1).to_numpy()
    is_shared_I = other_I >= 0
    is_shared_I[is_shared_I] = split.num_bytes_I[is_shared_I] == other.num_bytes_I[other_I[is_shared_I]]
    shared_C = np.isin(split.caption_hash_C, other.caption_hash_C)
    examples = [split.captions[int(caption)] for caption in np.flatnonzero(shared_C)[:3]]
    groups = set(split.group_names()) & set(other.group_names()) - {None}
    in_shared_group = sum(name in groups for name in split.group_names())
    return Leakage(
        str(split.split),
        str(other.split),
        int(is_shared_I.sum()),
        in_shared_group,
        int(shared_C.sum()),
        [split.image_ids[int(image)] for image in np.flatnonzero(is_shared_I)[:3]],
        examples,
    )
