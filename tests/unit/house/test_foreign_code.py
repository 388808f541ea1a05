"""No code of a model's or data set's folder is run, whoever answers `y`: every loader is told so, and a planted folder is refused."""

import argparse
import ast
import json
import runpy
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import BaseModel
from transformers import AutoConfig, BertTokenizer, BlipConfig, BlipForImageTextRetrieval, GenerationConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from eval.command_line import WholeNumber
from eval.encoder.checkpoint import load_siglip_config
from eval.errors import UserError
from rerank.expansions.generated import Paraphraser
from rerank.scorers.supported import check_cross_encoder
from tests.nursery import Nursery
from tests.small_job import SmallWorld
from tests.small_reranker_job import RerankerWorld
from tests.tiny_blip import write_tiny_blip
from tests.unit.rerank.scorers.albef.albef_files import random_tensors, released
from train.config.job import JobConfig
from train.config.reranker import RerankerConfig

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


@dataclass(frozen=True)
class Place:
    """Where a command is tried: good models and data, a folder of the test's own, and a finished run whose base is the evil folder."""

    world: RerankerWorld
    folder: Path
    run: Path

    def eval(self, *options: str, model: str = "") -> tuple[str, list[str]]:
        data = ["--data", str(self.world.manifest), "--split", "val", "--output", str(self.folder / "report")]
        return "eval", ["--model", model or str(self.world.base), *data, *options]

    def embed(self, model: str) -> tuple[str, list[str]]:
        data = ["--data", str(self.world.manifest), "--split", "val", "--output", str(self.folder / "vectors")]
        return "eval.embed", ["--model", model, *data]

    def choices(self, *options: str, model: str = "") -> tuple[str, list[str]]:
        row = {"image": "pictures/val-000.png", "caption": "a red bar", "false_captions": ["a blue bar"]}
        (self.world.manifest.parent / "choices.jsonl").write_text(json.dumps(row) + "\n")
        data = ["--data", str(self.world.manifest.parent / "choices.jsonl"), "--output", str(self.folder / "report")]
        return "eval.choices", ["--model", model or str(self.world.base), *data, *options]

    def rerank(self, model: str = "", reranker: str = "") -> tuple[str, list[str]]:
        (self.folder / "captions.txt").write_text("a red circle\na blue bar\n")
        data = ["--images", str(self.world.manifest.parent / "pictures"), "--captions", str(self.folder / "captions.txt"), "--top-k", "2"]
        models = ["--model", model or str(self.world.base), "--rerank", reranker or str(self.world.blip)]
        return "rerank", [*models, *data, "--output", str(self.folder / "a.parquet")]

    def explore(self, model: str = "", reranker: str = "") -> tuple[str, list[str]]:
        options = ["--images", str(self.world.manifest.parent / "pictures"), "--rerank", reranker or str(self.world.blip), "--port", "0"]
        return "rerank.explore", [model or str(self.world.base), *options]

    def train(self, **changes: Any) -> tuple[str, list[str]]:
        return "train", [self.written(SmallWorld.record(self.world, self.folder / "runs", **changes))]

    def reranker(self, **changes: Any) -> tuple[str, list[str]]:
        return "train.reranker", [self.written(self.world.record(self.folder / "runs", **changes))]

    def written(self, record: dict[str, Any]) -> str:
        (self.folder / "job.yaml").write_text(yaml.safe_dump(record))
        return str(self.folder / "job.yaml")

    def convert(self, source: str, *options: str) -> tuple[str, list[str]]:
        return "rerank.convert", [source, "--output", str(self.folder / "converted"), *options]

    def convert_evil(self, evil: str) -> tuple[str, list[str]]:
        torch.save({"a": torch.zeros(1)}, Path(evil) / "pytorch_model.bin")
        return self.convert(evil)

    def convert_albef(self, evil: str) -> tuple[str, list[str]]:
        torch.save(released(random_tensors(), tuned=True), self.folder / "albef.pth")
        (Path(evil) / "vocab.txt").write_text("[PAD]\n")
        return self.convert(str(self.folder / "albef.pth"), "--tokenizer", evil)

    def mine(self, model: str) -> tuple[str, list[str]]:
        return "train.mining", ["--model", model, "--data", str(self.world.manifest), "--output", str(self.folder / "mined")]

    def of_run(self, module: str, *options: str) -> tuple[str, list[str]]:
        return module, [str(self.run), *options, "--output", str(self.folder / "made")]


MODELS: dict[str, Callable[[str, Place], tuple[str, list[str]]]] = {
    "eval --model": lambda evil, place: place.eval(model=evil),
    "eval --also": lambda evil, place: place.eval("--also", f"other={evil}"),
    "eval --ensemble": lambda evil, place: place.eval("--ensemble", evil),
    "eval --expand": lambda evil, place: place.eval("--expand", f"paraphrase:{evil}"),
    "eval --rerank": lambda evil, place: place.eval("--rerank", evil, "--top-k", "2"),
    "eval.choices --model": lambda evil, place: place.choices(model=evil),
    "eval.choices --also": lambda evil, place: place.choices("--also", f"other={evil}"),
    "eval.choices --rerank": lambda evil, place: place.choices("--rerank", evil),
    "eval.embed --model": lambda evil, place: place.embed(evil),
    "rerank --model": lambda evil, place: place.rerank(model=evil),
    "rerank --rerank": lambda evil, place: place.rerank(reranker=evil),
    "rerank.explore model": lambda evil, place: place.explore(model=evil),
    "rerank.explore --rerank": lambda evil, place: place.explore(reranker=evil),
    "rerank.convert source": lambda evil, place: place.convert_evil(evil),
    "rerank.convert --tokenizer": lambda evil, place: place.convert_albef(evil),
    "train.mining --model": lambda evil, place: place.mine(evil),
    "train.export run_folder": lambda _, place: place.of_run("train.export"),
    "train.mining.triplets run_folder": lambda _, place: (
        "train.mining.triplets",
        [str(place.run), "--output", str(place.folder / "made.jsonl")],
    ),
    "train.soup checkpoints": lambda evil, place: ("train.soup", [str(place.world.base), evil, "--output", str(place.folder / "soup")]),
    "train.wise run_folder": lambda _, place: place.of_run("train.wise"),
    "siglip model.base": lambda evil, place: place.train(model__base=evil),
    "siglip mining.denoise.model": lambda evil, place: place.train(mining__denoise={"model": evil}),
    "siglip mining.distil.model": lambda evil, place: place.train(mining__distil={"model": evil}),
    "siglip rerank.model": lambda evil, place: place.train(rerank={"model": evil, "top_k": 2}),
    "siglip evaluation.models": lambda evil, place: place.train(evaluation={"models": {"other": evil}}),
    "siglip evaluation.ensemble.members": lambda evil, place: place.train(evaluation={"ensemble": {"members": {"other": f"{evil}:1"}}}),
    "siglip evaluation.expand": lambda evil, place: place.train(evaluation={"expand": [f"paraphrase:{evil}"], "choose": []}),
    "siglip data.expand": lambda evil, place: place.train(data__expand=[f"paraphrase:{evil}"]),
    "reranker model.base": lambda evil, place: place.reranker(model__base=evil),
    "reranker data.expand": lambda evil, place: place.reranker(data__expand=[f"paraphrase:{evil}"]),
    "reranker miner": lambda evil, place: place.reranker(miner=evil),
}
"""Every option and key that takes a model: the command that is given the evil folder there."""
NO_MODELS = {
    "eval": "--data --split --split-file --image-root --column --output --pair-scores --choose-on --choose --calibrate-on --combine "
    "--pooling --compare --qrels --slice-by --nnn --mteb",
    "eval.choices": "--data --image-root --output --pair-scores",
    "eval.compare": "run_a others --stages --output --data --image-root --column",
    "eval.convert_choices": "--source --images --output",
    "eval.embed": "--data --split --image-root --column --output --nnn-bank --nnn-images --nnn-captions",
    "rerank": "--images --captions --output --caption-column --caption-id-column --split --image-root --column --pair-scores --calibration",
    "rerank.convert": "--output",
    "rerank.explore": "--images --device --split --image-root --column",
    "train": "config overrides",
    "train.config": "",
    "train.export": "--output --checkpoint --push",
    "train.init": "data --image-root --column --base --output",
    "train.mining": "config overrides --data --split --image-root --column --output",
    "train.mining.triplets": "--output --table --images",
    "train.reranker": "config overrides",
    "train.study": "config overrides --system --output",
    "train.soup": "--output --data --split --image-root --column",
    "train.wise": "--output --alphas --keep",
    "siglip": "choices train.begin_at data.columns data.image_root data.source data.test_split data.train_split data.truth data.val_split "
    "evaluation.comparisons evaluation.mteb evaluation.pooling evaluation.qrels evaluation.slice_by export.language mining.pool name "
    "rerank.pair_scores "
    "runs_folder wandb.entity wandb.project watch.columns watch.image_root watch.name watch.source watch.split",
    "reranker": "train.begin_at data.columns data.image_root data.source data.test_split data.train_split data.truth data.val_split name "
    "runs_folder wandb.entity wandb.project",
}
"""Every other option and key that takes a text."""


def text_options() -> Iterator[str]:
    """Every option and argument of every command that takes a text, from the parsers themselves."""

    class Parsed(Exception):
        pass

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise Parsed(parser)

    with pytest.MonkeyPatch.context() as patch:
        for method in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, method, stop)
        for path in sorted(path for package in ("eval", "rerank", "train") for path in (ROOT / package).rglob("*.py")):
            if "__name__ ==" not in path.read_text(encoding="utf-8") or path.parent.name == "launch":
                continue
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
            patch.setattr("sys.argv", [module])
            with pytest.raises(Parsed) as caught:
                runpy.run_path(str(path), run_name="__main__")
            for action in caught.value.args[0]._actions:
                if (
                    action.nargs != 0
                    and action.choices is None
                    and not isinstance(action.type, WholeNumber)
                    and action.type not in (int, float)
                ):
                    yield f"{module} {'/'.join(action.option_strings) or action.dest}"


def text_keys(section: type[BaseModel], before: str) -> Iterator[str]:
    """Every key of a configuration that takes a text, or texts."""
    for name, field in section.model_fields.items():
        for kind in kinds_in(field.annotation):
            if kind is str:
                yield before + name
            elif isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from text_keys(kind, f"{before}{name}.")


def kinds_in(annotation: Any) -> Iterator[Any]:
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return
    if not parts:
        yield annotation
    for part in parts[:1] if get_origin(annotation) is Annotated else parts:
        yield from kinds_in(part)


def test_no_option_or_key_that_takes_a_model_is_forgotten() -> None:
    """A new one that takes a text stands in one of the two tables above, or this fails."""
    found = {*text_options(), *text_keys(JobConfig, "siglip "), *text_keys(RerankerConfig, "reranker ")}
    listed = {*MODELS, *(f"{command} {name}" for command, names in NO_MODELS.items() for name in names.split())}
    assert found == listed


@pytest.fixture(scope="module")
def run_of_evil_base(nursery: Nursery, reranker_world: RerankerWorld, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(run, mark): a finished run, its base replaced afterwards by the evil folder."""
    place = tmp_path_factory.mktemp("evil-base")
    shutil.copytree(reranker_world.base, place / "base")
    changes: dict[str, Any] = {"train__max_steps": 2, "train__eval_every_steps": 1, "mining": None, "model__base": str(place / "base")}
    path = SmallWorld(reranker_world.manifest, reranker_world.base).write_config(place, **changes)
    child = nursery.start("train", [str(path)], env={"ACCELERATE_USE_CPU": "true"})
    assert child.wait() == 0, child.output()
    plant(place / "base", place / "mark")
    return place / "runs" / "job", place / "mark"


@pytest.mark.parametrize("option", MODELS)
def test_a_planted_folder_is_refused_and_its_code_not_run(
    nursery: Nursery, reranker_world: RerankerWorld, run_of_evil_base: tuple[Path, Path], tmp_path: Path, option: str
) -> None:
    evil, (run, mark_of_run) = tmp_path / "evil", run_of_evil_base
    plant(evil, tmp_path / "mark")
    code, output = answered_yes(nursery, tmp_path, MODELS[option](str(evil), Place(reranker_world, tmp_path, run)))
    assert not (tmp_path / "mark").exists() and not mark_of_run.exists(), output
    named = str(run.parents[1] / "base") if option.endswith("run_folder") else str(evil)
    assert code == 2 and named in output and "Traceback" not in output, output


def answered_yes(nursery: Nursery, place: Path, command: tuple[str, list[str]]) -> tuple[int, str]:
    """(exit code, output) of a command whose standard input says `y`."""
    (place / "answers").write_text("y\n" * 20)
    module, arguments = command
    environment = {"ACCELERATE_USE_CPU": "true", "HF_MODULES_CACHE": str(place / "modules")}
    child = nursery.start(module, arguments, env=environment, stdin=place / "answers")
    return child.wait(), child.output()


@pytest.mark.parametrize("option", ["eval --model", "eval --rerank", "siglip model.base", "rerank --model", "rerank --rerank"])
def test_a_good_checkpoint_whose_tokenizer_names_code_is_refused(
    nursery: Nursery, reranker_world: RerankerWorld, tmp_path: Path, option: str
) -> None:
    evil = tmp_path / "evil"
    plant_tokenizer(evil, reranker_world.blip if option.endswith("--rerank") else reranker_world.base, tmp_path / "mark")
    code, output = answered_yes(nursery, tmp_path, MODELS[option](str(evil), Place(reranker_world, tmp_path, tmp_path)))
    assert code == 2 and "auto_map" in output and "never run" in output and not (tmp_path / "mark").exists(), output


def read_paraphraser(folder: str) -> None:
    Paraphraser.read(folder)


KERNEL = "a kernel that would be fetched or imported"
ASKS_FOR = [
    ("config.json", ["auto_map"], {"AutoModel": "evil.EvilModel"}, "code of the model's own, which is never run"),
    ("config.json", ["custom_pipelines"], {"x": {"impl": "evil.Pipe"}}, "code of the model's own"),
    ("config.json", ["quantization_config"], {"quant_method": "gptq", "bits": 4}, "quantized weights, which are not read"),
    ("config.json", ["text_config", "quantization_config"], {"quant_method": "bitsandbytes"}, "quantized weights"),
    ("config.json", ["attn_implementation"], "kernels-community/flash-attn2", KERNEL),
    ("config.json", ["_attn_implementation"], "flash_attention_2", KERNEL),
    ("config.json", ["vision_config", "_attn_implementation"], "paged|someone/kernel@main:attention", KERNEL),
    ("config.json", ["attn_implementation"], {"text_config": "kernels-community/vllm-flash-attn3"}, KERNEL),
    ("config.json", ["experts_implementation"], "someone/experts", KERNEL),
    ("config.json", ["transformers_weights"], "../other/model.safetensors", "another file of weights"),
    ("config.json", ["to_dict"], 1, "to_dict is no setting"),
    ("preprocessor_config.json", ["auto_map"], {"AutoImageProcessor": "evil.Processor"}, "code of the model's own"),
    ("processor_config.json", ["auto_map"], {"AutoProcessor": "evil.Processor"}, "code of the model's own"),
    ("tokenizer_config.json", ["auto_map"], {"AutoTokenizer": ["evil.Tokenizer", None]}, "code of the model's own"),
    ("adapter_config.json", ["base_model_name_or_path"], "someone/else", "a PEFT adapter, which names a base of its own"),
]


@pytest.mark.parametrize("read", [load_siglip_config, check_cross_encoder, read_paraphraser])
@pytest.mark.parametrize(("file", "keys", "value", "reason"), ASKS_FOR, ids=lambda part: part if isinstance(part, str) else "")
def test_what_transformers_would_import_or_fetch_is_refused_by_name(
    reranker_world: RerankerWorld, tmp_path: Path, read: Callable[[str], Any], file: str, keys: list[str], value: Any, reason: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(reranker_world.blip if read is check_cross_encoder else reranker_world.base, folder)
    content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    section = content
    for key in keys[:-1]:
        section = section[key]
    section[keys[-1]] = value
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(UserError, match=reason) as caught:
        read(str(folder))
    assert str(folder) in str(caught.value) and file in str(caught.value)


def test_kernels_that_are_plain_are_read(reranker_world: RerankerWorld, tmp_path: Path) -> None:
    """What released configs hold: null, sdpa, eager, an empty map of code."""
    shutil.copytree(reranker_world.base, tmp_path / "model")
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    content |= {"_attn_implementation": "eager", "attn_implementation": None, "auto_map": {}, "_attn_implementation_autoset": True}
    (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    assert load_siglip_config(str(tmp_path / "model")).model_type == "siglip"
