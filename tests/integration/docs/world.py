"""A folder in which the names that README.md and docs/ use exist: data, pictures, models of the hub, runs that have ended; all in small."""

import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.hub_files import cached_snapshot
from tests.nursery import Nursery
from tests.siglip2 import write_siglip2
from tests.unit.rerank.expansions.tiny_writers import write_tiny_t5
from tests.unit.rerank.scorers.albef import albef_files

ROOT = Path(__file__).parents[3]
FEW_STEPS = {"max_steps": 2, "batch_size": 8, "eval_every_steps": 1, "checkpoint_every_steps": 1, "warmup_steps": 0, "precision": "fp32"}
"""What every configuration's `train` is changed to: the same job in two steps."""
ROWS = {"train": 40, "val": 32, "test": 32, "watch": 12}
"""Of each split; as many as the top 32 that pages rerank."""
NOISY = ("a", "b", "c")
"""Names of folders below runs/ that hold the demo's base with noise on its weights: for a soup, whose members must differ."""
MADE = (["configs/demo.yaml"], ["configs/siglip-base.yaml", "data.source=PATH/TO/pairs.jsonl", "name=my-run"])
"""What makes runs/demo and runs/my-run: commands of README.md and docs/training.md."""


def copied(source: str, target: str) -> str:
    """A copy of a file; of weights, which are never written in place, a link."""
    return os.link(source, target) or target if source.endswith((".safetensors", ".pth")) else shutil.copy2(source, target)


class World:
    """The folder; `hub` is the cache of the hub's models, which nothing changes."""

    def __init__(self, folder: Path, hub: Path) -> None:
        self.folder, self.hub = folder, hub

    @classmethod
    def make(cls, folder: Path, nursery: Nursery) -> "World":
        """Write everything; the runs are those of the demo's own configuration in two steps."""
        world = cls(folder / "world", folder / "hub")
        world.folder.mkdir(parents=True)
        world._write_configs()
        world._write_data()
        world._write_models()
        shutil.copy(ROOT / "launch.sh", world.folder)
        for name in ("pyproject.toml", "constraints.txt", "eval", "rerank", "train"):
            (world.folder / name).symlink_to(ROOT / name)
        for words in MADE:
            run = nursery.start("train", words, env=world.variables(), cwd=world.folder)
            assert run.wait() == 0, run.output()
        return world

    def copy(self, folder: Path) -> "World":
        """The same for one page, whose commands change it; ORG/NAME of the hub is what that page writes to out/forms."""
        shutil.copytree(self.folder, folder / "world", symlinks=True, copy_function=copied)
        own = World(folder / "world", folder / "hub")
        shutil.copytree(self.hub, own.hub, copy_function=os.link)
        snapshot = cached_snapshot(own.hub, "ORG/NAME")
        snapshot.rmdir()
        snapshot.symlink_to(own.folder / "out" / "forms")
        return own

    def variables(self) -> dict[str, str]:
        """What a command finds in its environment."""
        return {"HF_HUB_CACHE": str(self.hub), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}

    def _write_configs(self) -> None:
        """configs/ with few steps."""
        shutil.copytree(ROOT / "configs" / "accelerate", self.folder / "configs" / "accelerate")
        for path in (ROOT / "configs").glob("*.yaml"):
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            config["train"] |= FEW_STEPS
            config["train"].pop("epochs", None)
            config["data"]["num_workers"], config["curves"] = 0, False
            if config.get("mining"):
                config["mining"] |= {"start_step": 1, "mine_every_steps": 1}
            (self.folder / "configs" / path.name).write_text(yaml.safe_dump(config), encoding="utf-8")

    def _write_data(self) -> None:
        """demo/data with few rows, and the same drawings as files in PATH/TO, with pairs in every form."""
        data, place = self.folder / "demo" / "data", self.folder / "PATH" / "TO"
        for folder in (data, place / "PICTURES"):
            folder.mkdir(parents=True)
        for name in ("scenes.parquet", "watch.parquet"):
            table = pq.read_table(ROOT / "demo" / "data" / name)
            splits = table["split"].to_pylist()
            table = table.take([row for row, split in enumerate(splits) if splits[:row].count(split) < ROWS[split]])
            captions = pa.array([row[:2] for row in table["captions"].to_pylist()])
            pq.write_table(table.set_column(table.column_names.index("captions"), "captions", captions), data / name)
        choices = pq.read_table(ROOT / "demo" / "data" / "choices.parquet")
        pq.write_table(choices.take([*range(6), len(choices) - 1]), data / "choices.parquet")
        for name in ("synonyms.txt", "thesaurus.txt", "train.qrels"):
            shutil.copy(ROOT / "demo" / "data" / name, data)
        rows = []
        for row in pq.read_table(data / "scenes.parquet").to_pylist():
            rows.append({"image": f"{row['id']}.png", "caption": row["captions"][0], "split": row["split"]})
            for folder in (place, place / "PICTURES"):  # a file may name them from both
                (folder / rows[-1]["image"]).write_bytes(row["image"]["bytes"])
        lines = [json.dumps(row) + "\n" for row in rows]
        (place / "pairs.jsonl").write_text("".join(lines), encoding="utf-8")
        pa.csv.write_csv(pa.Table.from_pylist(rows), place / "pairs.csv")
        pq.write_table(pa.Table.from_pylist(rows), place / "pairs.parquet")
        shutil.copy(place / rows[0]["image"], self.folder / "photo.jpg")
        (place / "captions.txt").write_text("".join(row["caption"] + "\n" for row in rows[-6:]), encoding="utf-8")
        choice = {"image": rows[0]["image"], "caption": rows[0]["caption"], "false_captions": ["a dog"], "category": "colour"}
        (place / "choices.jsonl").write_text(json.dumps(choice) + "\n", encoding="utf-8")
        self._write_benchmarks(place / rows[0]["image"])

    def _write_benchmarks(self, picture: Path) -> None:
        """Published choice sets in small, as their authors lay them out."""
        for name in ("coco/val2017/1.png", "winoground/images/a.png", "winoground/images/b.png", "aro/images/1.png"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, self.folder / name)
        swapped = {"filename": "1.png", "caption": "A man and a kite.", "negative_caption": "A kite and a man."}
        pair = {"id": 0, "image_0": "a", "image_1": "b", "caption_0": "an old dog", "caption_1": "a young dog", "collapsed_tag": "Object"}
        item = {"image_path": "1.png", "bbox_x": 3, "bbox_y": 4, "bbox_w": 20, "bbox_h": 10, "relation_name": "on"}
        item |= {"true_caption": "the dog is on the bed", "false_caption": "the bed is on the dog"}
        records = {"sugar-crepe/data/swap_obj.json": {"0": swapped}, "winoground/examples.jsonl": pair}
        for name, record in (records | {"aro/visual_genome_relation.json": [item]}).items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(json.dumps(record) + "\n", encoding="utf-8")

    def _write_models(self) -> None:
        """demo/models, and in the cache models of the hub's ids: the demo's, or random ones of their kind."""
        models = self.folder / "demo" / "models"
        shutil.copytree(ROOT / "demo" / "models", models)
        for name, folder in {
            "google/siglip-base-patch16-224": "siglip-base",
            "google/siglip-large-patch16-256": "siglip-large",
            "Salesforce/blip-itm-base-coco": "blip-itm",
        }.items():
            shutil.copytree(models / folder, cached_snapshot(self.hub, name), dirs_exist_ok=True)
        for seed, name in enumerate(NOISY):
            folder = shutil.copytree(models / "siglip-base", self.folder / "runs" / name)
            draws, weights = torch.Generator().manual_seed(seed), load_file(folder / "model.safetensors")
            noisy = {key: tensor + 1e-3 * torch.randn(tensor.shape, generator=draws) for key, tensor in weights.items()}
            save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
        snapshot = cached_snapshot(self.hub, "google/siglip2-base-patch16-224")
        snapshot.rmdir()
        write_siglip2(snapshot, ["a red circle", "two dogs run on the grass"])
        write_tiny_t5(cached_snapshot(self.hub, "humarin/chatgpt_paraphraser_on_T5_base"))
        words = albef_files.write_tokenizer(cached_snapshot(self.hub, "bert-base-uncased"))
        (words / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
        for name, tuned in (("mscoco.pth", True), ("ALBEF.pth", False)):
            torch.save(albef_files.released(albef_files.random_tensors(), tuned=tuned), self.folder / name)
