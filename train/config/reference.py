"""Every key of a configuration, written from the models: configs/schema.json for editors, docs/configuration.md for people."""

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from train.config.job import JobConfig
from train.config.nearest_key import section_of
from train.config.reranker import MARKER, RerankerConfig
from train.config.sizes import SHARE, FromData

Schema = dict[str, Any]
_INTRO = """# Configuration

<!-- written by: python -m train.config --write -->

A configuration is a YAML file; `key.path=value` on the command line replaces or adds a value.
`./launch.sh train CONFIG.yaml --show-config` prints all keys with the values that a file gives them.
A key that is not known is an error that names the nearest one. Files begin with
`# yaml-language-server: $schema=PATH/TO/configs/schema.json`: with it editors complete the keys and show what they mean.

A default *in italics* follows from the data: the line `sizes` before the first step says what it is. A *share* is a number below 1, of
`train.max_steps`.
"""


def schema_of(kind: type[BaseModel]) -> Schema:
    """The JSON schema of a configuration as it is written: what follows from the data may be left out."""
    schema = kind.model_json_schema()
    for name, model in [("", kind), *((model.__name__, model) for model in _sections_below(kind))]:
        part = schema["$defs"][name] if name else schema
        optional = {key for key, field in model.model_fields.items() if from_data(field) is not None}
        part["required"] = [key for key in part.get("required", ()) if key not in optional]
        if not part["required"]:
            del part["required"]
    _simplify(schema)
    return schema


def both_schemas() -> Schema:
    """One schema for both kinds of run, told apart by the key `miner`, for configs/schema.json."""
    job, reranker = schema_of(JobConfig), schema_of(RerankerConfig)
    shared = job.pop("$defs"), reranker.pop("$defs")
    assert all(shared[0][name] == shared[1][name] for name in shared[0].keys() & shared[1].keys())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A configuration of siglip-tuner",
        "if": {"required": [MARKER]},
        "then": reranker,
        "else": job,
        "$defs": dict(sorted({**shared[0], **shared[1]}.items())),
    }


def page() -> str:
    """docs/configuration.md: a table for each section."""
    parts = [_INTRO, "## Tuning SigLIP\n", *_tables(JobConfig, schema_of(JobConfig), set())]
    known: set[type[BaseModel]] = {JobConfig, *_sections_below(JobConfig)}
    parts += [
        "## Tuning a reranker\n",
        f"A file with the key `{MARKER}`. `data` and `wandb` are those above, and so is all of `train` that is not named here.\n",
        *_tables(RerankerConfig, schema_of(RerankerConfig), known),
    ]
    return "\n".join(parts)


def schema_text() -> str:
    """configs/schema.json."""
    return json.dumps(both_schemas(), indent=1) + "\n"


def from_data(field: FieldInfo) -> FromData | None:
    """What a key is where it is left out, if that follows from the data."""
    candidates = [*field.metadata, *(mark for part in get_args(field.annotation) for mark in getattr(part, "__metadata__", ()))]
    return next((mark for mark in candidates if isinstance(mark, FromData)), None)


def _sections_below(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """Every section of a configuration, each once."""
    found: dict[type[BaseModel], None] = {}
    for field in kind.model_fields.values():
        if section := section_of(field.annotation):
            found |= dict.fromkeys([section, *_sections_below(section)])
    return list(found)


def _simplify(part: Any) -> None:
    """Make alternatives of alternatives one list, in place, each once."""
    if isinstance(part, list):
        for inner in part:
            _simplify(inner)
    if not isinstance(part, dict):
        return
    for inner in part.values():
        _simplify(inner)
    if "anyOf" in part:
        flat = [choice for inner in part["anyOf"] for choice in inner.get("anyOf", [inner])]
        part["anyOf"] = [choice for number, choice in enumerate(flat) if choice not in flat[:number]]


def _tables(kind: type[BaseModel], schema: Schema, known: set[type[BaseModel]], prefix: str = "") -> Iterator[str]:
    """The table of a section, then those of the sections below it; of what is in `known` already nothing."""
    properties = (schema["$defs"][kind.__name__] if prefix else schema)["properties"]
    bases = {base for other in known for base in other.__mro__} & set(kind.__mro__[1:])
    shown_above = {name for base in bases for name in getattr(base, "model_fields", {})} if prefix else set()
    rows, below = [], list[str]()
    for name, field in kind.model_fields.items():
        section = section_of(field.annotation)
        is_list = "list" in str(field.annotation)
        if name not in shown_above:
            words = " ".join((field.description or (section and section.__doc__) or "").split()).replace("|", "\\|")
            kind_of = _section_words(field, is_list, properties[name]) if section else _type(properties[name])
            rows.append(f"| `{name}` | {kind_of} | {_default(field)} | {words} |")
        if section is not None and section not in known:
            below += _tables(section, schema, known, f"{prefix}{name}{'[]' if is_list else ''}.")
    head = "| key | type | default | meaning |\n|---|---|---|---|"
    yield "\n".join([f"### {prefix.rstrip('.') or 'Top level'}", "", head, *rows, ""])
    yield from below


def _section_words(field: FieldInfo, is_list: bool, schema: Schema) -> str:
    words = " or ".join(["list of sections" if is_list else "section", *(_type(one) for one in schema.get("anyOf", ()) if "enum" in one)])
    return words + (" or null" if type(None) in get_args(field.annotation) else "")


def _default(field: FieldInfo) -> str:
    if (mark := from_data(field)) is not None:
        return f"*{mark.default}*"
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its defaults"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _type(schema: Schema) -> str:
    """What values a key takes, in words."""
    if "anyOf" in schema:
        return " or ".join(sorted((_type(choice) for choice in schema["anyOf"]), key=lambda words: words == "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer":
            return f"whole number{_bounds(schema)}"
        case "number":
            return "share" if schema.get("description") == SHARE else f"number{_bounds(schema)}"
        case "boolean":
            return "`true`, `false`"
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
        case "array":
            return f"list of {_type(schema['items'])}"
        case "object":
            values = schema.get("additionalProperties") or next(iter(schema["patternProperties"].values()))
            return f"{{name: {_type(values)}}}"
        case "string":
            return "name" if "pattern" in schema else "text"
        case other:
            return str(other)


def _bounds(schema: Schema) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {schema[name]:,}" for name, sign in signs.items() if name in schema]
    return f" {', '.join(bounds)}" if bounds else ""
