"""The one reader of YAML: what is ambiguous, twice there, or made to exhaust the reader is refused, by name and line.

YAML 1.1 as PyYAML's safe loader reads it, less what surprises: 017 is octal there and 1:30 is 90. A date stays a text.
"""

import itertools
import re
from functools import cache
from typing import Any

import yaml

MOST_CHARACTERS = 1 << 20
MOST_DEPTH = 20
MOST_VALUES = 20_000
MOST_DIGITS = 18
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")


class YamlFault(ValueError):
    """A text that is no YAML, or YAML that is refused; the message says what and in which line."""


def parse_yaml(text: str) -> Any:
    """What a YAML text holds: mappings, lists, texts, numbers, true, false, null.

    Raises:
        YamlFault: it is not valid, holds a key twice or a number that reads as another, or is too long, too deep or too large.
    """
    if len(text) > MOST_CHARACTERS:
        raise YamlFault(f"longer than {MOST_CHARACTERS:,} characters: this is no configuration")
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a safe loader
    except yaml.YAMLError as error:
        raise YamlFault(f"not valid YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a node as soon as it is read."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:timestamp"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _depth = _num_values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node and what lies below it."""
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise _fault(event, f"the tag {event.tag[:100]} is not read here; write the plain value")
        self._num_values += 1
        self._depth += 1
        if self._depth > MOST_DEPTH or self._num_values > MOST_VALUES:
            raise _fault(event, f"nested more than {MOST_DEPTH} deep" if self._depth > MOST_DEPTH else f"more than {MOST_VALUES:,} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.style is None:
            _check_plain(node)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping, each key once."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _fault(key, "expected a key, found a list or a mapping")
            if key.value in lines:
                raise _fault(key, f"{key.value[:100]!r} is there twice, first in line {lines[key.value]}; keep one of the two")
            lines[key.value] = key.start_mark.line + 1
        return node

    def construct_document(self, node: Any) -> Any:
        """The values of a whole text."""
        _check_aliases(node)
        return super().construct_document(node)


def _fault(place: Any, what: str) -> YamlFault:
    return YamlFault(f"line {place.start_mark.line + 1}: {what}")


def _check_plain(node: yaml.ScalarNode) -> None:
    """Refuse a number without quotes that reads as another than it looks, or is too long to be one."""
    text = str(node.value)
    if _OCTAL.fullmatch(text):
        raise _fault(node, f"{text[:40]} would be read as an octal number; write it without the leading 0, or, if it is a text, in quotes")
    if _BASE_60.fullmatch(text):
        raise _fault(node, f"{text[:40]} would be read as a number to base 60; write the number itself, or, if it is a text, use quotes")
    if _INTEGER.fullmatch(text) and len(text.lstrip("+-").replace("_", "")) > MOST_DIGITS:
        raise _fault(node, f"{text[:40]}{'...' if len(text) > 40 else ''} is a whole number of more than {MOST_DIGITS} digits")


def _check_aliases(root: Any) -> None:
    """Refuse aliases that make a value part of itself, or a deeper or a larger one than could be written out."""
    unfinished: set[int] = set()

    @cache
    def measured(node: Any) -> tuple[int, int]:
        """(values, depth) of a node written out. What an alias stands for comes before it, and is measured already."""
        if isinstance(node, yaml.ScalarNode):
            return 1, 1
        if id(node) in unfinished:
            raise _fault(node, "it contains itself, by an alias")
        unfinished.add(id(node))
        parts = [measured(part) for part in (itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value)]
        unfinished.discard(id(node))
        num_values, depth = 1 + sum(num for num, _ in parts), 1 + max((deep for _, deep in parts), default=0)
        if num_values > MOST_VALUES or depth > MOST_DEPTH:
            raise _fault(node, f"its aliases stand for more than {MOST_VALUES:,} values, or are nested more than {MOST_DEPTH} deep")
        return num_values, depth

    if root is not None:
        measured(root)
