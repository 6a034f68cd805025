"""The kinds of answers."""

from dataclasses import dataclass

from .equality import Scalar
from .regions import Region


@dataclass(frozen=True)
class Words:
    """An answer in words, in lower case."""

    text: str


@dataclass(frozen=True)
class Choice:
    """A letter of a multiple-choice question with what stands behind it, if anything."""

    letter: str
    rest: "Answer | None"


@dataclass(frozen=True)
class Quantity:
    """A number or an expression; `mark` is "%" or "°" where it has one, `unit` the words behind it."""

    value: Scalar
    mark: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Infinity:
    sign: int


@dataclass(frozen=True)
class Group:
    """Several answers: a "list" without brackets, a "set", or a "tuple". A pair may also be an open interval."""

    kind: str
    items: tuple["Answer", ...]


@dataclass(frozen=True)
class RealSet:
    """Intervals, or the solutions of inequalities in one `variable`."""

    region: Region
    variable: str | None = None


@dataclass(frozen=True)
class Named:
    """`x = 3`, `f(x) = x^2`, `m + n = 721`: a value and what it is the value of, spaces removed."""

    name: str
    value: "Answer"
    equation: "Relation | None" = None


@dataclass(frozen=True)
class Relation:
    """An equation or inequality `difference` op 0."""

    difference: Scalar
    op: str


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Scalar, ...], ...]


@dataclass(frozen=True)
class Verbatim:
    """What is not read as anything: equal only to the same text.

    Args:
        refused: why, where it was too large. undefined: it is an expression without a value, and equals nothing.
    """

    text: str
    refused: str = ""
    undefined: bool = False


Answer = Words | Choice | Quantity | Infinity | Group | RealSet | Named | Relation | Matrix | Verbatim
