"""Cutting a normalised text at its top level, outside all brackets."""

import re
from collections.abc import Callable


_TOKEN = re.compile(r"\\begin\{[a-z*]+\}|\\end\{[a-z*]+\}|\\[{}]|\\[a-zA-Z]+|\\.|[(){}\[\]]|.", re.DOTALL)
_OPENING = ("(", "[", "{", "\\{")
_CLOSING = (")", "]", "}", "\\}")


def split_top(text: str, is_separator: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    """The parts between the separators outside brackets, and those separators; half-open brackets may pair."""
    parts, separators, start, depth = [], [], 0, 0
    for token in _TOKEN.finditer(text):
        kind = token.group()
        if kind in _OPENING or kind.startswith("\\begin"):
            depth += 1
        elif kind in _CLOSING or kind.startswith("\\end{"):
            depth -= 1
        elif depth == 0 and is_separator(kind):
            parts.append(text[start : token.start()].strip())
            separators.append(kind)
            start = token.end()
    parts.append(text[start:].strip())
    return parts, separators


def enclosed(text: str) -> tuple[str, str, str] | None:
    """Opening bracket, content and closing bracket of a text that one pair of brackets encloses."""
    if not text:
        return None
    start = 2 if text.startswith("\\{") else 1
    end = 2 if text.endswith("\\}") else 1
    opening, closing = text[:start], text[len(text) - end :]
    if opening not in _OPENING or closing not in _CLOSING or len(text) < start + end:
        return None
    depth = 0
    for token in _TOKEN.finditer(text):
        kind = token.group()
        if kind in _OPENING or kind.startswith("\\begin"):
            depth += 1
        elif kind in _CLOSING or kind.startswith("\\end{"):
            depth -= 1
            if depth == 0 and token.end() < len(text):
                return None
    return None if depth else (opening, text[start : len(text) - end].strip(), closing)
