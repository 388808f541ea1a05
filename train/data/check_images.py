"""--check-images: decode every image of a manifest, name all that fail, and find equal ones under different ids and those of one colour."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from torch.utils.data import Dataset

from eval.choices.choice_set import ChoiceSet
from eval.dataset.images import ImageError
from eval.dataset.picture_warnings import taken
from eval.encoder.encoder import ImageSource
from eval.encoder.loader import block_loader
from eval.progress import bar
from train.data.splits import Splits

_SHOWN = 20


class _PixelHashes(Dataset):  # type: ignore[type-arg]
    """(hash of the pixels, its one colour or nothing, fault) of each image of a split."""

    def __init__(self, dataset: ImageSource) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return self._dataset.num_images

    def __getitem__(self, image: int) -> tuple[str, str, str]:
        try:
            picture = self._dataset.load_image(image)
        except ImageError as error:
            return "", "", str(error)
        digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
        least, most = zip(*picture.getextrema(), strict=True)
        return digest, f"rgb{least}" if least == most else "", ""


def check_images(splits: Splits, num_workers: int, choices: Sequence[ChoiceSet] = ()) -> int:
    """Check every image, those of choice sets included, and print how rows were read, and the result. Returns 0 if all decode, else 2."""
    print("".join(f"{line}\n" for line in splits.all_reading_lines()), end="", flush=True)
    faults: list[str] = []
    plain: list[str] = []
    places: defaultdict[str, list[str]] = defaultdict(list)
    warned: dict[str, str] = {}
    num_checked = 0
    named = [(dataset, dataset.split or dataset.source) for dataset in splits.all()] + [(each, each.source) for each in choices]
    for dataset, label in named:
        loader = block_loader(_PixelHashes(dataset), num_workers=num_workers)
        with taken() as noted, bar(dataset.num_images, f"decoding {label}", "picture") as progress:
            for image, (digest, colour, fault) in enumerate(loader):
                num_checked += 1
                name = f"[{label}] {dataset.image_ids[image]}"
                if fault:
                    faults.append(f"{name}: {fault}")
                else:
                    places[digest].append(name)
                plain += [f"{name}: {colour}"] if colour else []
                progress.update(1)
        warned.update(noted)
    equal = [names for names in places.values() if len(names) > 1]
    counts = f"{len(faults)} do not decode, {len(equal)} are there more than once, {len(plain)} are of one colour"
    counts += f", {len(warned)} decode with a warning" if warned else ""
    print(f"{num_checked:,} pictures checked: {counts}")
    told = [f"{name}: {text}, decoded all the same" for name, text in warned.items()]
    for line in (*faults, *told, *(f"equal: {', '.join(names[:5])}" for names in equal[:_SHOWN])):
        print(f"  {line}")
    if len(equal) > _SHOWN:
        print(f"  ... and {len(equal) - _SHOWN} more that are there more than once")
    for line in plain[:_SHOWN]:
        print(f"  one colour: {line}")
    if len(plain) > _SHOWN:
        print(f"  ... and {len(plain) - _SHOWN} more of one colour")
    return 2 if faults else 0
