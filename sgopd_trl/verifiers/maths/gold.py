"""Gold answers: read once, and checked."""

import re
from dataclasses import dataclass
from functools import lru_cache

from .answers import Answer, Named, Quantity, Verbatim
from .equality import symbols, value_of
from .evaluation import Undefined
from .extraction import extract_answer
from .limits import MAX_NORMALISED, Refused
from .normal import key, normalise, repaired_names
from .reading import read


_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


@dataclass(frozen=True)
class Gold:
    """A gold answer as it is compared.

    Args:
        text: normalised. key: the text without spaces. answer: as read. problem: why it cannot serve, or is malformed.
        usable: whether anything can be correct against it.
    """

    text: str
    key: str
    answer: Answer
    problem: str | None
    usable: bool


@lru_cache(maxsize=65_536)
def read_gold(gold: str) -> Gold:
    """A gold answer, bare or boxed, with or without dollars."""
    inside = extract_answer(gold) if "\\boxed" in gold or "\\fbox" in gold else gold
    if inside is None or not inside.strip():
        return Gold(
            "", "", Verbatim(""), "it is empty" if not gold.strip() else "its box is empty or not closed", False
        )
    if len(inside) > MAX_NORMALISED:
        return Gold(inside, inside, Verbatim(inside, "long"), f"it has {len(inside)} characters", True)
    text = normalise(inside)
    answer = read(text)
    undefined = _undefined(text, answer)
    problem = _unbalanced(inside) or undefined
    if problem is None and isinstance(answer, Verbatim) and answer.refused:
        problem = f"it is not computed ({answer.refused}): only the same text is correct"
    names = repaired_names(inside)
    if problem is None and names:
        problem = f"it is malformed: {', '.join(names)} without a backslash, read as {text}"
    return Gold(text, key(text), answer, problem, not undefined and bool(text))


def check_gold(gold: str) -> str | None:
    r"""Why a gold answer cannot serve as one, or None where it is fine.

    A malformed one that can be read only one way, such as `\frac{sqrt{7} + 1}{2}`, is judged by what it means, and is
    reported here all the same. Never raises.
    """
    try:
        return read_gold(str(gold)).problem
    except Exception as error:
        return f"it cannot be read: {error!r}"


def _unbalanced(text: str) -> str | None:
    depth = 0
    for brace in _BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            break
    return "its braces do not balance" if depth else None


def _undefined(text: str, answer: Answer) -> str | None:
    """Why a gold has no value, such as 1/0."""
    value = answer.value if isinstance(answer, Named) else answer
    try:
        if isinstance(value, Quantity) and not symbols(value.value):
            value_of(value.value)
    except Undefined as error:
        return f"it has no value ({error})"
    except Refused:
        return None
    if isinstance(answer, Verbatim) and answer.undefined:
        return "it has no value"
    return None
