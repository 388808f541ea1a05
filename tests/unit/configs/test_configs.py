"""Every shipped configuration loads, with the published rates and a command in its comment."""

from pathlib import Path

import pytest
import yaml

from train.config.load import load_config, load_run_config, read_yaml
from train.config.reranker import RerankerConfig, is_reranker
from train.config.run import RunConfig

CONFIGS = Path(__file__).parents[3] / "configs"
JOBS = sorted(CONFIGS.glob("*.yaml"))
RERANKERS = [path for path in JOBS if is_reranker(read_yaml(path))]
LAUNCHES = sorted((CONFIGS / "accelerate").glob("*.yaml"))


def test_the_documented_configurations_are_there() -> None:
    assert {path.name for path in JOBS} >= {"demo.yaml", "siglip-base.yaml", "siglip-base-lora.yaml", "flickr8k-small.yaml"}
    assert {path.name for path in LAUNCHES} >= {"cpu-2.yaml", "multi-gpu.yaml"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_a_job_loads_with_a_comment_that_says_how_to_run_it(path: Path) -> None:
    config: RunConfig = load_run_config(RerankerConfig, path) if path in RERANKERS else load_config(path)
    assert config.name == path.stem
    assert f"./launch.sh configs/{path.name}" in path.read_text(encoding="utf-8") or path.name == "demo.yaml"


def test_the_tuning_of_the_demos_reranker_starts_from_what_the_demo_gives() -> None:
    assert [path.name for path in RERANKERS] == ["reranker-demo.yaml"]
    tuning, demo = load_run_config(RerankerConfig, CONFIGS / "reranker-demo.yaml"), load_config(CONFIGS / "demo.yaml")
    assert demo.rerank is not None
    assert tuning.miner == str(demo.run_folder / "export")
    assert (tuning.model.base, tuning.evaluation.top_k) == (demo.rerank.model, demo.rerank.top_k)
    assert (tuning.data.source, tuning.data.columns) == (demo.data.source, demo.data.columns)


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.name)
def test_a_launch_file_is_one_that_accelerate_knows(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes >= 2
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["compute_environment"] == "LOCAL_MACHINE"


def test_base_configurations_use_the_published_rates() -> None:
    full, lora = load_config(CONFIGS / "siglip-base.yaml"), load_config(CONFIGS / "siglip-base-lora.yaml")
    assert full.model.base == lora.model.base == "google/siglip-base-patch16-224"
    assert 1e-6 <= full.train.learning_rate <= 1e-5
    assert lora.train.learning_rate == 5e-5
    assert lora.model.lora is not None
    assert (lora.model.lora.rank, lora.model.lora.alpha) == (16, 32)
    two = load_config(CONFIGS / "siglip2-base.yaml")
    assert two.model.base == "google/siglip2-base-patch16-224" and not two.model.strip_punctuation
    assert two.train == full.train and two.mining == full.mining
    for config in (full, lora, two):
        assert config.rerank is not None
        assert config.rerank.model == "Salesforce/blip-itm-base-coco"
        assert (config.train.betas, config.train.epsilon, config.train.weight_decay) == ((0.9, 0.95), 1e-6, 1e-4)
        assert config.train.num_warmup_steps >= 50
