"""Cross-encoders with a pytorch_model.bin alone, as Salesforce/blip-itm-base-coco is on the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BlipConfig, BlipForImageTextRetrieval, GenerationConfig

from eval.encoder.hub import revision_in_use
from eval.errors import UserError, named
from rerank.expansions.generated import Paraphraser
from rerank.scorers.load import load_scorer
from tests.bin_checkpoints import bin_folder, in_hub_cache
from tests.hub_files import needs_hub_files, write_blip
from tests.hub_server import COMMITS, go_online, serving
from tests.small_job import SmallWorld
from tests.unit.rerank.expansions.tiny_writers import write_tiny_llama, write_tiny_t5
from tests.unit.rerank.scorers.albef.albef_files import Trap
from tests.unit.rerank.scorers.tiny_cross_encoders import FAMILIES

ROOT = Path(__file__).parents[4]
CAPTIONS = ["a red circle above a blue square", "the dog runs", "cat"]
HUB_ID = "Salesforce/blip-itm-base-coco"


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the hub's files are, and where the copies go."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("unpickled again")


@pytest.mark.parametrize("kind", ["blip", *FAMILIES])
def test_the_same_bits_and_the_same_fingerprint(tiny_blip: Path, tmp_path: Path, noise, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    twin = tiny_blip
    if kind != "blip":
        twin = tmp_path / "twin"
        FAMILIES[kind].write(twin)
    expected = load_scorer(str(twin), device="cpu")
    folder = bin_folder(twin, tmp_path / "bin")
    in_hub_cache(tmp_path / "hub", HUB_ID, twin)
    first = load_scorer(str(folder), device="cpu")
    monkeypatch.setattr("torch.load", refuse)  # the hub's file is the same: no second unpickling
    for scorer in (first, load_scorer(HUB_ID, device="cpu"), load_scorer(str(folder), device="cpu")):
        assert scorer.fingerprint == expected.fingerprint
        assert np.array_equal(scorer.score(noise(1), CAPTIONS), expected.score(noise(1), CAPTIONS))


def test_shards_give_the_same_weights_and_scores(tiny_blip: Path, tmp_path: Path, noise) -> None:
    """Equal but for rounding: shards lie otherwise in memory, which moves sums of float32; with shards of safetensors too."""
    expected = load_scorer(str(tiny_blip), device="cpu")
    scorer = load_scorer(str(bin_folder(tiny_blip, tmp_path / "bin", shards=3)), device="cpu")
    assert scorer.fingerprint == expected.fingerprint
    np.testing.assert_allclose(scorer.score(noise(1), CAPTIONS), expected.score(noise(1), CAPTIONS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shards", [0, 3])
def test_the_reranker_that_the_readme_names_from_the_hub(
    tiny_blip: Path, tmp_path: Path, noise, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    """A pytorch_model.bin and a tf_model.h5: fetched, but for the latter, from a stand-in of the hub, at the revision named."""
    folder = bin_folder(tiny_blip, tmp_path / "repository", shards)
    (folder / "tf_model.h5").write_bytes(b"of no use here")
    expected = load_scorer(str(folder), device="cpu")
    with serving() as hub:
        go_online(monkeypatch, hub.endpoint, tmp_path / "cache")
        hub.publish(HUB_ID, folder, COMMITS[0], "v1")
        for name in (HUB_ID, f"{HUB_ID}@v1"):
            scorer = load_scorer(name, device="cpu")
            assert scorer.fingerprint == expected.fingerprint
            assert np.array_equal(scorer.score(noise(1), CAPTIONS), expected.score(noise(1), CAPTIONS))
        assert "tf_model.h5" not in hub.fetched() and revision_in_use(f"{HUB_ID}@v1") == COMMITS[0]
        hub.gated.add("someone/gated")
        hub.publish("someone/gated", folder)
        with pytest.raises(UserError, match=r"^--rerank: someone/gated: a gated model.*hf auth login$"), named({"reranker": "--rerank"}):
            load_scorer("someone/gated", device="cpu")


def test_an_object_in_the_bin_is_named_and_not_run(tiny_blip: Path, tmp_path: Path) -> None:
    folder = bin_folder(tiny_blip, tmp_path / "bin")
    torch.save({"stray": Trap(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"posix\.mkdir") as caught:
        load_scorer(str(folder), device="cpu")
    assert caught.value.exit_code == 2 and str(folder) in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("has_generation_config", [False, True])
@pytest.mark.parametrize("write", [write_tiny_t5, write_tiny_llama])
def test_a_language_model_keeps_its_generation_settings(tmp_path: Path, write, has_generation_config: bool) -> None:
    twin = write(tmp_path / "twin")
    if has_generation_config:
        settings = GenerationConfig.from_pretrained(twin)
        settings.update(repetition_penalty=1.5)
        settings.save_pretrained(twin)
    else:
        (twin / "generation_config.json").unlink(missing_ok=True)
    cpu = torch.device("cpu")
    paraphrasers = [Paraphraser.read(str(at)) for at in (twin, bin_folder(twin, tmp_path / "bin"))]
    models = [paraphraser.load(cpu) for paraphraser in paraphrasers]
    expected, found = (model.generation_config.to_dict() for model in models)
    assert found == expected and (found["repetition_penalty"] == 1.5) is has_generation_config
    texts = [paraphraser.write_again(model, ["a red dog"], 2) for paraphraser, model in zip(paraphrasers, models, strict=True)]
    assert texts[0] == texts[1]


def run(cache: Path, *words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(cache), "HF_ASSETS_CACHE": str(cache / "assets"), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"} | variables
    command = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_commands_take_a_hub_id_offline_and_a_folder(small_world: SmallWorld, tiny_blip: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home"
    in_hub_cache(cache / "hub", HUB_ID, tiny_blip)
    folder = bin_folder(tiny_blip, tmp_path / "bin")
    data = ["--model", small_world.base, "--data", small_world.manifest, "--split", "val", "--top-k", "2"]
    first = run(cache, "eval", *data, "--output", tmp_path / "report", "--rerank", HUB_ID)
    assert first.returncode == 0, first.stderr
    (copy,) = (path for path in (cache / "assets" / "siglip-tuner" / "safetensors").iterdir() if not path.name.startswith("."))
    assert f"no safetensors in {HUB_ID}: pytorch_model.bin was read with weights_only=True into {copy}\n" in first.stderr
    stages = json.loads((tmp_path / "report" / "report.json").read_text())["stages"]
    assert "model+blip" in json.dumps(stages)
    (tmp_path / "captions.txt").write_text("a red circle\na blue bar\n")
    asked = ["--images", small_world.manifest.parent / "pictures", "--captions", tmp_path / "captions.txt", "--top-k", "2"]
    second = run(cache, "rerank", "--model", small_world.base, "--rerank", folder, *asked, "--output", tmp_path / "a.parquet")
    assert second.returncode == 0 and "no safetensors" not in second.stderr, second.stderr


@needs_hub_files
def test_the_hubs_own_files_with_random_weights_of_a_smaller_model(tmp_path: Path, noise) -> None:
    folder = tmp_path / "made"
    write_blip(folder, is_small=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["BlipForImageTextRetrieval"] and config["text_config"]["vocab_size"] == 30524
    scorer = load_scorer(str(folder), device="cpu")
    scores = scorer.score(noise(1), CAPTIONS)
    assert np.isfinite(scores).all() and len(set(scores.tolist())) == len(CAPTIONS)
    model = BlipForImageTextRetrieval(BlipConfig.from_pretrained(folder))
    model.load_state_dict(torch.load(folder / "pytorch_model.bin", weights_only=True))
    model.save_pretrained(folder)  # model.safetensors, which win
    (folder / "pytorch_model.bin").unlink()
    twin = load_scorer(str(folder), device="cpu")
    assert twin.fingerprint == scorer.fingerprint and np.array_equal(twin.score(noise(1), CAPTIONS), scores)


def test_hf_endpoint_is_asked_and_what_was_fetched_is_recorded(small_world: SmallWorld, tiny_blip: Path, tmp_path: Path) -> None:
    """A process of its own: both models by their ids, the second at a tag."""
    with serving() as hub:
        hub.publish("someone/siglip", small_world.base)
        hub.publish(HUB_ID, bin_folder(tiny_blip, tmp_path / "bin"), COMMITS[1], "v1")
        models = ["--model", "someone/siglip", "--rerank", f"{HUB_ID}@v1"]
        data = ["--data", small_world.manifest, "--split", "val", "--top-k", "2", "--output", tmp_path / "report"]
        done = run(tmp_path / "home", "eval", *models, *data, HF_ENDPOINT=hub.endpoint, HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["hub_revisions"] == {"someone/siglip": COMMITS[0], f"{HUB_ID}@v1": COMMITS[1]}
    assert f"someone/siglip at commit {COMMITS[0]}" in (tmp_path / "report" / "report.html").read_text()
