"""Sets of real numbers as intervals, so that an interval and an inequality that describe one set are equal."""

from dataclasses import dataclass
from functools import cmp_to_key

from .equality import Scalar, order
from .limits import MAX_ITEMS, Refused


@dataclass(frozen=True)
class End:
    """A finite end of an interval, `at` None for an infinite one; `closed` where the end belongs to it."""

    at: Scalar | None
    closed: bool = False


@dataclass(frozen=True)
class Interval:
    low: End
    high: End

    @property
    def bounded(self) -> bool:
        return self.low.at is not None and self.high.at is not None


Region = tuple[Interval, ...]  # apart from each other, in order

REALS: Region = (Interval(End(None), End(None)),)
EMPTY: Region = ()


def point(at: Scalar) -> Region:
    return (Interval(End(at, True), End(at, True)),)


def union(*regions: Region) -> Region:
    """The union, its touching intervals joined."""
    parts = [interval for region in regions for interval in region if not _is_empty(interval)]
    if len(parts) > MAX_ITEMS:
        raise Refused(f"{len(parts)} intervals")
    joined: list[Interval] = []
    for part in sorted(parts, key=cmp_to_key(lambda a, b: _order_low(a.low, b.low))):
        if joined and _touch(joined[-1].high, part.low):
            highest = max(joined[-1].high, part.high, key=cmp_to_key(_order_high))
            joined[-1] = Interval(joined[-1].low, highest)
        else:
            joined.append(part)
    return tuple(joined)


def intersection(left: Region, right: Region) -> Region:
    if len(left) * len(right) > 16 * MAX_ITEMS:
        raise Refused("many intervals")
    parts = []
    for a in left:
        for b in right:
            low = max(a.low, b.low, key=cmp_to_key(_order_low))
            high = min(a.high, b.high, key=cmp_to_key(_order_high))
            parts.append(Interval(low, high))
    return union(tuple(parts))


def complement(region: Region) -> Region:
    low, parts = End(None), []
    for interval in region:
        if interval.low.at is not None:
            parts.append(Interval(low, End(interval.low.at, not interval.low.closed)))
        if interval.high.at is None:
            return union(tuple(parts))
        low = End(interval.high.at, not interval.high.closed)
    return union((*parts, Interval(low, End(None))))


def same_region(left: Region, right: Region) -> bool:
    return len(left) == len(right) and all(
        _same_end(a.low, b.low) and _same_end(a.high, b.high) for a, b in zip(left, right, strict=True)
    )


def _same_end(a: End, b: End) -> bool:
    if a.at is None or b.at is None:
        return a.at is b.at
    return a.closed == b.closed and order(a.at, b.at) == 0


def _is_empty(interval: Interval) -> bool:
    if not interval.bounded:
        return False
    compared = order(interval.low.at, interval.high.at)
    return compared > 0 or (compared == 0 and not (interval.low.closed and interval.high.closed))


def _order_low(a: End, b: End) -> int:
    if a.at is None or b.at is None:
        return (a.at is not None) - (b.at is not None)
    return order(a.at, b.at) or b.closed - a.closed


def _order_high(a: End, b: End) -> int:
    if a.at is None or b.at is None:
        return (a.at is None) - (b.at is None)
    return order(a.at, b.at) or a.closed - b.closed


def _touch(high: End, low: End) -> bool:
    """Whether an interval that starts at `low` goes on where one that ends at `high` stops."""
    if high.at is None or low.at is None:
        return True
    compared = order(low.at, high.at)
    return compared < 0 or (compared == 0 and (high.closed or low.closed))


def from_relation(op: str, at: Scalar) -> Region:
    """The numbers x with x `op` at."""
    below = Interval(End(None), End(at, op == r"\le"))
    above = Interval(End(at, op == r"\ge"), End(None))
    if op == r"\neq":
        return complement(point(at))
    if op == "=":
        return point(at)
    return (below,) if op in ("<", r"\le") else (above,)
