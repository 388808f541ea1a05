"""No code of a model's or data set's folder is run, whoever answers `y`: every loader is told so, and a planted folder is refused."""

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig, BertTokenizer, BlipConfig, BlipForImageTextRetrieval, GenerationConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.nursery import Nursery
from tests.small_job import SmallWorld
from tests.tiny_blip import write_tiny_blip

ROOT = Path(__file__).parents[3]
LOADERS = {"from_pretrained", "from_config", "load_dataset", "load_dataset_builder", "pipeline", "SentenceTransformer", "CrossEncoder"}
EXEMPT = {"GenerationConfig.from_pretrained": "numbers alone, from JSON; it would keep the argument as one of its settings"}


def trusting_calls(source: str) -> list[tuple[int, str]]:
    """(line, call) of each call of a loader without trust_remote_code=False; a class of ours of such a name is no loader."""
    tree = ast.parse(source)
    ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    ours |= {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("eval", "rerank", "train", "demo")
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        told = any(word.arg == "trust_remote_code" and ast.unparse(word.value) == "False" for word in node.keywords)
        if called.rpartition(".")[2] in LOADERS and called not in ours and called not in EXEMPT and not told:
            found.append((node.lineno, called))
    return found


@pytest.mark.parametrize("package", ["eval", "rerank", "train", "demo", "benchmarks"])
def test_every_loader_is_told_to_run_no_code(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {called}" for path in files for line, called in trusting_calls(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "num_found"),
    [
        ("SiglipModel.from_pretrained(name)", 1),
        ("type(model).from_pretrained(name, trust_remote_code=True)", 1),
        ("datasets.load_dataset(name, trust_remote_code=trusted)", 1),
        ("from sentence_transformers import CrossEncoder\nCrossEncoder(name)", 1),
        ("from rerank.scorers.base import CrossEncoder\nCrossEncoder(name)", 0),
        ("AutoConfig.from_pretrained(name, trust_remote_code=False)", 0),
        ("GenerationConfig.from_pretrained(name)", 0),
    ],
)
def test_the_check_sees_what_it_should(source: str, num_found: int) -> None:
    assert len(trusting_calls(source)) == num_found


def test_classes_that_are_named_take_the_argument_and_load_the_same(tmp_path: Path) -> None:
    write_tiny_blip(tmp_path / "blip")
    for kind in (BlipConfig, BlipImageProcessorPil):
        told, plain = kind.from_pretrained(tmp_path / "blip", trust_remote_code=False), kind.from_pretrained(tmp_path / "blip")
        assert told.to_dict() == plain.to_dict() and not hasattr(told, "trust_remote_code")
    words = [BertTokenizer.from_pretrained(tmp_path / "blip", **told).init_kwargs for told in ({"trust_remote_code": False}, {})]
    assert words[0] == words[1]
    assert BlipForImageTextRetrieval.from_pretrained(tmp_path / "blip", trust_remote_code=False).config.to_dict().keys() == (
        BlipForImageTextRetrieval.from_pretrained(tmp_path / "blip").config.to_dict().keys()
    )
    GenerationConfig().save_pretrained(tmp_path / "words")
    assert hasattr(GenerationConfig.from_pretrained(tmp_path / "words", trust_remote_code=False), "trust_remote_code")  # hence exempt


def plant(folder: Path, mark: Path) -> None:
    """A module that leaves a mark when it is imported, and a config of an unknown kind that names it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(mark)!r}).write_text('ran')\n"
        "from transformers import BertTokenizer, PretrainedConfig\n"
        "class EvilConfig(PretrainedConfig):\n    model_type = 'evil'\nclass EvilTokenizer(BertTokenizer):\n    pass\n"
    )
    config = {"model_type": "evil", "architectures": ["EvilModel"], "auto_map": {"AutoConfig": "evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config))


def plant_tokenizer(folder: Path, model: Path, mark: Path) -> None:
    """A good checkpoint whose tokenizer says it needs that module."""
    shutil.copytree(model, folder)
    config = (folder / "config.json").read_text()
    plant(folder, mark)
    (folder / "config.json").write_text(config)
    path = folder / "tokenizer_config.json"
    changed = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_the_planted_folder_would_run_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    plant(tmp_path / "evil", tmp_path / "mark")
    AutoConfig.from_pretrained(tmp_path / "evil", trust_remote_code=True)
    assert (tmp_path / "mark").exists()


Command = Callable[[Path, SmallWorld, Path], tuple[str, list[str]]]


def eval_model(evil: Path, world: SmallWorld, place: Path) -> tuple[str, list[str]]:
    return "eval", ["--model", str(evil), "--data", str(world.manifest), "--split", "val", "--output", str(place / "report")]


def eval_rerank(evil: Path, world: SmallWorld, place: Path) -> tuple[str, list[str]]:
    return "eval", [*eval_model(world.base, world, place)[1], "--rerank", str(evil), "--top-k", "2"]


def train_base(evil: Path, world: SmallWorld, place: Path) -> tuple[str, list[str]]:
    return "train", [str(world.write_config(place, model__base=str(evil)))]


def rerank_own(model: Path, reranker: Path, world: SmallWorld, place: Path) -> tuple[str, list[str]]:
    (place / "captions.txt").write_text("a red circle\na blue bar\n")
    data = ["--images", str(world.manifest.parent / "pictures"), "--captions", str(place / "captions.txt"), "--top-k", "2"]
    return "rerank", ["--model", str(model), "--rerank", str(reranker), *data, "--output", str(place / "a.parquet")]


def rerank_model(evil: Path, world: SmallWorld, place: Path) -> tuple[str, list[str]]:
    write_tiny_blip(place / "blip")
    return rerank_own(evil, place / "blip", world, place)


def rerank_rerank(evil: Path, world: SmallWorld, place: Path) -> tuple[str, list[str]]:
    return rerank_own(world.base, evil, world, place)


@pytest.mark.parametrize("is_whole", [False, True])
@pytest.mark.parametrize("command", [eval_model, eval_rerank, train_base, rerank_model, rerank_rerank])
def test_a_planted_folder_is_refused_and_its_code_not_run(
    nursery: Nursery, small_world: SmallWorld, tmp_path: Path, command: Command, is_whole: bool
) -> None:
    evil, mark = tmp_path / "evil", tmp_path / "mark"
    if not is_whole:
        plant(evil, mark)
    elif command in (eval_rerank, rerank_rerank):
        write_tiny_blip(tmp_path / "good")
        plant_tokenizer(evil, tmp_path / "good", mark)
    else:
        plant_tokenizer(evil, small_world.base, mark)
    (tmp_path / "answers").write_text("y\n" * 20)
    module, arguments = command(evil, small_world, tmp_path)
    environment = {"ACCELERATE_USE_CPU": "true", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    child = nursery.start(module, arguments, env=environment, stdin=tmp_path / "answers")
    code = child.wait()
    assert not mark.exists() and "Traceback" not in child.output(), child.output()
    if is_whole:  # transformers may know a tokenizer of its own for the kind, and then takes that
        assert code in (0, 2), child.output()
    else:
        assert code == 2 and str(evil) in child.output(), child.output()
