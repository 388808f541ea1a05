"""Lists that are written into the text of a cell: by json, by Python (to_csv of pandas and datasets), or by numpy, without commas."""

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

_STRING = r"""(?:[bBuU]?'(?:[^'\\]|\\.)*'|[bBuU]?"(?:[^"\\]|\\.)*")"""
_ITEM = re.compile(rf"({_STRING})|np\.str_\(({_STRING})\)|None|null|nan", re.DOTALL)
_GAP = re.compile(r"[\s,]+")
_SHORTENED = re.compile(r"\.\.\.|…")
_ARRAY = re.compile(r"(?:array|frozenset|set|list|tuple)\((.*?)(?:,\s*dtype=[^()]*)?\)", re.DOTALL)
_ENDS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = re.compile(r"[\[({]\s*(?:np\.str_\()?[bBuU]?['\"]")
_NESTED = re.compile(r"\[\s*[\[({]|\[.*,", re.DOTALL)
_CUT_OFF = re.compile(rf"\[\s*(?:(?:{_ITEM.pattern})[\s,]*)+(?:['\"][^'\"]*|\.\.\.|…)?", re.DOTALL)


@dataclass(frozen=True)
class UnreadableList:
    """Stands for a cell that holds a list which cannot be read; `what` says why, and what to do."""

    what: str


def as_list(value: Any) -> list[Any]:
    """What a cell of texts holds: a list, a list written into text, one text, or nothing (null and the empty cell).

    Of a list that cannot be read the one item is an `UnreadableList`.
    """
    value = parsed_list(value)
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


def parsed_list(value: Any, *, quoted: bool = False) -> Any:
    """The list that a text is, or an `UnreadableList` where it must be one but cannot be read; anything else as it is.

    Args:
        quoted: only what begins with a bracket and a quote can be a list, as in a column of single texts.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.endswith(")") and (array := _ARRAY.fullmatch(text)) is not None:
        text = array[1].strip()
    if text[:1] not in _ENDS:
        return value
    is_quoted = _QUOTED.match(text) is not None
    if quoted and not is_quoted:
        return value
    if text[0] == "[":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    is_whole = text[-1] == _ENDS[text[0]]
    items, is_shortened = _read_items(text) if is_whole else (None, _CUT_OFF.fullmatch(text) is not None)
    if items is not None and not is_shortened:
        return items
    is_list = is_whole and text[0] == "[" and (is_quoted or _NESTED.match(text) is not None)
    if not is_shortened and not is_list:
        return value
    why = "was shortened where it was written" if is_shortened else "cannot be taken apart"
    return UnreadableList(f'a list that {why}: {value!r:.120}. Write it as JSON: ["one", "two"]')


def _read_items(text: str) -> tuple[list[Any] | None, bool]:
    """(the items between the brackets, whether ... stands for some of them); (None, False) where it is no list of items."""
    items: list[Any] = []
    inner, place, num_commas, is_separated, is_shortened = text[1:-1].strip(), 0, 0, True, False
    while place < len(inner):
        if found := _GAP.match(inner, place):
            if found[0].count(",") > 1:
                return None, False
            num_commas += found[0].count(",")
            is_separated = True
        elif found := _SHORTENED.match(inner, place):
            is_shortened = is_separated = True
        elif is_separated and (found := _ITEM.match(inner, place)):
            try:
                items.append(ast.literal_eval(found[1] or found[2] or "None"))
            except (ValueError, SyntaxError):
                return None, False
            is_separated = False
        else:
            return None, False
        place = found.end()
    if is_shortened or not items:
        return (items or None), is_shortened and bool(items)
    # Commas everywhere, the last one by choice, or, as numpy writes it, nowhere; ('one') is a text within brackets.
    counts = {len(items) - 1, len(items)} if text[0] != "(" or len(items) > 1 else {1}
    return (items if num_commas in counts or (text[0] == "[" and num_commas == 0) else None), False
