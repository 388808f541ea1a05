"""configs/siglip-base.yaml and siglip-base-lora.yaml as they are but for mining, which is turned on; offline: the two models of the
hub, by their ids, from its cache.

With the hub's own small files and random weights of a smaller model; at their real size behind the marker `real_size`.
"""

import json
from pathlib import Path

import pytest

from tests.bin_checkpoints import REVISION
from tests.hub_files import BLIP_ID, SIGLIP_ID, cached_snapshot, needs_hub_files, write_blip, write_siglip
from tests.nursery import Nursery
from tests.small_job import write_pictures

FEW_STEPS = [
    *("train.max_steps=3", "train.warmup_steps=1", "train.eval_every_steps=3", "train.checkpoint_every_steps=3", "train.batch_size=4"),
    *("train.micro_batch_size=2", "mining.start_step=1", "mining.mine_every_steps=9", "mining.pool_top_k=8", "rerank.top_k=2"),
    *("train.precision=fp32", "data.num_workers=0"),  # bf16 on a CPU without AMX takes a minute a picture
]


def run(nursery: Nursery, folder: Path, config: str, cache: Path) -> Path:
    """The run's folder, once it has ended well."""
    manifest = write_pictures(folder / "data", {"train": 6, "val": 3, "test": 3})
    words = [f"configs/{config}.yaml", f"data.source={manifest}", f"runs_folder={folder / 'runs'}", *FEW_STEPS]
    child = nursery.start("train", words, env={"ACCELERATE_USE_CPU": "true", "HF_HUB_CACHE": str(cache), "HF_ASSETS_CACHE": str(cache)})
    assert child.wait() == 0, child.output()
    check(folder / "runs" / config, child.output())
    return folder / "runs" / config


def check(run_folder: Path, printed: str) -> None:
    """Three steps, one mining, a final report of base and tuned, alone and reranked, with the commits of both models."""
    lines = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "step"] == [1, 2, 3]
    assert [line["step"] for line in lines if line["event"] == "mining"] == [1]
    report = json.loads((run_folder / "eval" / "test" / "report.json").read_text())
    assert list(report["stages"]) == ["base", "tuned", "base+blip", "tuned+blip"]
    assert report["hub_revisions"] == {SIGLIP_ID: REVISION, BLIP_ID: REVISION}
    assert f"model     {SIGLIP_ID} (commit {REVISION} of the hub): " in printed
    card = (run_folder / "export" / "README.md").read_text()
    assert f"base_model: {SIGLIP_ID}\n" in card and f"`{SIGLIP_ID} (commit {REVISION} of the hub)`" in card
    named = [path.name for path in (run_folder / "export").iterdir() if path.suffix == ".json" and REVISION in path.read_text()]
    assert named == []  # no path of this machine's cache


@pytest.fixture(scope="module")
def small_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    write_siglip(cached_snapshot(cache, SIGLIP_ID), is_small=True)
    write_blip(cached_snapshot(cache, BLIP_ID), is_small=True)
    return cache


@needs_hub_files
@pytest.mark.parametrize("config", ["siglip-base", "siglip-base-lora"])
def test_three_steps_a_mining_and_a_reranking(nursery: Nursery, small_cache: Path, tmp_path: Path, config: str) -> None:
    run(nursery, tmp_path, config, small_cache)


@needs_hub_files
@pytest.mark.real_size
@pytest.mark.parametrize("config", ["siglip-base", "siglip-base-lora"])
def test_the_same_at_real_size(nursery: Nursery, tmp_path: Path, config: str) -> None:
    """203 and 224 million parameters: minutes, and 8 GB of memory."""
    cache = tmp_path / "hub"
    assert round(write_siglip(cached_snapshot(cache, SIGLIP_ID), is_small=False)) == 203
    assert round(write_blip(cached_snapshot(cache, BLIP_ID), is_small=False)) == 224
    folder = run(nursery, tmp_path, config, cache)
    assert (folder / "export" / "model.safetensors").stat().st_size == pytest.approx(812_672_320, rel=1e-3)
