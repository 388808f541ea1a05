"""`python -m eval` with an ensemble and expanded queries: mismatched members, choices on val, refusals, two processes as one."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.__main__ import parse, run
from eval.encoder.checkpoint import load_siglip
from eval.encoder.encoder import embed_captions, embed_images
from eval.errors import UserError, named
from eval.execution import Execution
from eval.processes import Processes
from eval.search.ranking import DIRECTIONS
from rerank.asked import OPTIONS, read_plan
from rerank.combine.embedded_sets import EmbeddedSets
from rerank.combine.views import EnsembleMember, Views
from rerank.reorder.plan import Plan
from tests.nursery import Nursery
from tests.siglip2 import write_siglip2
from tests.small_job import SmallWorld, load
from tests.unit.rerank.combine.ensemble_oracle import ensemble_scores, ranks_of
from train.config.model import ScratchConfig
from train.model.random_init import write_scratch

WIDER = ScratchConfig(image_size=24, patch_size=8, width=48, num_layers=1, num_heads=2, vocab_size=80, num_tokens=16)
SYNONYMS = "red: crimson\nblue: azure, navy\ncircle: disc\nat the left: on the left\n"


@pytest.fixture(scope="module")
def other(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member of another image size, patch grid, tokenizer, text length, depth and embedding width, and another scale and bias."""
    folder = tmp_path_factory.mktemp("other") / "wider"
    write_scratch(folder, WIDER, load(small_world.manifest), seed=2)
    tensors = load_file(folder / "model.safetensors")
    for name, value in (("logit_scale", 3.5), ("logit_bias", -7.0)):
        tensors[name] = torch.full_like(tensors[name], value)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def synonyms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("words") / "synonyms.txt"
    path.write_text(SYNONYMS, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def asked(small_world: SmallWorld, other: Path, synonyms: Path) -> list[str]:
    """Everything chosen on val."""
    models = ["--model", str(small_world.base), "--ensemble", str(other), "--combine", "logits,reciprocal-rank"]
    expansions = ["--expand", f"synonyms:{synonyms}", "--expand", "flips", "--pooling", "mean,max", "--choose-on", "val"]
    return [*models, *expansions, "--data", str(small_world.manifest), "--split", "test", "--num-workers", "0"]


@pytest.fixture(scope="module")
def chosen(asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chosen") / "report"
    run(parse([*asked, "--output", str(folder)]), Processes(), torch.device("cpu"))
    return folder


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def ranks(folder: Path, stage: str, direction: str) -> list[int]:
    rows = pq.read_table(folder / "queries.parquet").to_pylist()
    return [row["rank"] for row in rows if row["stage"] == stage and row["direction"] == direction]


def plain_member(checkpoint: Path, manifest: Path, split: str) -> EnsembleMember:
    model, inputs = load_siglip(str(checkpoint))
    dataset = load(manifest, split)
    images, captions = embed_images(model, inputs, dataset), embed_captions(model, inputs, dataset.captions)
    scale, bias = float(model.logit_scale.detach().exp()), float(model.logit_bias.detach())
    return EnsembleMember(Views.plain(images), Views.plain(captions), scale, bias, torch.device("cpu"))


def test_all_arms_stand_in_one_report(chosen: Path) -> None:
    record = report(chosen)
    expanded = [f"{target}+{name}" for name in ("synonyms", "flips") for target in ("model", "ensemble")]
    assert list(record["stages"]) == ["model", "model-2", "ensemble", *expanded]
    compared = {(row["stage"], row["against"]) for row in record["comparisons"]}
    assert compared == {("model-2", "model"), ("ensemble", "model"), ("ensemble", "model-2")} | {
        (f"{target}+{name}", target) for name in ("synonyms", "flips") for target in ("model", "ensemble")
    }
    assert [one["stage"] for one in record["expansion"]] == expanded and len(record["ensemble"]) == 1
    for one in (*record["ensemble"], *record["expansion"]):
        assert one["chosen_on"]["split"] == "val" and one["curve"]


def test_the_ensemble_is_what_was_best_on_val_and_equals_dense_scores(chosen: Path, small_world: SmallWorld, other: Path) -> None:
    (ensemble,) = report(chosen)["ensemble"]
    points = {(point["combination"], *point["weights"]): point["R@1"]["both"] for point in ensemble["curve"]}
    assert len(points) == len(ensemble["curve"]) == 2 * 21
    assert points[ensemble["combination"], *ensemble["weights"]] == pytest.approx(max(points.values()), abs=1e-12)
    members = [plain_member(checkpoint, small_world.manifest, "test") for checkpoint in (small_world.base, other)]
    dataset = load(small_world.manifest, "test")
    active = [(member, weight) for member, weight in zip(members, ensemble["weights"], strict=True) if weight > 0]
    for direction in DIRECTIONS:
        members, weights = [member for member, _ in active], [weight for _, weight in active]
        scores = ensemble_scores(members, direction, weights, ensemble["combination"], (None, None))
        positives = dataset.positives(direction)
        expected = [min(np.array(ranks_of(row))[positives.of(query)]) for query, row in enumerate(scores)]
        near = [np.diff(np.sort(np.asarray(row))).min() < 1e-6 for row in scores]
        found = ranks(chosen, "ensemble", direction)
        assert [rank for rank, close in zip(found, near, strict=True) if not close] == [
            rank for rank, close in zip(expected, near, strict=True) if not close
        ]


def test_what_each_view_did_is_kept_for_every_query(chosen: Path) -> None:
    record = report(chosen)
    on = {one["stage"]: one for one in record["expansion"] if one["pool"] is not None}
    assert on, "with random weights some expansion helps on val"
    rows = pq.read_table(chosen / "expansions.parquet").to_pylist()
    assert {row["stage"] for row in rows} == set(on)
    for stage, one in on.items():
        own = [row for row in rows if row["stage"] == stage]
        assert len(own) == one["num_views_used"] > 0
        plain = pq.read_table(chosen / "queries.parquet").to_pylist()
        before = {row["query_id"]: row["rank"] for row in plain if row["stage"] == one["against"] and row["direction"] == one["direction"]}
        after = {row["query_id"]: row["rank"] for row in plain if row["stage"] == stage and row["direction"] == one["direction"]}
        for row in own:
            assert (row["rank_without"], row["rank_with_all"]) == (before[row["query_id"]], after[row["query_id"]])
            assert row["moved"] == (row["rank_with_this_view"] != row["rank_without"])
        assert one["moved"]["up"] == sum(after[name] < before[name] for name in before)
    page = (chosen / "report.html").read_text(encoding="utf-8")
    assert all(f"{stage}" in page for stage in on)


def test_three_members_one_of_them_a_siglip_2(small_world: SmallWorld, other: Path, tmp_path: Path) -> None:
    """Gemma's tokenizer beside SentencePiece: each reads captions in its own way, and the mean equals the dense one."""
    dataset = load(small_world.manifest, "test")
    second = write_siglip2(tmp_path / "siglip2", dataset.captions)
    command = ["--model", str(small_world.base), "--ensemble", f"{second}:2", "--ensemble", str(other), "--combine", "logits"]
    data = ["--data", str(small_world.manifest), "--split", "test", "--num-workers", "0", "--output", str(tmp_path / "out")]
    run(parse([*command, *data]), Processes(), torch.device("cpu"))
    assert report(tmp_path / "out")["ensemble"][0]["weights"] == pytest.approx([0.25, 0.5, 0.25])
    members = [plain_member(checkpoint, small_world.manifest, "test") for checkpoint in (small_world.base, second, other)]
    scores_QN = np.asarray(ensemble_scores(members, "text_to_image", [0.25, 0.5, 0.25], "logits", (None, None)))
    positives, close = dataset.positives("text_to_image"), 0
    for query, rank in enumerate(ranks(tmp_path / "out", "ensemble", "text_to_image")):
        if np.diff(np.sort(scores_QN[query])).min() < 1e-6:
            close += 1
            continue
        assert rank == min(np.array(ranks_of(scores_QN[query].tolist()))[positives.of(query)])
    assert close < len(scores_QN) / 2, "most queries must tell"


def test_given_weights_and_pools_choose_nothing(small_world: SmallWorld, other: Path, tmp_path: Path) -> None:
    models = ["--model", str(small_world.base), "--ensemble", f"{other}:0.5", "--expand", "templates", "--pooling", "max:2:0.5"]
    command = [*models, "--data", str(small_world.manifest), "--split", "test", "--num-workers", "0", "--output", str(tmp_path / "out")]
    run(parse(command), Processes(), torch.device("cpu"))
    record = report(tmp_path / "out")
    assert record["ensemble"][0]["weights"] == pytest.approx([2 / 3, 1 / 3]) and record["ensemble"][0]["chosen_on"] is None
    assert [one["pool"] for one in record["expansion"]] == [{"pooling": "max", "number": 2, "weight": 0.5}] * 2
    for stage in ("model", "ensemble"):  # a text expansion asks in one direction, and changes nothing in the other
        assert ranks(tmp_path / "out", f"{stage}+templates", "image_to_text") == ranks(tmp_path / "out", stage, "image_to_text")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--combine", "logits"], "--combine: there is no ensemble whose scores could be combined"),
        (["--ensemble", "x", "--combine", "mean"], "expected one of logits, reciprocal-rank; found 'mean'"),
        (["--ensemble", "x", "--combine", "logits,standardised"], "found 'standardised', which was removed"),
        (["--ensemble", "x", "--combine", "probabilities"], "found 'probabilities', which was removed"),
        (["--ensemble", "x", "--combine", "logits,reciprocal-rank"], "--combine: of several rules one is chosen"),
        (["--ensemble", "x:1", "--combine", "logits,reciprocal-rank", "--choose-on", "val"], "--combine: of several rules one is"),
        (["--ensemble", "x:1", "--choose-on", "val", "--choose", "ensemble"], "--choose: ensemble: the weights are given"),
        (["--ensemble", "x:1", "--choose-on", "val"], "--choose-on: there is nothing to choose; give"),
        (["--pooling", "max"], "--pooling: there are no additional views to pool"),
        (["--expand", "flips", "--pooling", "max,mean"], "--pooling: of several rules one is chosen on another split"),
        (["--expand", "flips", "--pooling", "max:2", "--choose-on", "val"], "--pooling: number and weight are chosen"),
        (["--expand", "flips", "--pooling", "max:0"], "NUMBER from 1"),
        (["--expand", "flips", "--pooling", "max:1:2"], "WEIGHT above 0 and at most 1"),
        (["--expand", "flips", "--ensemble", "x", "--pooling", "reciprocal-rank"], "combine by reciprocal-rank too"),
        (
            ["--expand", "flips", "--ensemble", "x", "--pooling", "reciprocal-rank", "--combine", "logits,reciprocal-rank"]
            + ["--choose-on", "val", "--choose", "ensemble"],
            "members' scores by logits, reciprocal-rank",
        ),
        (["--ensemble", "x:y"], "--ensemble: x:y: expected DIR_OR_HUB_ID[:WEIGHT]"),
        (["--expand", "word"], "--expand: word: expected one of FILE"),
        (["--also", "model=x"], "--also: each checkpoint needs its own name"),
        (["--also", "a b=x"], "--also: each needs a name of its own, of letters"),
        (["--also", "a=x", "--compare", "a:b"], "--compare: no stage is called ['b']"),
        (["--choose-on", "val"], "there is nothing to choose"),
        (["--expand", "flips", "--choose", "expansion"], "--choose needs --choose-on"),
        (["--expand", "flips", "--choose-on", "val", "--choose", "fusion"], "--choose fusion needs --rerank"),
    ],
)
def test_options_that_contradict_each_other_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, UserError)) as ended, named(OPTIONS):
        read_plan(parse(["--model", "m", "--data", "d", "--split", "test", "--output", "o", *words])).pairs(None)
    assert message in (str(ended.value) if isinstance(ended.value, UserError) else capsys.readouterr().err)


def test_what_cannot_be_expanded_is_refused_before_anything_is_embedded(small_world: SmallWorld, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("red: crimson\nblue azure\n: navy\n", encoding="utf-8")
    common = ["--model", str(small_world.base), "--data", str(small_world.manifest), "--split", "test", "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match=r"bad\.txt:2.*\n.*bad\.txt:3"):
        run(parse([*common, "--expand", f"synonyms:{tmp_path / 'bad.txt'}"]), Processes(), torch.device("cpu"))
    with pytest.raises(UserError, match="column"):
        run(parse([*common, "--expand", "column:paraphrases"]), Processes(), torch.device("cpu"))
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("on", [[], ["--choose-on", "val"]], ids=["given", "chosen"])
def test_ranks_of_images_that_are_searched_are_refused_and_not_called_off(small_world: SmallWorld, tmp_path: Path, on: list[str]) -> None:
    ids = [json.loads(line)["image"] for line in small_world.manifest.read_text(encoding="utf-8").splitlines()]
    (tmp_path / "more.jsonl").write_text(
        "".join(json.dumps({"image": name, "caption": "a thing"}) + "\n" for name in ids), encoding="utf-8"
    )
    common = ["--model", str(small_world.base), "--data", str(small_world.manifest), "--split", "test", "--output", str(tmp_path / "out")]
    with pytest.raises(UserError, match="--pooling: reciprocal-rank: the views of captions are of images that are searched"):
        run(
            parse([*common, "--expand", f"captions:{tmp_path / 'more.jsonl'}", "--pooling", "reciprocal-rank", *on]),
            Processes(),
            torch.device("cpu"),
        )


def test_two_of_a_kind_are_told_apart_and_all_views_are_called_so(
    small_world: SmallWorld, synonyms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--model", str(small_world.base), "--data", str(small_world.manifest), "--split", "test", "--num-workers", "0"]
    twice = ["--expand", f"synonyms:{synonyms}", "--expand", f"synonyms:{synonyms}"]
    run(parse([*common, *twice, "--output", str(tmp_path / "out")]), Processes(), torch.device("cpu"))
    found = report(tmp_path / "out")["expansion"]
    assert [(one["name"], one["stage"]) for one in found] == [("synonyms", "model+synonyms"), ("synonyms-2", "model+synonyms-2")]
    assert [one["pool"]["number"] for one in found] == [None, None]
    assert "mean vector of all views at weight 1, as given" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "of all views at weight 1" in page and "2147483647" not in page


def test_two_processes_write_what_one_writes(nursery: Nursery, asked: list[str], chosen: Path, tmp_path: Path) -> None:
    both = nursery.start_ranks("eval", [*asked, "--output", str(tmp_path / "report")], 2)
    assert [child.wait() for child in both] == [0, 0], both[0].output()
    for name in ("queries.parquet", "expansions.parquet"):
        assert pq.read_table(tmp_path / "report" / name).equals(pq.read_table(chosen / name))
    one, two = report(chosen), report(tmp_path / "report")
    assert [without_seconds(section) for section in two["ensemble"]] == [without_seconds(section) for section in one["ensemble"]]
    assert two["expansion"] == one["expansion"] and two["comparisons"] == one["comparisons"]


def without_seconds(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in ("cost", "same_seconds")}


def test_a_choice_that_is_not_of_the_reranker_needs_no_second_candidate() -> None:
    words = ["--ensemble", "x", "--rerank", "b", "--top-k", "1", "--choose-on", "val", "--choose", "ensemble"]
    plan = read_plan(parse(["--model", "m", "--data", "d", "--split", "test", "--output", "o", *words]))
    assert plan.chooses and plan.reranking == Plan(top_k=1)


def test_a_set_that_is_forgotten_is_let_go_of_and_embedded_anew_if_asked(small_world: SmallWorld) -> None:
    rows: list[int] = []
    sets = EmbeddedSets(checkpoints={"model": str(small_world.base)}, reused=["model"], execution=Execution(on_progress=rows.append))
    val, test = load(small_world.manifest, "val"), load(small_world.manifest, "test")
    first, other = sets.read("model", val), sets.read("model", test)
    num_rows = sum(rows)
    assert sets.read("model", val) is first and sum(rows) == num_rows
    held = weakref.ref(first)
    images_ID = first.embedded.images_ID.copy()
    sets.forget(val)
    del first
    gc.collect()
    assert held() is None and sets.read("model", test) is other and sum(rows) == num_rows
    np.testing.assert_array_equal(sets.read("model", val).embedded.images_ID, images_ID)
    assert sum(rows) > num_rows
