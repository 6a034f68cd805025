"""Single numbers and expressions."""

import re

import sympy

from .equality import Scalar, symbols, value_of
from .evaluation import Undefined
from .literals import read_number, without_literals
from .normal import key
from .parser import parse_expression


SYMBOL = re.compile(r"\\?[a-zA-Z]+(?:_\{[^{}]*\})?")
SIGNED_INFINITY = re.compile(r"([-+]?)\s*\\infty")


def read_scalar(text: str) -> Scalar:
    """A number, exactly where it is rational, or an expression.

    Raises:
        Refused: too large. Unreadable: no expression. Undefined: without a value.
    """
    number = read_number(text)
    if number is not None:
        return number
    expression = parse_expression(without_literals(text))
    if expression.has(sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        raise Undefined("no value")
    if not symbols(expression):
        exact = value_of(expression)
        return expression if exact is None else exact
    return expression


def is_symbol(text: str) -> bool:
    """Whether a text is one variable."""
    return SYMBOL.fullmatch(text) is not None and key(text) not in (r"\pi", r"\infty", r"\emptyset")
