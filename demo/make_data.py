"""Make the demo's data: demo/data/scenes.parquet, demo/data/train.qrels and demo/data/watch.parquet.

python -m demo.make_data                       writes demo/data
python -m demo.make_data --output /tmp/again   the same meaning and captions again, anywhere
python -m demo.make_data --output /tmp/larger --test-scenes 3000 --val-scenes 1000     a test bed with shorter intervals, some minutes
"""

import argparse
from pathlib import Path

from demo.manifest import NUM_SCENES, build_manifest, write_parquet
from demo.qrels import unstated_truths
from demo.watch import build_watch

DATA = Path(__file__).parent / "data"


def main() -> None:
    """Read the command line, build the manifest, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write to")
    for name, default in NUM_SCENES.items():
        parser.add_argument(f"--{name}-scenes", type=int, default=default, help=f"scenes of {name} (default {default})")
    asked = parser.parse_args()
    sizes = {split: getattr(asked, f"{split}_scenes") for split in NUM_SCENES}
    output: Path = asked.output
    output.mkdir(parents=True, exist_ok=True)
    manifest = build_manifest(sizes)
    write_parquet(manifest, output / "scenes.parquet")
    lines = [f"{image_id} 0 {caption_id} 1\n" for image_id, caption_id in unstated_truths(manifest)]
    (output / "train.qrels").write_text("".join(lines), encoding="utf-8")
    for split in ("train", "val", "test"):
        rows = [row for row in manifest if row.split == split]
        num_captions, num_scenes = sum(len(row.captions) for row in rows), len({row.scene.key for row in rows})
        print(f"{split}: {len(rows)} images of {num_scenes} scenes, {num_captions} captions")
    watch = build_watch()
    write_parquet(watch, output / "watch.parquet")
    print(f"watch: {len(watch)} images of as many scenes of the past world, {sum(len(row.captions) for row in watch)} captions")
    print(f"true pairs of train that its captions do not state: {len(lines)}")


if __name__ == "__main__":
    main()
