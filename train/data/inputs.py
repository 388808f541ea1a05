"""Every input that a configuration names, looked at on its own: so that all that is wrong is told at once, not one fault an attempt.

It reads the keys and values as they were given: a configuration that is refused for one key still names its data and its models.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import ValidationError

from eval.choices.choice_set import read_choices
from eval.dataset.qrels import read_qrels
from eval.encoder.checkpoint import check_encoder
from eval.errors import UserError
from eval.files import at_home
from eval.manifest.manifest import RowRules, read_manifest
from rerank.combine.spec import parse_member
from rerank.scorers.supported import check_cross_encoder
from train.config.evaluation import WatchConfig
from train.config.reranker import is_reranker
from train.config.run import DataConfig
from train.data.caption_pool import read_additional_captions
from train.data.splits import RetentionSet, SplitMaker

Record = Mapping[str, Any]
Check = tuple[str, Callable[[], Any]]
"""(the key that names an input, empty where its faults say which it is; what reads as much of it as is cheap, or refuses it)."""


def input_faults(record: Record, *, with_data: bool = True) -> list[str]:
    """What is wrong with each input, in the order of its keys; an input is looked at once, and weights are not read.

    Args:
        record: the keys and values of a configuration, of which some may be wrong.
        with_data: whether the manifest, the retention sets and the pool are read too.
    """
    record = at_home(record)
    faults: dict[str, None] = {}
    checks = [*(_data_checks(record) if with_data else ()), *_model_checks(record), *_file_checks(record)]
    for key, check in checks:
        try:
            check()
        except UserError as error:
            text = str(error)
            faults[text if text.startswith(key) else f"{key}: {text}"] = None
        except (OSError, ValidationError):  # the configuration's own fault, or the network's, which the run itself will name
            continue
    return list(faults)


def with_other_faults(error: UserError, record: Record, *, with_data: bool) -> UserError:
    """The error, and what else is wrong with the inputs; itself where that is nothing or it is no bad input."""
    if error.exit_code != UserError.exit_code:
        return error
    others = [fault for fault in input_faults(record, with_data=with_data) if not _is_told(fault, str(error))]
    if not others:
        return error
    told = UserError("\n".join([str(error), *others]))
    told.is_shared = error.is_shared  # then one process says it
    return told


def _is_told(fault: str, text: str) -> bool:
    """Whether a fault is in the text already, with or without the key in front of it."""
    return fault in text or fault.partition(": ")[2] in text


def _get(record: Record, path: str) -> Any:
    """The value at a key, or None where it, or a section above it, is not there or is no section."""
    value: Any = record
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _data_checks(record: Record) -> Iterator[Check]:
    yield "", partial(_read_data, record)
    watched = _get(record, "watch")
    for values in watched if isinstance(watched, list) else ():
        yield "", partial(_read_watched, values)
    if isinstance(pool := _get(record, "mining.pool"), str):
        yield "mining.pool", partial(read_additional_captions, pool)


def _read_data(record: Record) -> None:
    data = DataConfig.model_validate(_get(record, "data"))
    wanted = [split for split in (data.train_split, data.val_split, data.test_split) if split is not None]
    rules = RowRules(skip_missing=data.skip_missing, divide=SplitMaker(data).divide)
    read_manifest(data.source, image_root=data.image_root, columns=data.columns, require_splits=wanted, rules=rules)


def _read_watched(values: Any) -> None:
    RetentionSet.load(WatchConfig.model_validate(values))


def _read_member(text: str) -> None:
    check_encoder(parse_member(text)[0])


def _model_checks(record: Record) -> Iterator[Check]:
    siglips, cross_encoders = ["model.base"], ["rerank.model", "mining.denoise.model", "mining.distil.model"]
    if is_reranker(record):
        siglips, cross_encoders = ["miner"], ["model.base"]
    readers: list[tuple[list[str], Callable[[str], Any]]] = [(siglips, check_encoder), (cross_encoders, check_cross_encoder)]
    for keys, check in readers:
        for key in keys:
            if isinstance(name := _get(record, key), str):
                yield key, partial(check, name)
    for key in ("evaluation.models", "evaluation.ensemble.members"):
        models = _get(record, key)
        for name, text in models.items() if isinstance(models, Mapping) else ():
            if isinstance(text, str):
                yield f"{key}.{name}", partial(_read_member, text)


def _file_checks(record: Record) -> Iterator[Check]:
    for key in ("data.truth", "evaluation.qrels"):
        if isinstance(path := _get(record, key), str):
            yield key, partial(read_qrels, path)
    choices = _get(record, "choices")
    for path in choices if isinstance(choices, list) else ():
        if isinstance(path, str):
            yield "choices", partial(read_choices, path)
