"""train/soup/make.py: means by hand and against float64, the greedy rule on made-up scores, the command from end to end, and what it
refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, SiglipModel

from eval.encoder.checkpoint import load_siglip
from eval.errors import UserError
from eval.metrics.evaluate import values_of
from eval.search.ranking import DIRECTIONS
from eval.search.retrieve import retrieve
from tests.shared_files import SENTENCE_TRANSFORMERS_FILES
from tests.small_job import TINY, SmallWorld, load
from train.config.job import JobConfig
from train.config.run import DataConfig
from train.model.random_init import write_scratch
from train.soup.__main__ import main
from train.soup.average import RunningMean, greedy
from train.soup.ingredients import Ingredient, check_alike, picture_difference, read_ingredient, read_ingredients, tokenizer_difference
from train.soup.make import common_data, run

NUMBERS = st.floats(-1e6, 1e6, width=32)


def mean_of(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    found = RunningMean()
    for state in states[:-1]:
        found.add(state)
    return found.mean_with(states[-1])


def test_a_mean_by_hand() -> None:
    found = RunningMean()
    for value in (1.0, 2.0, 6.0):
        found.add({"w": torch.tensor([value, -value]), "logit_scale": torch.tensor(value)})
    for _ in range(2):  # on trial, nothing is added
        with_one = found.mean_with({"w": torch.tensor([7.0, 1.0]), "logit_scale": torch.tensor(3.0)})
        assert with_one["w"].tolist() == [4.0, -2.0] and with_one["logit_scale"].item() == 3.0


@given(st.integers(1, 6).flatmap(lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=7)))
def test_a_mean_is_that_of_float64_rounded_once(rows: list[list[float]]) -> None:
    """Ten thousand times the same float32 would drift in a float32 sum; here the only rounding is the last."""
    mean = mean_of([{"w": torch.tensor(row)} for row in rows])["w"]
    expected = np.mean(np.array(rows, dtype=np.float64), axis=0)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=2**-23, atol=1e-9)
    assert mean.dtype == torch.float32


def test_a_mean_of_one_is_its_very_bits() -> None:
    odd = torch.tensor([-0.0, 0.1, 1e-42])
    assert mean_of([{"w": odd}])["w"].numpy().tobytes() == odd.numpy().tobytes()


def test_the_greedy_rule_by_hand() -> None:
    """Algorithm 1: 2 is best alone; 0 lowers it; 3 is as good, and stays; 1 makes it better."""
    scores = {(2, 0): 0.4, (2, 3): 0.5, (2, 3, 1): 0.6}
    members, trials = greedy([0.3, 0.1, 0.5, 0.2], scores.__getitem__)
    assert members == (2, 3, 1)
    assert [(trial.ingredient, trial.members, trial.before, trial.score, trial.kept) for trial in trials] == [
        (0, (2,), 0.5, 0.4, False), (3, (2,), 0.5, 0.5, True), (1, (2, 3), 0.5, 0.6, True),
    ]  # fmt: skip
    assert greedy([0.5, 0.5], lambda members: 0.1)[0] == (0,), "of equals the one named first"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.integers(0, 1000))
def test_a_greedy_soup_is_never_worse_than_its_best_ingredient(alone: list[float], seed: int) -> None:
    def score(members: tuple[int, ...]) -> float:
        return float(np.random.default_rng([seed, *members]).random())

    members, trials = greedy(alone, score)
    final = score(members) if len(members) > 1 else alone[members[0]]
    assert final >= max(alone) and len(trials) == len(alone) - 1
    assert sorted((members[0], *(trial.ingredient for trial in trials))) == list(range(len(alone)))
    assert [alone[trial.ingredient] for trial in trials] == sorted((alone[trial.ingredient] for trial in trials), reverse=True)


def moved(world: SmallWorld, folder: Path, seed: int, size: float = 0.02) -> Path:
    """A copy of the base whose every weight has moved."""
    shutil.copytree(world.base, folder)
    draws = torch.Generator().manual_seed(seed)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value + size * torch.randn(value.shape, generator=draws) for name, value in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


@pytest.fixture(scope="module")
def siblings(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("siblings")
    return [moved(small_world, folder / f"sibling-{seed}", seed) for seed in range(3)]


def dense_mean(folders: list[Path]) -> dict[str, np.ndarray]:
    states = [load_file(folder / "model.safetensors") for folder in folders]
    return {name: np.mean([state[name].numpy().astype(np.float64) for state in states], axis=0) for name in states[0]}


def test_the_uniform_soup_is_plain_transformers_weights(small_world: SmallWorld, siblings: list[Path], tmp_path: Path) -> None:
    record = run([str(path) for path in siblings], tmp_path / "soup", is_greedy=False, data=None)
    assert record["kind"] == "uniform" and "data" not in record and all(row["kept"] for row in record["ingredients"])
    assert {path.name for path in (tmp_path / "soup").iterdir()} == {"soup.json", "export"}
    assert {path.name for path in (tmp_path / "soup" / "export").iterdir()} >= SENTENCE_TRANSFORMERS_FILES
    plain = SiglipModel.from_pretrained(tmp_path / "soup" / "export").eval()
    expected = dense_mean(siblings)
    assert plain.state_dict().keys() == expected.keys() and {"logit_scale", "logit_bias"} <= expected.keys()
    for name, value in plain.state_dict().items():
        assert value.dtype == torch.float32
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=2**-23, atol=1e-12)
    ours, inputs = load_siglip(tmp_path / "soup" / "export")
    processor, dataset = AutoProcessor.from_pretrained(tmp_path / "soup" / "export"), load(small_world.manifest, "val")
    texts = list(dataset.captions[:4])
    batch = processor(text=texts, padding="max_length", max_length=TINY.num_tokens, truncation=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], inputs.token_ids(texts))
    with torch.no_grad():
        assert torch.equal(plain.text_model(batch["input_ids"]).pooler_output, ours.text_model(batch["input_ids"]).pooler_output)
    card = (tmp_path / "soup" / "export" / "README.md").read_text()
    assert "uniform soup of 3" in card and "2203.05482" in card and "not measured" in card
    assert all(f"`{path.name}` (weights " in card and str(path) not in card for path in siblings)


def mean_recall(world: SmallWorld, folder: Path) -> float:
    dataset = load(world.manifest, "val")
    values = values_of(dataset, retrieve("m", *load_siglip(folder), dataset))
    return sum(values[direction]["R@1"] for direction in DIRECTIONS) / 2


def test_the_greedy_soup_by_the_command(
    small_world: SmallWorld, siblings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A ruined sibling is left out; what was kept, each trial and the rows agree with plain evaluations of plain means."""
    ruined = moved(small_world, tmp_path / "ruined", 9, size=3.0)
    folders, output = [ruined, *siblings], tmp_path / "soup"
    arguments = [*map(str, folders), "--output", str(output), "--greedy", "--data", str(small_world.manifest), "--split", "val"]
    assert main([*arguments, "--num-workers", "0"]) == 0
    record = json.loads((output / "soup.json").read_text())
    alone = [mean_recall(small_world, folder) for folder in folders]
    assert [row["mean_R@1"] for row in record["ingredients"]] == alone
    order = sorted(range(4), key=lambda index: -alone[index])
    assert record["order"] == [str(folders[index]) for index in order]
    kept, best = [folders[order[0]]], alone[order[0]]
    for index, trial in zip(order[1:], record["trials"], strict=True):
        soup = moved(small_world, tmp_path / f"mean-{index}", 0)
        save_file(
            {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in dense_mean([*kept, folders[index]]).items()},
            soup / "model.safetensors", {"format": "pt"},
        )  # fmt: skip
        score = mean_recall(small_world, soup)
        assert (trial["ingredient"], trial["members_before"]) == (str(folders[index]), [str(folder) for folder in kept])
        assert (trial["before"], trial["mean_R@1"], trial["kept"]) == (best, score, score >= best)
        if score >= best:
            kept, best = [*kept, folders[index]], score
    assert record["soup"]["members"] == [str(folder) for folder in kept] and record["soup"]["mean_R@1"] == best
    exported = load_file(output / "export" / "model.safetensors")
    for name, value in dense_mean(kept).items():
        np.testing.assert_allclose(exported[name].numpy(), value, rtol=2**-23, atol=1e-12)
    assert mean_recall(small_world, output / "export") == best
    rows = pq.read_table(output / "soup.parquet").to_pylist()
    assert {row["stage"] for row in rows} == {f"{kind}ingredient-{index + 1}" for index in range(4) for kind in ("", "with-")} - {
        f"with-ingredient-{order[0] + 1}"
    }
    for trial in record["trials"]:
        shares = [
            np.mean([row["rank"] == 1 for row in rows if (row["stage"], row["direction"]) == (trial["stage"], direction)])
            for direction in DIRECTIONS
        ]
        assert trial["mean_R@1"] == pytest.approx(np.mean(shares))
    printed = capsys.readouterr().out
    assert f"greedy soup of {len(kept)} of 4" in printed and str(output / "export") in printed
    assert "chosen on this very split" in (output / "export" / "README.md").read_text()
    again = (output / "soup.json").read_bytes(), (output / "export" / "model.safetensors").read_bytes()
    assert main([*arguments, "--num-workers", "0"]) == 0, "an earlier soup is replaced"
    assert again == ((output / "soup.json").read_bytes(), (output / "export" / "model.safetensors").read_bytes())


def test_a_measured_uniform_soup_is_compared_with_its_best_ingredient(
    small_world: SmallWorld, siblings: list[Path], tmp_path: Path
) -> None:
    data = DataConfig(source=str(small_world.manifest), val_split="val")
    record = run([str(path) for path in siblings], tmp_path, is_greedy=False, data=data, num_workers=0)
    assert "trials" not in record and record["soup"]["stage"] == "soup" and record["data"]["split"] == "val"
    best = max(record["ingredients"], key=lambda row: row["mean_R@1"])
    assert record["soup"]["against"] == best["name"] and best["delta"] == 0 and best["delta_ci95"] == [0, 0]
    assert record["soup"]["mean_R@1"] == mean_recall(small_world, tmp_path / "export")
    assert record["soup"]["delta"] == pytest.approx(record["soup"]["mean_R@1"] - best["mean_R@1"])
    run([str(path) for path in siblings[:2]], tmp_path, is_greedy=False, data=None)
    assert not (tmp_path / "soup.parquet").exists(), "rows of the earlier soup are not the new one's"


def with_file(world: SmallWorld, folder: Path, change: Callable[[Path], Any]) -> Path:
    moved(world, folder, 5)
    change(folder)
    return folder


def edit(name: str, **keys: Any) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    return change


@pytest.mark.parametrize(
    ("scratch", "words"),
    [
        ({"image_size": 24}, "vision_config.image_size: 16 against 24"),
        ({"width": 64}, "vision_config.hidden_size: 32 against 64"),
        ({"vocab_size": 40}, r"text_config.vocab_size: \d+ against 40"),
        ({"num_tokens": 10}, "text_config.max_position_embeddings: 12 against 10"),
    ],
)
def test_other_architectures_are_refused(small_world: SmallWorld, tmp_path: Path, scratch: dict[str, int], words: str) -> None:
    write_scratch(tmp_path / "other", TINY.model_copy(update=scratch), load(small_world.manifest), 1)
    with pytest.raises(UserError, match=words):
        read_ingredients([str(small_world.base), str(tmp_path / "other")])


def test_other_inputs_are_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    processor = next(path.name for path in small_world.base.iterdir() if path.name in ("preprocessor_config.json", "processor_config.json"))
    settings = json.loads((small_world.base / processor).read_text())
    nested = {"image_processor": settings["image_processor"] | {"image_mean": [0.1, 0.5, 0.5]}} if "image_processor" in settings else {}
    bright = with_file(small_world, tmp_path / "bright", edit(processor, **(nested or {"image_mean": [0.1, 0.5, 0.5]})))
    with pytest.raises(UserError, match=r"pictures in different ways.*image_mean"):
        read_ingredients([str(small_world.base), str(bright)])
    other = load(small_world.manifest)
    other.captions = [caption.translate(str.maketrans("abcdefgh", "zyxwvuts")) for caption in other.captions]  # type: ignore[misc]
    write_scratch(tmp_path / "tokens", TINY, other, 1)
    one, two = (read_ingredient(str(folder)) for folder in (small_world.base, tmp_path / "tokens"))
    with pytest.raises(UserError, match=r"different tokenizers: \d+ words have another number"):
        check_alike(one, replace(two, config=one.config))
    plain, marks = load_siglip(small_world.base)[1], load_siglip(small_world.base, strip_punctuation=True)[1]
    assert tokenizer_difference(plain, plain) == picture_difference(plain, plain) == "" == picture_difference(plain, marks)


def test_too_few_and_twice_are_refused(small_world: SmallWorld, siblings: list[Path], tmp_path: Path) -> None:
    base = str(small_world.base)
    with pytest.raises(UserError, match="two checkpoints or more; found 1"):
        read_ingredients([base])
    with pytest.raises(UserError, match="there twice"):
        read_ingredients([base, str(siblings[0]), base])
    with pytest.raises(UserError, match="there twice"):
        read_ingredients([base, f"{base}/../{small_world.base.name}"])
    shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(UserError, match="the very same weights"):
        run([base, str(tmp_path / "copy")], tmp_path / "soup", is_greedy=False, data=None)
    broken = with_file(small_world, tmp_path / "broken", lambda folder: None)
    weights = load_file(broken / "model.safetensors")
    save_file(weights | {"logit_bias": weights["logit_bias"] * torch.nan}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"broken: weights that are not finite, e\.g\. logit_bias"):
        run([base, str(broken)], tmp_path / "soup", is_greedy=False, data=None)
    assert not (tmp_path / "soup" / "export").exists()


def test_nothing_is_destroyed(small_world: SmallWorld, siblings: list[Path], tmp_path: Path) -> None:
    names = [str(path) for path in siblings[:2]]
    for held in ("config.yaml", "config.json"):
        (tmp_path / held).mkdir()
        (tmp_path / held / held).write_text("{}")
        with pytest.raises(UserError, match="a run or a checkpoint"):
            run(names, tmp_path / held, is_greedy=False, data=None)
    (tmp_path / "thesis" / "export").mkdir(parents=True)
    (tmp_path / "thesis" / "export" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"no earlier export.*thesis\.txt"):
        run(names, tmp_path / "thesis", is_greedy=False, data=None)
    shutil.copytree(siblings[0], tmp_path / "tuned" / "export")
    with pytest.raises(UserError, match="no earlier soup"):
        run(names, tmp_path / "tuned", is_greedy=False, data=None)
    with pytest.raises(UserError, match="lies where the soup would be written"):
        run([names[1], str(tmp_path / "tuned" / "export")], tmp_path / "tuned", is_greedy=False, data=None)
    assert load_file(tmp_path / "tuned" / "export" / "model.safetensors").keys() == load_file(siblings[0] / "model.safetensors").keys()


def test_greedy_needs_data(small_world: SmallWorld, siblings: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, siblings), "--output", str(tmp_path / "soup"), "--greedy"]) == 2
    assert "--data MANIFEST --split val" in capsys.readouterr().err and not (tmp_path / "soup").exists()
    with pytest.raises(SystemExit):
        main([*map(str, siblings), "--output", str(tmp_path / "soup"), "--split", "val"])
    assert "which is not given" in capsys.readouterr().err


def test_runs_of_the_same_data_choose_on_its_val(small_world: SmallWorld, tmp_path: Path) -> None:
    config = JobConfig.model_validate(small_world.record(tmp_path))

    def of_run(name: str, **keys: Any) -> Ingredient:
        run_config = config.model_copy(update={"name": name, "data": config.data.model_copy(update=keys)})
        return Ingredient(f"{name}@3", None, None, (run_config, 3))  # type: ignore[arg-type]  # neither is looked at

    assert common_data([of_run("a"), of_run("b", num_workers=7)]) == config.data
    for keys, words in (({"source": "other.jsonl"}, "other data"), ({"val_split": None}, "other data")):
        with pytest.raises(UserError, match=words):
            common_data([of_run("a"), of_run("b", **keys)])
    with pytest.raises(UserError, match="val_split is null"):
        common_data([of_run("a", val_split=None), of_run("b", val_split=None)])
