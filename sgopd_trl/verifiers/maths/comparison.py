"""Whether two answers are the same. Which of them is the gold does not matter, but for percent signs and for equations."""

import re
from dataclasses import replace
from fractions import Fraction

import sympy

from .answers import Answer, Choice, Group, Infinity, Matrix, Named, Quantity, RealSet, Relation, Verbatim, Words
from .equality import Scalar, equal, same_equation
from .evaluation import Undefined
from .intervals import is_pair, region_of
from .parser import Unreadable
from .regions import same_region, union
from .relations import FLIPPED
from .words import same_words


_ARGUMENT = re.compile(r"\([^()]*\)")


def same(left: Answer, right: Answer) -> bool:
    """Whether two answers are the same.

    Raises:
        Refused: too large to say.
    """
    try:
        return _same(left, right)
    except (Undefined, Unreadable):
        return False


def _same(left: Answer, right: Answer) -> bool:
    if isinstance(left, Verbatim) or isinstance(right, Verbatim):
        return isinstance(left, Verbatim) and isinstance(right, Verbatim) and left.text == right.text
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Choice):
            return _same_choice(one, other)
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Named):
            return _same_named(one, other)
    if isinstance(left, Quantity) and isinstance(right, Quantity):
        return _same_quantity(left, right)
    if type(left) is type(right):
        return _SAME[type(left)](left, right)
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Group) and isinstance(other, RealSet):
            if is_pair(one):
                return same_region(region_of(one), other.region)
            if one.items and one.kind == "list":  # intervals side by side
                if any(isinstance(item, RealSet) and item.variable for item in one.items):
                    return False
                regions = [region_of(item) for item in one.items]
                joined = union(*regions)
                return len(joined) == sum(map(len, regions)) and same_region(joined, other.region)
            return not one.items and not other.region  # the empty set
        if isinstance(one, Group) and isinstance(other, Matrix):
            return one.kind == "tuple" and _same_vector(one, other)
    return False


def _same_choice(choice: Choice, other: Answer) -> bool:
    if isinstance(other, Choice):
        if choice.letter != other.letter:
            return False
        return choice.rest is None or other.rest is None or _same(choice.rest, other.rest)
    if isinstance(other, Quantity) and isinstance(other.value, sympy.Symbol):
        return other.value.name == choice.letter
    return choice.rest is not None and _same(choice.rest, other)


def _same_named(named: Named, other: Answer) -> bool:
    if isinstance(other, Named):
        if named.name == other.name:
            return _same(named.value, other.value)
        other = other.equation
        return other is not None and named.equation is not None and _same_relation(named.equation, other)
    if isinstance(other, Relation):
        return named.equation is not None and _same_relation(named.equation, other)
    return _same(named.value, other)


def _same_quantity(left: Quantity, right: Quantity) -> bool:
    if left.unit and right.unit and left.unit != right.unit:
        return False
    if left.mark == right.mark:
        return equal(left.value, right.value)
    if left.mark and right.mark:
        return False
    marked, plain = (left, right) if left.mark else (right, left)
    if plain.unit:
        return marked.mark == "°" and plain.unit == "rad" and equal(converted(marked), plain.value)
    if equal(marked.value, plain.value):
        return True
    return equal(converted(marked), plain.value)


def with_golds_mark(gold: Answer, answer: Answer) -> Answer:
    """A percentage as a share where the gold has no percent sign: 60% is 0.6, not 60.

    The other way round the sign may be left out: where the question asks for per cent, 60 is 60%.
    """
    if isinstance(gold, Group) and isinstance(answer, Group):
        signs = [item for item in gold.items if isinstance(item, Quantity) and item.mark]
        if signs or not gold.items:
            return answer
        return replace(answer, items=tuple(with_golds_mark(gold.items[0], item) for item in answer.items))
    if isinstance(answer, Named):
        return replace(answer, value=with_golds_mark(gold, answer.value))
    if isinstance(gold, Named):
        gold = gold.value
    if not isinstance(gold, Quantity) or not isinstance(answer, Quantity):
        return answer
    return Quantity(converted(answer)) if answer.mark == "%" and not gold.mark else answer


def is_one_side(gold: Answer, answer: Answer) -> bool:
    r"""Whether the answer is only a value and the gold an equation: `x^2 + y^2 = 25` is not 25, nor `x + y = 0` just 0."""
    if not isinstance(gold, Named) or not isinstance(answer, Quantity):
        return False
    outside = _ARGUMENT.sub("", gold.name)
    if re.search(r"\^\{(?!-1|\\circ)", outside):
        return True
    return re.search(r".[-+]", outside) is not None and isinstance(gold.value, Quantity) and gold.value.value == 0


def converted(quantity: Quantity) -> Scalar:
    """A percentage as a share, degrees as radians."""
    if quantity.mark == "%" and isinstance(quantity.value, Fraction):
        return quantity.value / 100
    value = quantity.value
    if isinstance(value, Fraction):
        value = sympy.Rational(value.numerator, value.denominator)
    factor = sympy.Rational(1, 100) if quantity.mark == "%" else sympy.pi / 180
    return sympy.Mul(value, factor, evaluate=False)


def _same_group(left: Group, right: Group) -> bool:
    if {left.kind, right.kind} <= {"list", "set"}:
        return _same_unordered(left, right)
    if "set" in (left.kind, right.kind):
        return False
    if len(left.items) != len(right.items):
        return False
    return all(same(a, b) for a, b in zip(_by_name(left.items), _by_name(right.items), strict=True))


def _by_name(items: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """`y = 2, x = 1` as `x = 1, y = 2`, where the names follow one another in the alphabet and so are in no other order."""
    names = [item.name for item in items if isinstance(item, Named)]
    if len(names) < len(items) or not all(re.fullmatch(r"[a-zA-Z]", name) for name in names):
        return items
    codes = sorted(map(ord, names))
    if codes != list(range(codes[0], codes[0] + len(codes))):
        return items
    return tuple(sorted(items, key=lambda item: item.name))


def _same_unordered(left: Group, right: Group) -> bool:
    if "set" in (left.kind, right.kind):  # a set holds each value once
        return all(any(same(a, b) for b in right.items) for a in left.items) and all(
            any(same(a, b) for a in left.items) for b in right.items
        )
    if len(left.items) != len(right.items):
        return False
    rest = list(right.items)
    for item in left.items:
        found = next((number for number, other in enumerate(rest) if same(item, other)), None)
        if found is None:
            return False
        del rest[found]
    return True


def _same_matrix(left: Matrix, right: Matrix) -> bool:
    if [len(row) for row in left.rows] != [len(row) for row in right.rows]:
        return False
    return all(
        equal(a, b) for row, other in zip(left.rows, right.rows, strict=True) for a, b in zip(row, other, strict=True)
    )


def _same_vector(group: Group, matrix: Matrix) -> bool:
    """A tuple and a matrix of one column or one row."""
    cells = [cell for row in matrix.rows for cell in row]
    if 1 not in (len(matrix.rows), len(matrix.rows[0])) or len(cells) != len(group.items):
        return False
    return all(
        isinstance(item, Quantity) and equal(item.value, cell) for item, cell in zip(group.items, cells, strict=True)
    )


def _same_relation(left: Relation, right: Relation) -> bool:
    sign = same_equation(left.difference, right.difference)
    if not sign:
        return False
    return left.op == (right.op if sign > 0 else FLIPPED[right.op])


def _same_real_set(left: RealSet, right: RealSet) -> bool:
    if left.variable and right.variable and left.variable != right.variable:
        return False
    return same_region(left.region, right.region)


_SAME = {
    Words: same_words,
    Infinity: lambda left, right: left.sign == right.sign,
    Group: _same_group,
    RealSet: _same_real_set,
    Relation: _same_relation,
    Matrix: _same_matrix,
}
