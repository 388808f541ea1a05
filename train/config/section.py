"""What every section of a configuration has in common: unknown keys refused, values fixed once read, docstrings as documentation."""

import os
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MOST_NAME_LETTERS = 100
MOST_FILE_NAME_BYTES = 255
"""Of each part of a path, on every file system in use."""
LARGEST_NUMBER = 2**53
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=MOST_NAME_LETTERS)]
"""A name that files and folders are called by."""


class Section(BaseModel):
    """One section of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic would take true for 1 and false for 0: `margin: off` would be a margin of 0."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        parts = [value] if _holds(annotation, Section) else _parts(value)
        if any(isinstance(part, bool) for part in parts) and not _holds(annotation, bool):
            remedy = "; write null for no such rule" if type(None) in get_args(annotation) else ""
            raise ValueError(
                f"expected no truth value (YAML reads on, yes and true as true, off, no and false as false){remedy}; found {value!r:.100}"
            )
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _refuse_what_is_too_long(cls, value: Any) -> Any:
        for part in _parts(value):
            if isinstance(part, int) and abs(part) > LARGEST_NUMBER:
                raise ValueError(f"expected a whole number up to {LARGEST_NUMBER:,}, found one of {len(str(abs(part)))} digits")
            if isinstance(part, str) and "\0" in part:
                raise ValueError(f"expected a text without the character 0, found {part[:60]!r}")
            if isinstance(part, str) and any(len(os.fsencode(name)) > MOST_FILE_NAME_BYTES for name in part.split("/")):
                raise ValueError(f"longer than a name can be, {MOST_FILE_NAME_BYTES} bytes between two /; found {part[:60]!r}...")
        return value


def _parts(value: Any) -> list[Any]:
    """A value, or what lists and mappings hold."""
    if isinstance(value, dict):
        value = [part for pair in value.items() for part in pair]
    return [inner for part in value for inner in _parts(part)] if isinstance(value, (list, tuple)) else [value]


def _holds(annotation: Any, kind: type) -> bool:
    """Whether values of this kind are among those of a field; true or false may be one of its literals."""
    if get_origin(annotation) is Literal:
        return any(isinstance(value, kind) for value in get_args(annotation))
    return (isinstance(annotation, type) and issubclass(annotation, kind)) or any(_holds(part, kind) for part in get_args(annotation))
