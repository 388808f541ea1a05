"""train/config/run.py: every fault at once, in words that say the remedy; every key documented."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from train.config import evaluation as evaluation_config
from train.config import job as job_config
from train.config import mining as mining_config
from train.config import model as model_config
from train.config import run as config
from train.config.job import JobConfig, TrainConfig
from train.config.load import ConfigError, load_config
from train.config.mining import DenoiseConfig
from train.config.reference import schema_of

ROOT = Path(__file__).parents[4]
GOOD: dict[str, Any] = {
    "name": "job",
    "model": {"base": "somewhere"},
    "data": {"source": "pairs.csv"},
    "train": {"max_steps": 1000, "batch_size": 8, "learning_rate": 1e-4, "eval_every_steps": 5, "checkpoint_every_steps": 5},
}


def write(folder: Path, record: Any) -> Path:
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(record), encoding="utf-8")
    return path


def changed(**changes: Any) -> dict[str, Any]:
    """GOOD with `section__key=value`."""
    record = yaml.safe_load(yaml.safe_dump(GOOD))
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = record
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return record


def refusal(folder: Path, record: Any, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, record), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_good_one_has_the_documented_defaults(tmp_path: Path) -> None:
    loaded = load_config(write(tmp_path, GOOD))
    assert (loaded.seed, loaded.mining, loaded.rerank, loaded.wandb) == (0, None, None, None)
    assert (loaded.data.train_split, loaded.data.val_split, loaded.data.test_split) == ("train", "val", "test")
    assert loaded.train.betas == (0.9, 0.95) and loaded.train.max_grad_norm == 1.0
    assert loaded.run_folder == Path("runs/job")


def test_a_limit_that_limits_nothing_is_refused(tmp_path: Path) -> None:
    limit = {"model": "x", "adaptive_max_loss": 0.01}
    assert "rerank: adaptive_max_loss does nothing without adaptive" in refusal(tmp_path, changed(rerank=limit))
    assert load_config(write(tmp_path, changed(rerank=limit | {"adaptive": True}))).rerank is not None


def test_where_pair_scores_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, changed(rerank__model="blip", runs_folder="elsewhere"))
    assert load_config(path).pair_scores_folder == Path("elsewhere/pair-scores")
    assert load_config(path, ["rerank.pair_scores=here"]).pair_scores_folder == Path("here")
    for word in ("false", "off"):  # YAML's off is false
        assert load_config(path, [f"rerank.pair_scores={word}"]).pair_scores_folder is None
    assert load_config(write(tmp_path, GOOD)).pair_scores_folder is None
    assert "rerank.pair_scores" in refusal(tmp_path, changed(rerank__model="blip", rerank__pair_scores=True))


def test_a_resolved_record_of_any_form_is_a_good_one(tmp_path: Path) -> None:
    """A run writes its configuration with every default in it, and its export reads that."""
    for form in ("columns", "images", "neighbours"):
        loaded = load_config(write(tmp_path, changed(mining={"mine_every_steps": 5, "form": form})))
        assert JobConfig.model_validate(loaded.model_dump(mode="json")) == loaded


def test_every_fault_is_named_at_once_with_the_nearest_key(tmp_path: Path) -> None:
    record = changed(train__learning_rat=1e-4, train__batch_size="many", model__freeze=["tail"], mining__mine_every_step=3, naem="x")
    del record["train"]["learning_rate"]
    message = refusal(tmp_path, record)
    for line in (
        "train.learning_rat: unknown key; did you mean learning_rate?",
        "train.learning_rate: missing",
        "train.batch_size: ",
        "found 'many'",
        "model.freeze.0: ",
        "mining.mine_every_step: unknown key; did you mean mine_every_steps?",
        "naem: unknown key; did you mean name?",
    ):
        assert line in message
    assert "6 fault(s)" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__scratch": {}}, "exactly one of base"),
        ({"model": {}}, "exactly one of base"),
        ({"model": {"scratch": {}, "lora": {}}}, "random weights cannot be frozen"),
        ({"model": {"scratch": {"image_size": 30, "patch_size": 16}}}, "does not divide image_size 30"),
        ({"model": {"scratch": {"width": 100}}}, "num_heads 3 does not divide width 100"),
        ({"model__freeze": ["image", "text"], "model__lora": {}}, "nothing to adapt"),
        ({"train__warmup_steps": 1000}, "leaves nothing of max_steps"),
        ({"train__betas": [0.9, 1.0]}, "betas lie in [0, 1)"),
        ({"train__batch_size": 1}, "train.batch_size"),
        ({"train__precision": "fp8"}, "train.precision"),
        ({"train__ema_decay": 1.0}, "train.ema_decay: Input should be less than 1; found 1.0"),
        ({"train__ema_decay": 0}, "train.ema_decay: Input should be greater than 0; found 0"),
        ({"train__ema_decay": False}, "write null for no such rule"),
        ({"train__ema": 0.99}, "train.ema: unknown key; did you mean ema_decay?"),
        ({"train__optimizer": "muon", "train__shard": True}, "it does not go with train.shard"),
        ({"train__optimizer": "muon", "model__lora": {}}, "it does not go with model.lora"),
        ({"train__optimizer": "muon", "model__freeze": ["image", "text"]}, "train.optimizer muon has no matrix to move"),
        ({"train__optimizer": "lion"}, "train.optimizer: Input should be 'adamw' or 'muon'; found 'lion'"),
        ({"train__layer_decay": 0}, "train.layer_decay: Input should be greater than 0; found 0"),
        ({"train__layer_decay": 1.1}, "train.layer_decay: Input should be less than or equal to 1; found 1.1"),
        ({"train__layer_decay": 0.75, "model__freeze": ["image", "text"]}, "train.layer_decay has no layer to act on"),
        ({"train__llrd": 0.75}, "train.llrd: unknown key; did you mean layer_decay?"),
        ({"watch": [{"name": "a", "source": "s"}, {"name": "a", "source": "t"}]}, "a name of its own, found ['a', 'a']"),
        ({"watch": [{"name": "../a", "source": "s"}]}, "watch.0.name"),
        ({"watch": [{"name": "a", "source": "s", "on_dro": "bar"}]}, "watch.0.on_dro: unknown key; did you mean on_drop?"),
        ({"watch": [{"name": "a", "source": "s", "on_drop": "stop"}], "data__val_split": None}, "without data.val_split there is none"),
        ({"data__train_split": None}, "must be null too"),
        ({"mining": {"mine_every_steps": 5, "start_step": 1000}}, "lies beyond train.max_steps"),
        ({"mining": {"mine_every_steps": 5, "negatives_per_image": 65}}, "exceeds pool_top_k 64"),
        ({"mining": {"mine_every_steps": 5, "form": "images", "weight": 0.5}}, "so weight would do nothing"),
        (
            {"mining": {"mine_every_steps": 5, "form": "neighbours", "weight": 2.0, "mined_scope": "all"}},
            "weight and mined_scope would do nothing",
        ),
        ({"mining": {"mine_every_steps": 5, "form": "neighbours", "pool": "more.txt"}}, "so pool would do nothing"),
        ({"mining": {"mine_every_steps": 5, "form": "images", "negatives_per_image": 8}}, "do not fit into train.batch_size 8"),
        ({"mining": {"mine_every_steps": 5, "ensemble": ["x"]}}, "mining: ensemble was removed, as no result showed that it helps"),
        ({"mining": {"mine_every_steps": 5, "mine_every_epochs": 1}}, "exactly one of mine_every_steps and mine_every_epochs"),
        ({"mining": {"mine_every_steps": 5, "rank_max": 65}}, "rank_max 65 lies beyond pool_top_k 64"),
        ({"mining": {"mine_every_steps": 5, "rank_min": 9, "rank_max": 11}}, "are 3 captions, fewer than negatives_per_image 4"),
        ({"mining": {"mine_every_steps": 5, "rank_min": 62}}, "ranks 62 (rank_min) to 64"),
        ({"mining": {"mine_every_steps": 5, "temperature": 2.0}}, "temperature does nothing in selection top"),
        ({"mining": {"mine_every_steps": 5, "selection": "random", "temperature": 2.0}}, "does nothing in selection random"),
        ({"mining": {"mine_every_steps": 5, "selection": "softmax", "temperature": 0}}, "mining.temperature"),
        ({"mining": {"mine_every_steps": 5, "perc_pos": 1.5}}, "mining.perc_pos"),
        ({"mining": {"mine_every_steps": 5, "max_uses": 0}}, "mining.max_uses"),
        ({"mining": {"mine_every_steps": 5, "denoise": {}}}, "give mining.denoise.model or rerank.model"),
        ({"mining": {"mine_every_steps": 5, "denoise": {"model": "m", "threshold": 1.0}}}, "mining.denoise.threshold"),
        ({"mining": {"mine_every_steps": 5, "denoise": {"model": "m", "relabel_threshold": 0.9}}}, "does nothing in mode drop"),
        (
            {"mining": {"mine_every_steps": 5, "denoise": {"model": "m", "mode": "relabel", "threshold": 0.4, "relabel_threshold": 0.3}}},
            "relabel_threshold 0.3 lies below threshold 0.4",
        ),
        ({"mining": {"mine_every_steps": 5, "distil": {}}}, "give mining.distil.model or rerank.model"),
        ({"mining": {"mine_every_steps": 5, "distil": {"model": "m", "strength": 0}}}, "mining.distil.strength"),
        ({"mining": {"mine_every_steps": 5, "distil": {"model": "m", "strength": 1.1}}}, "mining.distil.strength"),
        ({"mining": {"mine_every_steps": 5, "distil": {"model": "m", "temperature": 0}}}, "mining.distil.temperature"),
        ({"mining": {"mine_every_steps": 5, "distil": {"model": "m", "form": "columns"}}}, "mining.distil.form"),
        ({"mining": {"mine_every_steps": 5, "distil": {"model": "m"}, "form": "images"}}, "no columns to the loss, so distil would do"),
        ({"mining": {"mine_every_steps": 5, "distil": {"model": "m"}, "form": "neighbours"}}, "so distil would do nothing"),
        (
            {"mining": {"mine_every_steps": 5, "distil": {"model": "m"}, "denoise": {"model": "n"}}},
            "mining.denoise asks n and mining.distil m: a pair is scored once",
        ),
        (
            {"mining": {"mine_every_steps": 5, "distil": {"model": "m"}, "denoise": {}}, "rerank": {"model": "n"}},
            "mining.denoise asks n and mining.distil m: a pair is scored once",
        ),
        ({"mining": {"mine_every_steps": 5, "ranking": {}, "form": "images"}}, "so ranking would do nothing"),
        ({"mining": {"mine_every_steps": 5, "ranking": {}, "mined_scope": "all"}}, "ranking takes the place of mined_scope: all"),
        (
            {"mining": {"mine_every_steps": 5, "ranking": {}, "distil": {"model": "m"}, "denoise": {"model": "m", "mode": "relabel"}}},
            "ranking takes the place of distil and denoise.mode: relabel",
        ),
        (
            {"mining": {"mine_every_steps": 5, "ranking": {}}, "train__captions_per_image": 2},
            "train.captions_per_image 2: mining.ranking takes one caption of an image",
        ),
        ({"mining": {"mine_every_steps": 5, "ranking": {"temperature": 0}}}, "mining.ranking.temperature"),
        ({"name": "../elsewhere"}, "name"),
        ({"name": ""}, "name"),
        ({"seed": -1}, "seed"),
    ],
)
def test_values_that_contradict_one_another_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refusal(tmp_path, changed(**changes))


def test_overrides_replace_add_and_remove(tmp_path: Path) -> None:
    path = write(tmp_path, changed(mining__mine_every_steps=5))
    loaded = load_config(path, ["train.learning_rate=5e-4", "model.lora.rank=4", "mining=null", "data.columns={caption: text}", "name=b"])
    assert loaded.train.learning_rate == 5e-4 and loaded.model.lora is not None and loaded.model.lora.rank == 4
    assert loaded.mining is None and loaded.data.columns == {"caption": "text"} and loaded.name == "b"


@pytest.mark.parametrize("override", ["train.max_steps", "=3", "train..max_steps=3", "name.first=3", "seed=[1"])
def test_an_override_that_cannot_be_applied_is_quoted(tmp_path: Path, override: str) -> None:
    assert repr(override) in refusal(tmp_path, GOOD, override)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", ""])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="job.yaml"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")


def test_a_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    first = load_config(write(tmp_path, changed(model__lora={}, mining__mine_every_steps=5, wandb={})))
    again = load_config(write(tmp_path, first.model_dump(mode="json")))
    assert again == first


def test_warm_up_is_at_least_50_steps_but_at_most_a_tenth(tmp_path: Path) -> None:
    def warm(max_steps: int, warmup: int | None = None) -> int:
        return TrainConfig(**{**GOOD["train"], "max_steps": max_steps, "warmup_steps": warmup}).num_warmup_steps

    assert [warm(100), warm(1000), warm(10_000), warm(5), warm(100, 7), warm(100, 0)] == [10, 50, 400, 0, 7, 0]


def test_every_key_is_documented_and_the_schema_is_printed() -> None:
    modules = (config, job_config, model_config, evaluation_config, mining_config)
    kinds = {kind for module in modules for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, BaseModel)}
    sections = {kind for kind in kinds if kind.__module__ in {module.__name__ for module in modules}}
    assert len(sections) >= 15, "else they are written elsewhere, and not looked at here"
    undocumented = {f"{kind.__name__}.{name}" for kind in sections for name, field in kind.model_fields.items() if not field.description}
    # The sections speak for themselves; everything else has its sentence.
    assert undocumented == {f"JobConfig.{name}" for name in ("model", "train", "mining", "rerank", "evaluation")}
    printed = subprocess.run([sys.executable, "-m", "train.config"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == json.loads(json.dumps(schema_of(JobConfig)))
    assert json.loads(printed)["additionalProperties"] is False


def test_the_matcher_is_mining_denoise_model_or_else_the_reranker(tmp_path: Path) -> None:
    mining = {"mine_every_epochs": 1, "denoise": {"mode": "relabel"}}
    assert load_config(write(tmp_path, changed(mining=mining, rerank={"model": "blip"}))).cross_encoder_model == "blip"
    own = mining | {"denoise": {"model": "other"}}
    assert load_config(write(tmp_path, changed(mining=own, rerank={"model": "blip"}))).cross_encoder_model == "other"
    assert load_config(write(tmp_path, changed(mining={"mine_every_steps": 1}, rerank={"model": "blip"}))).cross_encoder_model is None


def test_distillation_asks_what_denoising_asks_or_its_own_or_the_reranker(tmp_path: Path) -> None:
    def asked(**changes: Any) -> str | None:
        changes["mining"] = {"mine_every_epochs": 1} | changes["mining"]
        return load_config(write(tmp_path, changed(**changes))).cross_encoder_model

    assert asked(mining={"distil": {}}, rerank={"model": "blip"}) == "blip"
    assert asked(mining={"distil": {"model": "own"}}, rerank={"model": "blip"}) == "own"
    assert asked(mining={"distil": {}, "denoise": {"model": "other"}}, rerank={"model": "blip"}) == "other"
    assert asked(mining={"distil": {"model": "other"}, "denoise": {"model": "other"}}) == "other"
    assert asked(mining={"distil": {"model": "blip"}, "denoise": {}}, rerank={"model": "blip"}) == "blip"


@pytest.mark.parametrize(("keys", "relabel_at"), [({}, None), ({"mode": "relabel"}, 0.9), ({"mode": "relabel", "threshold": 0.95}, 0.95)])
def test_where_relabelling_begins(keys: dict[str, Any], relabel_at: float | None) -> None:
    assert DenoiseConfig.model_validate({"model": "m"} | keys).relabel_at == relabel_at


@pytest.mark.parametrize("value", [".nan", ".inf"])
@pytest.mark.parametrize("key", ["mining.margin", "mining.max_score", "train.learning_rate"])
def test_what_is_not_finite_is_no_number(tmp_path: Path, key: str, value: str) -> None:
    """Every comparison with it is False: such a rule would look set and do nothing."""
    assert "finite number" in refusal(tmp_path, changed(mining={"mine_every_steps": 1}), f"{key}={value}")
