"""Equations, inequalities and approximations."""

import re
from collections.abc import Callable
from fractions import Fraction

from .answers import Answer, Named, Quantity, RealSet, Relation, Verbatim
from .equality import equal, order, symbols
from .limits import Refused
from .literals import read_number, without_literals
from .normal import key
from .parser import Unreadable, parse_expression
from .regions import REALS, from_relation, intersection
from .scalars import SIGNED_INFINITY, is_symbol, read_scalar
from .split import enclosed
from .units import without_unit


RELATIONS = ("=", "<", ">", r"\le", r"\ge", r"\neq", r"\approx")
FLIPPED = {"=": "=", "<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", r"\neq": r"\neq"}

_MAX_SIDES = 8
_NAME = re.compile(
    r"\\text\{[^{}]*\}|\\?[a-zA-Z]+'*(?:\{[a-zA-Z]\})?(?:_\{[^{}]*\})?(?:\^\{-1\})?(?:\s*(?:\(.*\)|\[.*\]|[A-Z]+))?"
)


def read_relations(parts: list[str], operators: list[str], part: Callable[[str], Answer]) -> Answer:
    """A chain of sides with signs between them.

    Args:
        part: reads a side; what it does not understand it gives back `Verbatim`.

    Raises:
        Unreadable: it has no meaning, or does not hold. Refused: too large.
    """
    if len(parts) > _MAX_SIDES or not all(parts):
        raise Unreadable("no relation")
    if r"\approx" in operators:
        return _read_approximation(parts, operators, part)
    if set(operators) == {"="}:
        return _read_equation(parts, part)
    return _read_inequality(parts, operators)


def _read_equation(parts: list[str], part: Callable[[str], Answer]) -> Answer:
    """A chain of equal values, the first perhaps a name: `x = 3`, `m + n = 100 + 17 = 117`, `7^2 = 49`."""
    if len(parts) == 2 and is_symbol(parts[1]) and read_number(parts[0]) is not None:
        parts = parts[::-1]  # 3 = x
    sides = [part(text) for text in parts]
    if any(isinstance(side, Verbatim) and side.refused for side in sides[1:]):
        raise Refused("a side of an equation")
    named = _NAME.fullmatch(parts[0]) or enclosed(parts[0])
    if named and (len(parts[0]) == 1 or not _is_number(sides[0])):
        sides = sides[1:]
    else:
        named = None
    numbers = [side for side in sides if _is_number(side)]
    for first, second in zip(numbers, numbers[1:], strict=False):
        if not equal(first.value, second.value):
            raise Unreadable("an equation that does not hold")
    last = sides[-1]
    if isinstance(last, (Verbatim, Named, Relation)):
        raise Unreadable("no value")
    if named:
        return Named(key(parts[0]), last, _difference(parts[0], parts[-1]))
    if len(numbers) == len(sides):
        return last
    relation = _difference(parts[0], parts[-1])
    if not isinstance(sides[0], Quantity) or not isinstance(last, Quantity) or relation is None:
        raise Unreadable("no value")
    if _is_number(last) and not _is_number(sides[0]):
        return Named(key(parts[0]), last, relation)
    if len(sides) > 2:
        raise Unreadable("several equations")
    return relation


def _is_number(side: Answer) -> bool:
    return isinstance(side, Quantity) and not symbols(side.value)


def _difference(left: str, right: str, op: str = "=") -> Relation | None:
    try:
        return Relation(parse_expression(without_literals(f"{left}-({right})")), op)
    except (Refused, Unreadable):
        return None


def _read_approximation(parts: list[str], operators: list[str], part: Callable[[str], Answer]) -> Answer:
    """What stands before the sign, where the decimal behind it is that value rounded or cut off."""
    if operators[-1] != r"\approx" or operators.count(r"\approx") > 1 or set(operators[:-1]) - {"="}:
        raise Unreadable("approximations")
    decimal = without_unit(parts[-1])[0]
    rounded = read_number(decimal)
    if len(parts) == 2 and is_symbol(parts[0]) and rounded is not None:
        return Named(key(parts[0]), Quantity(rounded))  # x ≈ 610
    answer = _read_equation(parts[:-1], part) if len(parts) > 2 else part(parts[0])
    exact = answer.value if isinstance(answer, Named) else answer
    if rounded is None or not _is_number(exact):
        raise Unreadable("approximations")
    step = Fraction(1, 10 ** min(len(decimal.partition(".")[2]), 50))
    if order(rounded - step, exact.value) >= 0 or order(rounded + step, exact.value) <= 0:
        raise Unreadable("an approximation that is none")
    return answer


def _read_inequality(parts: list[str], operators: list[str]) -> Answer:
    """The solutions where one side of each sign is the same variable alone, else the inequality itself."""
    regions, variable = [], None
    for left, op, right in zip(parts, operators, parts[1:], strict=False):
        if is_symbol(right) and not is_symbol(left):
            left, op, right = right, FLIPPED[op], left
        if not is_symbol(left) or (variable is not None and key(left) != variable):
            return _read_general_inequality(parts, operators)
        variable = key(left)
        infinity = SIGNED_INFINITY.fullmatch(right)
        if infinity and op in ("<", ">") and (op == "<") == (infinity.group(1) != "-"):
            regions.append(REALS)
            continue
        bound = read_scalar(right)
        if symbols(bound):
            return _read_general_inequality(parts, operators)
        regions.append(from_relation(op, bound))
    region = regions[0]
    for other in regions[1:]:
        region = intersection(region, other)
    return RealSet(region, variable)


def _read_general_inequality(parts: list[str], operators: list[str]) -> Relation:
    relation = _difference(*parts, operators[0]) if len(parts) == 2 else None
    if relation is None or not symbols(relation.difference):
        raise Unreadable("no inequality")
    return relation
