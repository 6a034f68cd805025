"""Intervals, and unions, intersections and differences of sets of real numbers."""

import re
from collections.abc import Callable, Sequence

from .answers import Answer, Group, Infinity, Quantity, RealSet
from .equality import order, symbols
from .limits import MAX_ITEMS, Refused
from .normal import key
from .parser import Unreadable
from .regions import End, Interval, Region, complement, intersection, point, union
from .scalars import is_symbol
from .split import split_top


_SYMBOLS = re.compile(r"\(\s*[a-zA-Z](?:_\{\w+\})?(?:\s*,\s*[a-zA-Z](?:_\{\w+\})?)+\s*\)")
SET_OPERATIONS = (r"\cup", r"\cap", r"\setminus")


def interval(ends: Sequence[Answer], low_closed: bool, high_closed: bool) -> Interval:
    """The interval between two ends.

    Raises:
        Unreadable: they are no numbers, or are not in order. Refused, Undefined: they cannot be compared.
    """
    low, high = (_end(end, sign, closed) for end, sign, closed in zip(ends, (-1, 1), (low_closed, high_closed)))
    if low.at is not None and high.at is not None and order(low.at, high.at) > 0:
        raise Unreadable("ends out of order")
    return Interval(low, high)


def _end(answer: Answer, sign: int, closed: bool) -> End:
    if isinstance(answer, Infinity) and answer.sign == sign and not closed:
        return End(None)
    if isinstance(answer, Quantity) and not answer.mark and not symbols(answer.value):
        return End(answer.value, closed)
    raise Unreadable("no end of an interval")


def is_pair(answer: Answer) -> bool:
    """Whether an answer is (a, b), which may be a tuple and an open interval."""
    return isinstance(answer, Group) and answer.kind == "tuple" and len(answer.items) == 2


def region_of(answer: Answer) -> Region:
    """The real numbers of an interval, of a union or of a finite set.

    Raises:
        Unreadable: it is no set of real numbers.
    """
    if isinstance(answer, RealSet):
        return answer.region
    if is_pair(answer):
        return union((interval(answer.items, False, False),))
    if isinstance(answer, Group) and answer.kind == "set":
        values = [item.value for item in answer.items if isinstance(item, Quantity) and not symbols(item.value)]
        if len(values) == len(answer.items):
            return union(*(point(value) for value in values))
    raise Unreadable("no set of real numbers")


def read_set_operations(parts: list[str], operations: list[str], part: Callable[[str], Answer]) -> RealSet:
    r"""`A \cup B`, `A \cap B` or `A \setminus B`, perhaps with `x \in` before it."""
    if len(parts) > MAX_ITEMS:
        raise Refused(f"{len(parts)} sets")
    if len(set(operations)) > 1:
        raise Unreadable("unions and intersections without brackets")
    variable = None
    named, signs = split_top(parts[0], lambda token: token in (r"\in", "="))
    if signs:
        if len(signs) > 1 or not is_symbol(named[0]):
            raise Unreadable("no set")
        variable, parts = key(named[0]), [named[1], *parts[1:]]
    regions = [region_of(part(text)) for text in parts]
    result = regions[0]
    if operations[0] == r"\cup":
        result = union(*regions)
    else:
        for region in regions[1:]:
            result = intersection(result, region if operations[0] == r"\cap" else complement(region))
    return RealSet(result, variable)


def read_membership(parts: list[str], part: Callable[[str], Answer]) -> Answer:
    r"""`x \in A` as the set A."""
    if len(parts) != 2:
        raise Unreadable("no membership")
    inside = part(parts[1])
    if not is_symbol(parts[0]):
        if _SYMBOLS.fullmatch(parts[0]) and isinstance(inside, Group) and inside.kind == "set":
            return inside  # pairs of a set
        raise Unreadable("no membership")
    return RealSet(region_of(inside), key(parts[0])) if is_pair(inside) or isinstance(inside, RealSet) else inside
