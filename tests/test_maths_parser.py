"""The parser underneath: what of latex2sympy2_extended is overridden exists, and nothing is computed while it parses."""

import pytest
import sympy
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy

from sgopd_trl.verifiers.maths.equality import equal
from sgopd_trl.verifiers.maths.limits import Refused, nested_fractions
from sgopd_trl.verifiers.maths.parser import Unreadable, _Cautious, parse_expression


def test_every_overridden_method_exists_upstream():
    own = {name for name, value in vars(_Cautious).items() if callable(value)} - {
        "expression",
        "_tree",
        "_not_computed",
    }
    assert own and {name for name in own if not hasattr(_Latex2Sympy, name)} == set()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(2)(3)", 6),  # upstream reads the mixed number 5
        (r"2\frac{1}{2}", 1),  # mixed numbers are rewritten before the parser
        ("0.1+0.2", sympy.Rational(3, 10)),  # upstream's decimals are floats
        (r"\binom{5}{2}", 10),
        (r"\gcd(12,18)", 6),
        (r"\sqrt[3]{8}", 2),
        ("-2^{2}", -4),
        (r"7\mod 5", 2),
        (r"\lfloor -0.5\rfloor", -1),
        (r"|-3|", 3),
    ],
)
def test_values(text, value):
    assert equal(parse_expression(text), sympy.sympify(value))


@pytest.mark.parametrize("text", ["9^{9^{9^{9}}}", r"\binom{10^{9}}{5}", "(9!)!", r"\gcd(2^{10},3^{10})", r"e^{e^{9}}"])
def test_nothing_is_computed_while_parsing(text):
    assert not parse_expression(text).is_Number


@pytest.mark.parametrize("text", ["2 3", "x+2)(x+3", "", "1+", r"\frac{1}", "(1,2)"])
def test_unreadable(text):
    with pytest.raises(Unreadable):
        parse_expression(text)


@pytest.mark.parametrize("text", [r"\sum_{k=1}^{3} k", r"\operatorname{eye}(3)", "1" * 5000, "204_{10}", "2^{3}^{4}"])
def test_refused(text):
    with pytest.raises(Refused):
        parse_expression(text)


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("1", 0),
        (r"\frac{1}{2}", 1),
        (r"\frac{1}{2}+\frac{1}{2}", 1),
        (r"\frac{1}{1+\frac{1}{2}}", 2),
        (r"\frac{\frac{1}{2}}{3}", 2),
    ],
)
def test_nested_fractions(text, depth):
    assert nested_fractions(text) == depth
