"""eval/encoder/identity.py: what a model is next to its weights, by value."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.encoder.checkpoint import load_siglip
from eval.encoder.identity import Identity, begun_with, check_identity, differences, identity_of, identity_sha256
from eval.errors import UserError
from tests.hub_server import COMMITS, go_online, serving
from tests.siglip2 import write_siglip2
from tests.small_job import SmallWorld, load


def identity(folder: Path) -> Identity:
    model, inputs = load_siglip(folder)
    return identity_of(model.config, inputs.image_processor, inputs.tokenizer)


def test_a_copy_and_a_folder_written_again_are_the_same_model(small_world: SmallWorld, tmp_path: Path) -> None:
    model, inputs = load_siglip(small_world.base)
    model.save_pretrained(tmp_path / "written")
    inputs.save(tmp_path / "written")
    shutil.copytree(small_world.base, tmp_path / "copy")
    for name in ("written", "copy"):
        assert differences(identity(small_world.base), identity(tmp_path / name)) == []


def test_it_is_the_same_after_a_turn_through_json_and_after_use(small_world: SmallWorld) -> None:
    model, inputs = load_siglip(small_world.base)
    first = identity_of(model.config, inputs.image_processor, inputs.tokenizer)
    inputs.token_ids(["a dog"] * 3)
    assert identity_of(model.config, inputs.image_processor, inputs.tokenizer) == first == json.loads(json.dumps(first))


@pytest.mark.parametrize("is_siglip2", [False, True], ids=["sentencepiece", "fast"])
def test_another_tokenizer_is_named(small_world: SmallWorld, tmp_path: Path, is_siglip2: bool) -> None:
    base = write_siglip2(tmp_path / "siglip2", load(small_world.manifest).captions) if is_siglip2 else small_world.base
    model, inputs = load_siglip(base)
    before = identity_of(model.config, inputs.image_processor, inputs.tokenizer)
    inputs.tokenizer.add_tokens(["quokka"])
    (line,) = differences(before, identity_of(model.config, inputs.image_processor, inputs.tokenizer))
    assert line.startswith("the tokenizer has other values (") and "quokka" in line


def test_of_another_version_of_transformers_only_what_both_know_is_compared() -> None:
    def made(version: str, **config: Any) -> Identity:
        return {"config": config, "image_processor": {}, "tokenizer": {}, "library": {"transformers": version}}

    old = made("5.0", width=8, gone=1)
    assert differences(old, made("5.1", width=8, new=2)) == []
    assert differences(old, made("5.1", width=9)) == ["the config has other values (width: 8 -> 9)"]
    assert differences(old, made("5.0", width=8)) == ["the config has other values (gone: 1 -> None)"]
    assert identity_sha256(made("5.0", width=8)) == identity_sha256(made("5.1", width=8)) != identity_sha256(made("5.0", width=9))


def test_a_difference_is_refused_with_the_models_and_the_runs_name() -> None:
    one: Identity = {"config": {"a": 1, "b": 1, "c": 1, "d": 1}}
    two: Identity = {"config": {"a": 2, "b": 2, "c": 2, "d": 2}}
    check_identity("BASE", "runs/job", None, two)
    check_identity("BASE", "runs/job", one, one)
    words = r"BASE is another model than when runs/job was begun: the config has other values \(a: 1 -> 2; b.*; c.*; and 1 more\)"
    with pytest.raises(UserError, match=words):
        check_identity("BASE", "runs/job", one, two)


def test_a_model_of_the_hub_that_moved_on_is_named_with_the_commit_it_was(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is recorded and does not count: the same files at another commit are the same model."""
    model, inputs = load_siglip(small_world.base)
    with serving() as hub:
        go_online(monkeypatch, hub.endpoint, tmp_path / "cache")
        hub.publish("someone/siglip", small_world.base, COMMITS[0])
        load_siglip("someone/siglip")
        recorded = identity_of(model.config, inputs.image_processor, inputs.tokenizer, "someone/siglip")
        assert recorded["hub"] == {"commit": COMMITS[0]} and identity_sha256(recorded) == identity_sha256(identity(small_world.base))
        assert begun_with("someone/siglip", recorded) == "" == begun_with(str(small_world.base), recorded)
        hub.publish("someone/siglip", small_world.base, COMMITS[1])
        go_online(monkeypatch, hub.endpoint, tmp_path / "another process")
        load_siglip("someone/siglip")
        found = identity_of(model.config, inputs.image_processor, inputs.tokenizer, "someone/siglip")
        check_identity("someone/siglip", "runs/a", recorded, found)
        words = f" It was commit {COMMITS[0]} of the hub, and is {COMMITS[1]} now: name that one, someone/siglip@{COMMITS[0]}."
        assert begun_with("someone/siglip", recorded) == words
        found["config"] = found["config"] | {"text_config.hidden_act": "relu"}
        with pytest.raises(UserError, match=f"hidden_act.*relu.*someone/siglip@{COMMITS[0]}. Bring its files back"):
            check_identity("someone/siglip", "runs/a", recorded, found)
