"""A FIFO, a device or a socket where a file is due, for every reader of the commands: refused at once, exit 2, never waited for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.compare.reports import read_data, read_queries
from eval.dataset.images import ImageError, decode_image, picture_digest
from eval.encoder.checkpoint import load_siglip
from eval.errors import UserError
from eval.files import PICTURE_BYTES
from eval.manifest.manifest import read_manifest
from rerank.scorers.load import load_scorer
from tests.nursery import Nursery
from tests.odd_models import shard
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from tests.unit.eval.test_files import make

SECONDS = 60  # far more than a refusal takes; a reader that waits for a FIFO never ends
EVAL = "eval --model {base} --data {data} --split val --output {out} "
RERANK = "rerank --model {base} --rerank {blip} --images {pictures} --output {out}.parquet --captions "
READERS = {
    "data csv": ("eval --model {base} --output {out} --data {none}", "m.csv"),
    "data jsonl": ("eval --model {base} --output {out} --data {none}", "m.jsonl"),
    "data parquet": ("eval --model {base} --output {out} --data {none}", "m.parquet"),
    "qrels": (EVAL + "--qrels {none}", "q.txt"),
    "paraphrases": (EVAL + "--expand {none}", "p.jsonl"),
    "templates": (EVAL + "--expand templates:{none}", "t.txt"),
    "synonyms": (EVAL + "--expand synonyms:{none}", "s.txt"),
    "captions of images": (EVAL + "--expand captions:{none}", "c.csv"),
    "choices": ("eval.choices --model {base} --output {out} --data {none}", "c.jsonl"),
    "choices parquet": ("eval.choices --model {base} --output {out} --data {none}", "c.parquet"),
    "convert choices": ("eval.convert_choices --layout aro --source {none} --images {pictures} --output {pictures}/../c.jsonl", "aro.json"),
    "rerank captions": (RERANK + "{none}", "c.txt"),
    "rerank table": (RERANK + "{none}", "c.parquet"),
    "convert": ("rerank.convert {none} --output {out}", "a.pth"),
    "yaml": ("train {none}", "job.yaml"),
    "reranker yaml": ("train.reranker {none}", "job.yaml"),
    "pool txt": ("train {job} mining.pool={none}", "pool.txt"),
    "pool csv": ("train {job} mining.pool={none}", "pool.csv"),
    "pool parquet": ("train {job} mining.pool={none}", "pool.parquet"),
    "job qrels": ("train {job} evaluation.qrels={none}", "q.txt"),
    "job choices": ("train {job} choices=[{none}]", "c.jsonl"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_fifo_is_refused_by_every_reader(nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path, reader: str) -> None:
    line, name = READERS[reader]
    none = tmp_path / name
    make("a FIFO", none)
    job = SmallWorld(reranker_world.manifest, reranker_world.base).write_config(tmp_path / "job")
    pictures = reranker_world.manifest.parent / "pictures"
    given = {"base": reranker_world.base, "blip": reranker_world.blip, "data": reranker_world.manifest, "pictures": pictures}
    given |= {"none": none, "out": tmp_path / "out", "job": job}
    module, *arguments = line.format(**given).split()
    child = nursery.start(module, arguments, env={"ACCELERATE_USE_CPU": "true"})
    assert child.wait(SECONDS) == 2 and str(none) in child.output(), child.output()


def test_a_report_that_is_a_fifo_is_refused(tmp_path: Path) -> None:
    make("a FIFO", tmp_path / "queries.parquet")
    with pytest.raises(UserError, match="not a report's table of queries .*found a FIFO"):
        read_queries(tmp_path)
    make("a FIFO", tmp_path / "report.json")
    with pytest.raises(UserError, match="report.json.*found a FIFO"):
        read_data(tmp_path)


@pytest.mark.parametrize("kind", ["a FIFO", "a socket", "a device"])
def test_a_picture_that_is_no_plain_file_is_refused(small_world: SmallWorld, tmp_path: Path, kind: str) -> None:
    path = make(kind, tmp_path / "a.jpg")
    for read in (decode_image, picture_digest):
        with pytest.raises(ImageError, match=f"found {kind}"):
            read(path)
    (tmp_path / "m.jsonl").write_text(json.dumps({"image": "a.jpg", "caption": "a dog"}) + "\n")
    with pytest.raises(UserError, match=rf"1 x no plain file\n.*m.jsonl:1: .*a.jpg': expected a plain file, found {kind}"):
        read_manifest(tmp_path / "m.jsonl")


def test_a_picture_of_very_many_bytes_is_refused_before_they_are_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(PICTURE_BYTES + 1)
    with pytest.raises(ImageError, match="536,870,913 bytes, more than the 536,870,912 allowed"):
        decode_image(tmp_path / "a.jpg")


def test_links_out_of_the_image_root_are_refused_with_the_remedy(small_world: SmallWorld, tmp_path: Path) -> None:
    pictures, root = small_world.manifest.parent / "pictures", tmp_path / "root"
    (root / "own").mkdir(parents=True)
    shutil.copy(pictures / "val-000.png", root / "own" / "a.png")
    links = {"in.png": root / "own" / "a.png", "out.png": pictures / "val-001.png", "folder": pictures}
    for name, target in links.items():
        (root / name).symlink_to(target)
    names = ["own/a.png", "in.png", "out.png", "folder/val-002.png"]
    (root / "m.jsonl").write_text("".join(json.dumps({"image": name, "caption": f"a dog {name}"}) + "\n" for name in names))
    with pytest.raises(UserError, match=r"2 x link outside the image root") as caught:
        read_manifest(root / "m.jsonl")
    assert f"m.jsonl:3: '{root}/out.png' is a link to '{pictures}/val-001.png'. Put the pictures there, or set" in str(caught.value)
    assert "data.image_root" in str(caught.value) and "m.jsonl:4" in str(caught.value)
    (tmp_path / "linked-root").symlink_to(root)
    (root / "m.jsonl").write_text(json.dumps({"image": "in.png", "caption": "a dog"}) + "\n")
    assert len(read_manifest(tmp_path / "linked-root" / "m.jsonl").images) == 1  # the root itself may be a link


def refused_index(folder: Path, place: str) -> str:
    """What is said of an index whose first shard is called `place`."""
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    first = next(iter(content["weight_map"].values()))
    content["weight_map"] = {name: place if shard == first else shard for name, shard in content["weight_map"].items()}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_siglip(folder)
    return str(caught.value)


PLACES = ["pytorch_model.bin", "/etc/model.safetensors", "../other/model.safetensors", "sub/model.safetensors", "a.bin"]


@pytest.mark.parametrize("place", PLACES)
def test_an_index_names_safetensors_next_to_it_alone(small_world: SmallWorld, tmp_path: Path, place: str) -> None:
    shard(small_world.base, tmp_path / "model")
    torch.save({}, tmp_path / "model" / "pytorch_model.bin")
    told = refused_index(tmp_path / "model", place)
    assert f"model.safetensors.index.json: expected names of .safetensors files next to it; found {place}" in told


def test_a_shard_that_is_a_link_is_read_from_the_hubs_cache_alone(small_world: SmallWorld, tmp_path: Path) -> None:
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    shard(small_world.base, folder)
    name = "model-00001-of-00002.safetensors"
    (folder / name).rename(blobs / "blob")
    (folder / name).symlink_to("../../blobs/blob")
    load_siglip(folder)
    (blobs / "blob").rename(tmp_path / "elsewhere.safetensors")
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(UserError, match=rf"{name} is a link to .*elsewhere.safetensors, outside the model's folder"):
        load_siglip(folder)


def with_value(folder: Path, target: Path, value: float) -> Path:
    """A copy with one other value in the middle of a weight."""
    shutil.copytree(folder, target)
    tensors = load_file(target / "model.safetensors")
    name = max(tensors, key=lambda name: (tensors[name].numel(), name))
    tensors[name].view(-1)[tensors[name].numel() // 2] = value
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_at_load(reranker_world: RerankerWorld, tmp_path: Path, value: float) -> None:
    loads: list[tuple[Callable[[str], object], Path]] = [(load_siglip, reranker_world.base), (load_scorer, reranker_world.blip)]
    for load, good in loads:
        folder = with_value(good, tmp_path / load.__name__, value)
        with pytest.raises(UserError, match="not finite"):
            load(str(folder))


def test_a_tokenizer_that_is_a_fifo_is_refused(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        folder = tmp_path / name.partition(".")[0]
        shutil.copytree(reranker_world.blip, folder)
        (folder / name).unlink()
        make("a FIFO", folder / name)
        with pytest.raises(UserError):
            load_scorer(str(folder))
