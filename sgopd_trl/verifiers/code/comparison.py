"""When what a program printed or returned is what was expected."""

import json
import math
import re
from typing import Any


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def same_output(output: str, expected: str, tolerance: float = 1e-9) -> bool:
    """Whether two outputs agree: line for line, word for word.

    White space within a line and at its ends, and blank lines at the start and the end, do not count. Two words agree
    where they are the same text, or where the expected one is a decimal number with a point or an exponent and the other
    one a number within the tolerance. Integers must be the same text: `3.0` is not `3`.

    Args:
        output: of the program. expected: of the gold. tolerance: of numbers, absolute below 1 and relative above.
    """
    lines, wanted = output.strip().splitlines(), expected.strip().splitlines()
    if len(lines) != len(wanted):
        return False
    return all(_same_line(line.split(), want.split(), tolerance) for line, want in zip(lines, wanted, strict=True))


def _same_line(words: list[str], wanted: list[str], tolerance: float) -> bool:
    if len(words) != len(wanted):
        return False
    return all(w == e or _same_word(w, e, tolerance) for w, e in zip(words, wanted, strict=True))


def _same_word(word: str, expected: str, tolerance: float) -> bool:
    if not _NUMBER.fullmatch(expected) or expected.lstrip("+-").isdigit() or not _NUMBER.fullmatch(word):
        return False
    return _close(float(word), float(expected), tolerance)


def load_value(text: bytes) -> Any:
    """The JSON value of an answer that cannot be trusted.

    Raises:
        ValueError: where it is no JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def same_value(value: Any, expected: Any, tolerance: float = 1e-9) -> bool:
    """Whether two JSON values agree.

    Lists, objects and strings must be the same throughout; `true` is not `1`; two integers must be equal, and two numbers
    one of which is a float within the tolerance. NaN agrees with nothing, an infinity with itself.

    Args:
        value: of the program. expected: of the gold. tolerance: of numbers, absolute below 1 and relative above.
    """
    if isinstance(expected, list):
        return (
            isinstance(value, list)
            and len(value) == len(expected)
            and all(same_value(v, e, tolerance) for v, e in zip(value, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same_value(value[key], wanted, tolerance) for key, wanted in expected.items())
        )
    if type(value) in (int, float) and type(expected) in (int, float):
        if type(value) is type(expected) is int:
            return value == expected
        return _close(value, expected, tolerance)
    return type(value) is type(expected) and value == expected


def _close(value: float, expected: float, tolerance: float) -> bool:
    try:
        value, expected = float(value), float(expected)
    except OverflowError:
        return False
    if math.isinf(value) or math.isinf(expected):
        return value == expected
    return abs(value - expected) <= tolerance * max(1.0, abs(expected))
