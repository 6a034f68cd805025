"""Whether two scalar expressions have the same value, or the same values wherever their symbols are."""

import random
from collections.abc import Iterator
from fractions import Fraction

import sympy

from . import parser
from .evaluation import Evaluation, Undefined
from .limits import Refused


Scalar = Fraction | sympy.Expr

_START_BITS = 192
_MAX_BITS = 16_384
_POINTS = 10
_FAR_POINTS = 6  # so that |x - 5| is told from 5 - x
_NEEDED = 4  # points at which both sides have a value


def symbols(value: Scalar) -> frozenset[str]:
    """The names of an expression's symbols, the imaginary unit left out."""
    if isinstance(value, Fraction):
        return frozenset()
    return frozenset(symbol.name for symbol in value.free_symbols) - {"i"}


def equal(left: Scalar, right: Scalar) -> bool:
    """Whether two expressions are equal, as numbers or as functions of real symbols.

    Raises:
        Refused: too large to say. Undefined: a number has no value.
    """
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    names = symbols(left)
    if names != symbols(right):
        # x - x + 3 is a number, but nobody answers so
        return False
    with parser.LOCK:
        if not names:
            return _compare(left, right, {}, _complex(left, right)) is not None
        return _equal_functions(left, right, names)


def value_of(expression: Scalar) -> Fraction | None:
    """The exact value of a number, None where it is irrational or known only numerically.

    Raises:
        Refused, Undefined: it cannot be computed.
    """
    if isinstance(expression, Fraction):
        return expression
    with parser.LOCK:
        value = Evaluation(_START_BITS, real_roots=not _complex(expression))(expression)
    return value if isinstance(value, Fraction) else None


def order(left: Scalar, right: Scalar) -> int:
    """-1, 0 or 1, as a real number is below, equal to or above another.

    Raises:
        Refused, Undefined: they cannot be computed, or are not real.
    """
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return (left > right) - (left < right)
    if equal(left, right):
        return 0
    with parser.LOCK:
        evaluation = Evaluation(1024)
        first, second = evaluation.number(evaluation(_tree(left))), evaluation.number(evaluation(_tree(right)))
        if hasattr(first, "_mpc_") or hasattr(second, "_mpc_"):
            raise Undefined("complex numbers have no order")
        return 1 if first > second else -1


def same_equation(left: Scalar, right: Scalar) -> int:
    """Whether `left` = 0 and `right` = 0 are one equation up to a constant factor: its sign, or 0 where they are not."""
    names = symbols(left)
    if not names or names != symbols(right):
        return 0
    with parser.LOCK:
        ratios = []
        for number, point in enumerate(_points(names, _integer_only(left) or _integer_only(right))):
            try:
                evaluation = Evaluation(_START_BITS * 4, point)
                above, below = evaluation(_tree(left)), evaluation(_tree(right))
                if above == 0 or below == 0:
                    if bool(above == 0) != bool(below == 0):
                        return 0
                    continue
                ratio = evaluation.power(below, Fraction(-1))
                ratios.append(evaluation.multiply(above, ratio))
            except Undefined:
                continue
            except Refused:
                if number < _POINTS:
                    raise
        if len(ratios) < _NEEDED or hasattr(ratios[0], "_mpc_"):
            return 0
        if all(isinstance(ratio, Fraction) for ratio in ratios):
            same = all(ratio == ratios[0] for ratio in ratios)
        else:
            numbers = [evaluation.number(ratio) for ratio in ratios]
            bound = abs(numbers[0]) * evaluation.context.ldexp(1, -_START_BITS * 2)
            same = all(abs(number - numbers[0]) <= bound for number in numbers)
        return 0 if not same else 1 if evaluation.number(ratios[0]) > 0 else -1


def _equal_functions(left: Scalar, right: Scalar, names: frozenset[str]) -> bool:
    both_complex = _complex(left, right)
    compared = 0
    for number, point in enumerate(_points(names, _integer_only(left) or _integer_only(right))):
        try:
            values = [_real_value(side, point, both_complex) for side in (left, right)]
            if values == [None, None]:
                continue  # outside the domain of both
            if None in values or _compare(left, right, point, both_complex) is None:
                return False
        except Refused:
            if number < _POINTS:
                raise
            continue  # too large that far from zero
        compared += 1
    return compared >= _NEEDED


def _real_value(side: Scalar, point: dict[str, Fraction], complex_too: bool):
    try:
        value = Evaluation(_START_BITS, point, not complex_too)(_tree(side))
    except Undefined:
        return None
    return None if hasattr(value, "_mpc_") and not complex_too else value


def _compare(left: Scalar, right: Scalar, point: dict[str, Fraction], complex_too: bool) -> bool | None:
    """True where both have one value, else None.

    First at a precision that tells most unequal values apart. What is still equal there is compared again, at a
    precision that grows with the range of the values on the way: 1 + 10^-100 needs more digits than 1 + 1.
    """
    first = Evaluation(_START_BITS, point, not complex_too)
    a, b = first(_tree(left)), first(_tree(right))
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return True if a == b else None
    difference = abs(first.number(a) - first.number(b))
    if difference > first.context.ldexp(1, first.largest - _START_BITS // 3):
        return None
    literals = _literal_bits(left) + _literal_bits(right)
    bits = _START_BITS + 128 + 2 * first.range + literals
    for _ in range(2):
        if bits > _MAX_BITS:
            raise Refused("too fine a difference")
        second = Evaluation(bits, point, not complex_too)
        a, b = second(_tree(left)), second(_tree(right))
        needed = _START_BITS + 128 + 2 * second.range + literals
        if needed <= bits:
            break
        bits = needed + 64
    else:
        raise Refused("too fine a difference")
    difference = abs(second.number(a) - second.number(b))
    bound = second.context.ldexp(1, second.largest - bits + second.range + 64)
    return True if difference <= bound else None


def _points(names: frozenset[str], integers: bool) -> Iterator[dict[str, Fraction]]:
    """The same points for every caller: small fractions of both signs, some farther from zero, or positive integers."""
    for number in range(_POINTS):
        drawn = random.Random(f"{number} {sorted(names)}")
        if integers:
            yield {name: Fraction(drawn.randint(2, 40)) for name in sorted(names)}
        else:
            span = (40, 160)[number % 2]  # half of the points within 1 of zero, for arcsin and its like
            yield {name: Fraction(drawn.choice((-1, 1)) * drawn.randint(3, span), 41) for name in sorted(names)}
    for number in range(0 if integers else _FAR_POINTS):
        drawn = random.Random(f"far {number} {sorted(names)}")
        yield {
            name: Fraction((-1) ** (number >> place % 3) * drawn.randint(200, 3000), 41)
            for place, name in enumerate(sorted(names))
        }


def _integer_only(side: Scalar) -> bool:
    return not isinstance(side, Fraction) and side.has(sympy.factorial, sympy.binomial, sympy.Mod)


def _complex(*sides: Scalar) -> bool:
    """Whether the imaginary unit occurs."""
    return any(
        not isinstance(side, Fraction)
        and (side.has(sympy.I) or any(symbol.name == "i" for symbol in side.free_symbols))
        for side in sides
    )


def _literal_bits(side: Scalar) -> int:
    if isinstance(side, Fraction):
        return side.numerator.bit_length() + side.denominator.bit_length()
    numbers = side.atoms(sympy.Rational)
    return sum(int(number.p).bit_length() + int(number.q).bit_length() for number in numbers)


def _tree(side: Scalar) -> sympy.Expr:
    return sympy.Rational(side.numerator, side.denominator) if isinstance(side, Fraction) else side
