"""The model card: what it says of a run's figures, that the hub reads its metadata, and that its examples run as they stand."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from pydantic import ValidationError

from eval.encoder.checkpoint import load_inputs, load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.manifest.formats import hub
from tests.export_checks import CARD_CAPTIONS, card_examples
from tests.hub_server import COMMITS, go_online, serving
from tests.small_job import SmallWorld, load
from train.config.export import ExportConfig
from train.config.job import JobConfig
from train.engine.card import Base, data_name, data_words, front_matter, shown_name
from train.engine.checkpoint import State
from train.model.siglip import TunedModel
from train.siglip.card import model_card
from train.siglip.export import export_model

TRAIN = {"max_steps": 90, "batch_size": 8, "learning_rate": 1, "eval_every_steps": 1, "checkpoint_every_steps": 1}
STATE = State(step=90, evaluated=True, best_step=40, best_score=0.5, base_sha256="f" * 64, data_sha256="d" * 64)


def job(base: str = "google/siglip-base-patch16-224", source: str = "birds.csv", **keys: Any) -> JobConfig:
    record = {"name": "birds", "model": {"base": base}, "data": {"source": source}, "train": TRAIN}
    return JobConfig.model_validate(record | keys)


inputs_of = cache(load_inputs)


def card_of(world: SmallWorld, config: JobConfig, state: State, step: int, **more: Any) -> str:
    return model_card(config, state, step, inputs_of(str(world.base)), **more)


def figures(low: float, value: float, high: float) -> dict[str, Any]:
    names = ("R@1", "R@5")
    one = dict.fromkeys(names, value) | {"ci95": {name: [low, high] for name in names}}
    return {"image_to_text": one, "text_to_image": one}


def row(stage: str, against: str, delta: float, verdict: str) -> dict[str, Any]:
    found = {"stage": stage, "against": against, "direction": "both", "metric": "R@1", "delta": delta, "verdict": verdict}
    return found | {"ci95": [delta - 0.1, delta + 0.1]}


REPORT = {
    "data": {"source": "birds.csv", "split": "test", "num_images": 1200, "num_captions": 2400, "sha256": "e" * 64},
    "stages": {
        "base": figures(0.2, 0.25, 0.3),
        "tuned": figures(0.35, 0.4012, 0.45),
        "other": figures(0.1, 0.11, 0.12),
        "tuned+blip": figures(0.8, 0.9, 1.0) | {"cost": {"top_k": 16}},
    },
    "comparisons": [
        row("tuned", "base", 0.15, "better"),
        row("tuned+blip", "tuned", 0.5, "better"),
        row("tuned", "other", 0.3, "better"),
        row("tuned", "base", 0.15, "better") | {"direction": "image_to_text"},
    ],
    "watch": [
        {
            "name": "past",
            "stages": {"base": figures(0.5, 0.6, 0.7), "tuned": figures(0.3, 0.4, 0.5)},
            "comparisons": [row("tuned", "base", -0.2, "worse")],
        }
    ],
}


def test_the_figures_are_the_reports_and_the_hub_reads_them(small_world: SmallWorld) -> None:
    card = card_of(small_world, job(), STATE, 40, report=REPORT)
    assert "| base | image to text | 25.00 [20.00, 30.00] | 25.00 [20.00, 30.00] |" in card
    assert "| tuned | text to image | 40.12 [35.00, 45.00] | 40.12 [35.00, 45.00] |" in card
    assert "| tuned against base | +15.00 | [+5.00, +25.00] | better |" in card
    assert "| tuned+blip against tuned | +50.00 | [+40.00, +60.00] | better |" in card
    assert (
        "`tuned+blip`: the first 16 reranked by a cross-encoder." in card
        and "other" not in card.partition("## Results")[2].partition("## What")[0]
    )
    assert "- watch past: mean R@1 60.00 -> 40.00, -20.00 [-30.00, -10.00]: forgotten\n" in card
    assert "split `test`: 1,200 images, 2,400 captions" in card and "e" * 16 in card

    data = ModelCard(card).data
    assert (data.model_name, data.base_model, data.base_model_relation) == ("birds", "google/siglip-base-patch16-224", "finetune")
    assert data.pipeline_tag == "zero-shot-image-classification" and "license" not in data.to_dict() and "language" not in data.to_dict()
    assert data.eval_results is not None
    found = {result.metric_name: (result.metric_value, result.metric_args) for result in data.eval_results}
    assert found == {
        f"{direction} {metric}": (40.12, {"ci95": [35.0, 45.0]})
        for direction in ("image to text", "text to image")
        for metric in ("R@1", "R@5")
    }
    assert {(one.dataset_split, one.dataset_type, one.task_type) for one in data.eval_results} == {
        ("test", "birds.csv", "image-text-retrieval")
    }


def test_without_a_report_it_claims_nothing(small_world: SmallWorld) -> None:
    card = card_of(small_world, job(), STATE, 40)
    assert "None: no final report on these very weights is there" in card and ModelCard(card).data.eval_results is None
    assert "Not measured: no retention set" in card


def test_data_of_the_hub_are_named_by_their_id(small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hub._COMMITS, "some/birds:small@v2", "c" * 40)
    data = ModelCard(card_of(small_world, job(source="some/birds:small@v2"), STATE, 40)).data
    assert data.datasets == ["some/birds"]
    report = REPORT | {"data": REPORT["data"] | {"source": "some/birds:small", "revision": "c" * 40}}
    results = ModelCard(card_of(small_world, job(source="some/birds:small"), STATE, 40, report=report)).data.eval_results
    assert results is not None
    assert {(one.dataset_type, one.dataset_config, one.dataset_revision) for one in results} == {("some/birds", "small", "c" * 40)}


@pytest.mark.parametrize(("step", "words"), [(0, "that it began with"), (90, "of step 90 all the same")])
def test_that_nothing_was_won_comes_first(small_world: SmallWorld, step: int, words: str) -> None:
    state = State(step=90, evaluated=True, best_step=0, best_score=0.2661, base_sha256="f" * 64, data_sha256="d" * 64)
    card = card_of(small_world, job(), state, step, report=REPORT)
    first = card.partition("# birds\n\n")[2].splitlines()[0]
    assert first == f"**No checkpoint of this run beat its base on val (mean R@1 26.61); the export holds the weights {words}.**"
    begun = job(train=TRAIN | {"begin_at": "/data/runs/old/checkpoints/step-7"})
    assert "beat the checkpoint it began at on val" in card_of(small_world, begun, state, step)
    assert "No checkpoint" not in card_of(small_world, job(), STATE, 40)
    unmeasured = State(step=90, evaluated=True, base_sha256="f" * 64, data_sha256="d" * 64)
    assert "No checkpoint" not in card_of(small_world, job(), unmeasured, 90)


def test_no_path_is_left(small_world: SmallWorld, tmp_path: Path) -> None:
    (tmp_path / "blip").mkdir()
    (tmp_path / "pairs.jsonl").write_text("")
    here = str(tmp_path)
    config = job(
        base=str(small_world.base),
        source=f"{here}/pairs.jsonl",
        runs_folder=f"{here}/runs",
        rerank={"model": f"{here}/blip"},
        mining={"mine_every_steps": 5, "denoise": {"model": f"{here}/blip", "threshold": 0.5}, "pool": f"{here}/pool.parquet"},
        watch=[{"name": "past", "source": f"{here}/old.jsonl"}],
        choices=[f"{here}/choices.jsonl"],
        train=TRAIN | {"begin_at": f"{here}/runs/old/checkpoints/step-7"},
    )
    report = REPORT | {"data": REPORT["data"] | {"source": f"{here}/pairs.jsonl"}}
    card = card_of(small_world, config, STATE, 40, report=report)
    assert here not in card and str(small_world.base.parent) not in card
    for words in (
        "`base` (weights ffff",
        "`pairs.jsonl` (sha256 dddd",
        "looked at by the cross-encoder `blip`",
        "- Began at: `old, step 7`",
    ):
        assert words in card
    assert '"train.learning_rate": 1.0' in card and '"mining.denoise.threshold": 0.5' in card


@pytest.mark.parametrize(
    ("front", "licence", "named"),
    [
        ("license: apache-2.0\nbase_model: google/siglip-base-patch16-224\n", "apache-2.0", "`apache-2.0`"),
        ("license: other\nlicense_name: birds-1.0\nlicense_link: LICENSE\n", "other", "`birds-1.0`"),
        ("license: [a, b]\n", None, "not known"),
        ('license: "`x`\\n# A heading"\n', None, "not known"),
        ("license: *nothing\n", None, "not known"),
        (None, None, "not known"),
    ],
)
def test_the_licence_is_the_bases_or_said_to_be_unknown(
    small_world: SmallWorld, tmp_path: Path, front: str | None, licence: str | None, named: str
) -> None:
    (tmp_path / "config.json").write_text("{}")
    if front is not None:
        (tmp_path / "README.md").write_text(f"---\n{front}---\n\n# Birds\n")
    card = card_of(small_world, job(base=str(tmp_path)), STATE, 40)
    data = ModelCard(card).data
    assert data.to_dict().get("license") == licence and f"- Licence: {named}" in card
    assert data.base_model == ("google/siglip-base-patch16-224" if front is not None and "base_model" in front else None)
    assert data.to_dict().get("license_name") == ("birds-1.0" if licence == "other" else None)


def test_the_licence_of_a_base_of_the_hub_is_read_from_its_card(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is fetched with the model's small files, and is there when the hub is not."""
    shutil.copytree(small_world.base, tmp_path / "repository")
    (tmp_path / "repository" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    with serving() as served:
        go_online(monkeypatch, served.endpoint, tmp_path / "cache")
        served.publish("someone/siglip", tmp_path / "repository")
        load_inputs("someone/siglip")
    card = card_of(small_world, job("someone/siglip"), STATE, 40)
    assert ModelCard(card).data.license == "apache-2.0" and f"`someone/siglip (commit {COMMITS[0]} of the hub)`" in card


def test_several_bases_have_a_licence_only_where_it_is_the_same(tmp_path: Path) -> None:
    for name, licence in (("a", "mit"), ("b", "mit"), ("c", "apache-2.0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\nbase_model: [x/{name}, x/y]\n---\n")
    assert Base.of_all([str(tmp_path / "a"), str(tmp_path / "b")]) == Base(("x/a", "x/y", "x/b"), {"license": "mit"})
    assert Base.of_all([str(tmp_path / "a"), str(tmp_path / "c")]).licence == {}
    card = tmp_path / "a" / "README.md"
    assert front_matter(card) == {"license": "mit", "base_model": ["x/a", "x/y"]} and front_matter(tmp_path / "none") == {}


def test_a_name_is_a_hub_id_or_that_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "one").mkdir(parents=True)
    assert [shown_name(name) for name in ("models/one", "models/two", "./models/one/", "runs/x/export")] == [
        "one",
        "models/two",
        "one",
        "x",
    ]


@pytest.fixture(scope="module")
def album(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with its card, and a folder of pictures in it."""
    export = tmp_path_factory.mktemp("album") / "export"
    tuned = TunedModel(*load_siglip(small_world.base), "0")
    export_model(tuned, export, model_card(job(str(small_world.base)), STATE, 40, tuned.inputs))
    (export / "pictures").symlink_to(small_world.manifest.parent / "pictures")
    return export


def test_its_search_runs_as_it_stands(
    album: Path, small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(album)
    exec(compile(card_examples(album)[0], "the card", "exec"), {})
    printed = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    (model, inputs), sets = load_siglip(album), [load(small_world.manifest, split) for split in ("train", "val", "test")]
    (sentence,) = embed_captions(model, inputs, ["a red kite over a beach"])
    cosines = {
        image: cosine for one in sets for image, cosine in zip(one.image_ids, embed_images(model, inputs, one) @ sentence, strict=True)
    }
    best = sorted(cosines.values(), reverse=True)[:5]
    assert [float(cosine) for cosine, _ in printed] == pytest.approx(best, abs=6e-5) and len(printed) == 5
    for cosine, path in printed:
        assert cosines[path] == pytest.approx(float(cosine), abs=6e-5)


def test_its_sentences_are_embedded_as_they_stand(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    names: dict[str, Any] = {}
    exec(compile(card_examples(album)[1], "the card", "exec"), names)
    expected = embed_captions(*load_siglip(album), CARD_CAPTIONS)
    np.testing.assert_allclose(names["embeddings"], expected, atol=1e-5, rtol=0)


def test_the_card_says_how_it_was_made(small_world: SmallWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    train = {"max_steps": 90, "batch_size": 8, "learning_rate": 1, "eval_every_steps": 1, "checkpoint_every_steps": 1}
    model = {"base": "google/siglip-base-patch16-224", "lora": {"rank": 3}, "freeze": ["text"]}
    record = {"name": "birds", "model": model, "data": {"source": "birds.csv"}, "train": train, "mining": {"mine_every_steps": 7}}
    config = JobConfig.model_validate(record)
    state = State(step=90, evaluated=True, best_step=40, best_score=0.5, base_sha256="f" * 64, data_sha256="d")
    card = card_of(small_world, config, state, 40)
    for words in (
        "base_model: google/siglip-base-patch16-224\n",
        "# birds\n",
        "LoRA (rank 3), merged, frozen: text",
        "step 40 of 90 (mean R@1 on val 50.00)",
        "every 7 steps",
        '"max_length"',
        "`birds.csv` (sha256 d)",
        "base_model_relation: finetune\n",
    ):
        assert words in card
    monkeypatch.setitem(hub._COMMITS, "birds.csv", "c" * 40)
    assert f"- Data: `birds.csv` (commit {'c' * 40} of the hub) (sha256 d), split `train`.\n" in card_of(small_world, config, state, 40)
    other = card_of(small_world, config, state, 90)
    assert "mean R@1" not in other  # the score is another step's


def test_the_languages_that_are_named_are_in_the_card(small_world: SmallWorld) -> None:
    card = card_of(small_world, job(export={"language": ["de", "pt-BR"]}), STATE, 40)
    assert ModelCard(card).data.language == ["de", "pt-BR"] and "those of its captions: de, pt-BR." in card
    plain = card_of(small_world, job(), STATE, 40)
    assert ModelCard(plain).data.language is None and "they were not looked at" in plain
    with pytest.raises(ValidationError, match="expected codes of languages such as en or pt-BR; found 'English'"):
        ExportConfig(language=["English"])


def test_a_path_of_two_parts_is_no_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its file is there still or not; what was read of the hub, here or earlier, is one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert data_name("photos/birds") == "birds" and data_words("photos/birds", "d" * 64) == f"`birds` (sha256 {'d' * 16})"
    (tmp_path / "cache" / "datasets--photos--birds").mkdir(parents=True)
    assert data_name("photos/birds") == "photos/birds"
    (tmp_path / "photos" / "birds").mkdir(parents=True)
    assert data_name("photos/birds") == "birds"
    monkeypatch.setitem(hub._COMMITS, "owner/name", "c" * 40)
    assert data_name("owner/name") == "owner/name"


def test_the_card_claims_mined_negatives_only_for_weights_that_saw_some(small_world: SmallWorld, tmp_path: Path) -> None:
    train = {"max_steps": 90, "batch_size": 8, "learning_rate": 1, "eval_every_steps": 1, "checkpoint_every_steps": 1}
    record: dict[str, Any] = {"name": "birds", "runs_folder": str(tmp_path), "model": {"base": "b"}, "data": {"source": "birds.csv"}}
    config = JobConfig.model_validate(record | {"train": train, "mining": {"start_step": 40, "mine_every_steps": 7}})
    none, claimed = "mined negatives: none.", "mined negatives: up to 4 hard captions per image, refreshed every 7 steps."
    state = State(step=90, num_metrics_lines=3, evaluated=True, best_step=40, best_score=0.5, base_sha256="f" * 64, data_sha256="d")
    assert claimed in card_of(small_world, config, state, 41) and "- Mining" not in card_of(
        small_world, config, state, 41
    )  # as of runs without metrics.jsonl
    assert none in card_of(small_world, config, state, 40) and "- Mining: No step of this checkpoint (step 40)" in card_of(
        small_world, config, state, 40
    )

    mined = {"event": "mining", "num_images": 100, "num_relabelled": 0, "filtered_out": {"known_positive": 5, "margin": 800}}
    lines = [{"event": "start", "step": 0}, mined | {"step": 40, "num_mined": 0}, mined | {"step": 47, "num_mined": 60}]
    (tmp_path / "birds").mkdir()
    later = mined | {"step": 54, "num_mined": 400}  # of a future that did not happen
    (tmp_path / "birds" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*lines, later)))
    assert none in card_of(small_world, config, state, 47) and "nothing had been mined before it" in card_of(small_world, config, state, 47)
    assert claimed in card_of(small_world, config, state, 48)
    assert "- Mining: Mining found 0.30 captions an image on average, of 4 asked for" in card_of(small_world, config, state, 48)
