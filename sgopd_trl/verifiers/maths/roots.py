"""Roots of fractions, where they are fractions themselves."""

import math
from fractions import Fraction

import sympy


_MAX_DEGREE = 64
_MAX_BITS = 4096  # of a number whose root of degree 3 or more is looked for


def exact_root(value: Fraction, degree: int) -> Fraction | None:
    """The root of a fraction where it is one itself."""
    if degree > _MAX_DEGREE or (value < 0 and degree % 2 == 0):
        return None
    top, bottom = _integer_root(abs(value.numerator), degree), _integer_root(value.denominator, degree)
    if top is None or bottom is None:
        return None
    return Fraction(-top if value < 0 else top, bottom)


def _integer_root(value: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(value)
    else:
        if value.bit_length() > _MAX_BITS:
            return None
        root = int(sympy.integer_nthroot(value, degree)[0])
    return root if root**degree == value else None
