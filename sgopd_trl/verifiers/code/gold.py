"""The gold of a programming task: its unit tests."""

import json
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class UnitTests:
    """Unit tests, in one form for all sources.

    Args:
        fn_name: the function that is called, or `None` where programs read stdin and write stdout.
        inputs: per test its stdin, or the list of its arguments.
        outputs: per test its stdout, or the value to be returned, of plain JSON types.
    """

    fn_name: str | None
    inputs: list[Any]
    outputs: list[Any]


def parse_gold(gold: str | dict[str, Any], wrapped_outputs: bool = False) -> UnitTests:
    """Reads a gold in the format of APPS, TACO, PRIME and LiveCodeBench.

    A JSON object with `inputs` and `outputs` of equal length. Without a `fn_name`, each is a stdin and a stdout (or a list
    of its lines, as in some rows of APPS). With one, each input is the list of arguments and each output the value that
    is returned; where all of them are strings it is LiveCodeBench's form: an argument a line, in JSON, and the value in
    JSON. Other keys are ignored.

    Args:
        gold: the object, or its JSON. wrapped_outputs: each returned value is in a list of one, as APPS and TACO have it.

    Raises:
        ValueError: with what is wrong.
    """
    gold = _loads(gold, "the gold") if isinstance(gold, str) else _plain(gold)
    if not isinstance(gold, dict):
        raise ValueError(f"the gold must be a JSON object with `inputs` and `outputs`, got {type(gold).__name__}")
    inputs, outputs, fn_name = gold.get("inputs"), gold.get("outputs"), gold.get("fn_name") or None
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if not isinstance(value, list):
            raise ValueError(f"`{name}` must be a list, an entry per test, got {_short(value)}")
    if len(inputs) != len(outputs):
        raise ValueError(f"there are {len(inputs)} inputs but {len(outputs)} outputs: one each is needed")
    if not inputs:
        raise ValueError("there are no tests: every program would pass")
    if fn_name is None:
        return UnitTests(None, _texts(inputs, "inputs"), _texts(outputs, "outputs"))
    if not isinstance(fn_name, str) or not fn_name.isidentifier():
        raise ValueError(f"`fn_name` must be the name of a function, got {_short(fn_name)}")
    if all(isinstance(value, str) for value in inputs):
        inputs, outputs = _live_code_bench(inputs, outputs)
    return UnitTests(fn_name, _arguments(inputs), _values(outputs, wrapped_outputs))


def check_gold(gold: str | dict[str, Any], wrapped_outputs: bool = False) -> str | None:
    """What is wrong with a gold, or `None`."""
    try:
        parse_gold(gold, wrapped_outputs)
    except ValueError as error:
        return str(error)
    return None


def _texts(values: list[Any], name: str) -> list[str]:
    texts = []
    for n, value in enumerate(values):
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = "\n".join(value)
        if not isinstance(value, str):
            raise ValueError(
                f"`{name}[{n}]` must be a string, got {_short(value)}; with a `fn_name` it could be any JSON"
            )
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"`{name}[{n}]` is no valid text: {error}") from error
        texts.append(value)
    return texts


def _live_code_bench(inputs: list[str], outputs: list[Any]) -> tuple[list[Any], list[Any]]:
    arguments = [
        [_loads(line, f"`inputs[{n}]`") for line in text.splitlines() if line.strip()] for n, text in enumerate(inputs)
    ]
    values = [_loads(text, f"`outputs[{n}]`") if isinstance(text, str) else text for n, text in enumerate(outputs)]
    return arguments, values


def _arguments(inputs: list[Any]) -> list[list[Any]]:
    for n, arguments in enumerate(inputs):
        if not isinstance(arguments, list):
            raise ValueError(f"`inputs[{n}]` must be the list of the function's arguments, got {_short(arguments)}")
    return inputs


def _values(outputs: list[Any], wrapped: bool) -> list[Any]:
    if wrapped:
        for n, value in enumerate(outputs):
            if not isinstance(value, list) or len(value) != 1:
                raise ValueError(f"`outputs[{n}]` must be a list of one, with `wrapped_outputs`, got {_short(value)}")
        outputs = [value for (value,) in outputs]
    for n, value in enumerate(outputs):
        if _holds_nan(value):
            raise ValueError(f"`outputs[{n}]` holds NaN, which no value equals")
    return outputs


def _holds_nan(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_holds_nan, value))
    if isinstance(value, dict):
        return any(map(_holds_nan, value.values()))
    return isinstance(value, float) and math.isnan(value)


def _plain(gold: Any) -> Any:
    """The gold as JSON would have it: tuples as lists, keys as strings."""
    try:
        return json.loads(json.dumps(gold))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the gold must hold JSON values only: {error}") from error


def _loads(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON: {error}; it begins {text[:80]!r}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
