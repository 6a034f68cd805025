"""Numbers that need no parser: integers, decimals, fractions and mixed numbers, exactly."""

import re
from fractions import Fraction

from .limits import MAX_DIGITS, Refused


_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_DECIMAL = re.compile(rf"([-+]?)\s*({_NUMBER})(?:\s*(?:e|E|\\cdot\s*10\^)\{{?\s*([-+]?\d+)\s*\}}?)?")
_RATIO = re.compile(rf"([-+]?)\s*(?:(\d+)\s*)?(?:\\frac\s*\{{\s*(-?{_NUMBER})\s*\}}\s*\{{\s*({_NUMBER})\s*\}})")
_SLASH = re.compile(rf"([-+]?)\s*(?:(\d+) +)?({_NUMBER})\s*/\s*({_NUMBER})")
_REPEATING = re.compile(
    r"([-+]?)\s*(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\s*\{\s*(\d+)\s*\}|\\(?:overline|bar|dot)\s*(\d)|\((\d+)\))"
)
_REPEATING_INSIDE = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{\s*(\d+)\s*\}")
_MIXED = re.compile(r"(?:(?<=^)|(?<=[-+=(,;<>]))(\s*)(\d+)\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}(?!\s*[\^!])")
_DOUBLE_FACTORIAL = re.compile(r"(?<![\d.])(\d{1,3})\s*!\s*!(?!\s*!)")
_MAX_EXPONENT = 4000


def read_number(text: str) -> Fraction | None:
    """The value of a decimal, a fraction, a mixed number or a repeating decimal; None for anything else.

    Raises:
        Refused: too many digits.
    """
    if found := _DECIMAL.fullmatch(text):
        sign, number, exponent = found.groups()
        return _signed(sign, decimal(number, exponent))
    if found := _SLASH.fullmatch(text) or _RATIO.fullmatch(text):
        sign, whole, top, bottom = found.groups()
        above, below = decimal(top), decimal(bottom)
        if below == 0:
            return None
        if whole is None:
            return _signed(sign, above / below)
        if above.denominator == below.denominator == 1 and 0 < above < below:
            return _signed(sign, int(whole) + above / below)
        return None
    if found := _REPEATING.fullmatch(text):
        sign, whole, start, *period = found.groups()
        return _signed(sign, repeating(whole, start, next(filter(None, period))))
    return None


def decimal(text: str, exponent: str | None = None) -> Fraction:
    """A decimal's exact value.

    Raises:
        Refused: too many digits, or an exponent out of proportion.
    """
    whole, _, places = text.partition(".")
    whole, places = whole.lstrip("0"), places.rstrip("0")
    if len(whole) + len(places) > MAX_DIGITS:
        raise Refused(f"a number of {len(whole) + len(places)} digits")
    value = Fraction(int((whole + places) or "0"), 10 ** len(places))
    if exponent is None:
        return value
    if len(exponent) > 6 or abs(int(exponent)) > _MAX_EXPONENT:
        raise Refused(f"the exponent {exponent[:20]}")
    return value * Fraction(10) ** int(exponent)


def repeating(whole: str, start: str, period: str) -> Fraction:
    """The value of `whole.start` with `period` for ever."""
    if len(whole) + len(start) + len(period) > MAX_DIGITS:
        raise Refused("a long repeating decimal")
    base = Fraction(int((whole + start) or "0"))
    return (base + Fraction(int(period), 10 ** len(period) - 1)) / 10 ** len(start)


def without_literals(text: str) -> str:
    r"""Mixed numbers, repeating decimals and double factorials inside an expression, as fractions and integers."""
    if "\\frac" in text:
        text = _MIXED.sub(_improper, text)
    if "\\" in text:
        text = _REPEATING_INSIDE.sub(lambda found: _fraction(repeating(*found.groups())), text)
    if "!" in text:
        text = _DOUBLE_FACTORIAL.sub(lambda found: str(_double_factorial(int(found.group(1)))), text)
    return text


def _improper(found: re.Match[str]) -> str:
    space, whole, top, bottom = found.groups()
    if max(len(whole), len(top), len(bottom)) > MAX_DIGITS or not 0 < int(top) < int(bottom):
        return found.group()
    return f"{space}\\frac{{{int(whole) * int(bottom) + int(top)}}}{{{bottom}}}"


def _fraction(value: Fraction) -> str:
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _double_factorial(n: int) -> int:
    value = 1
    while n > 1:
        value, n = value * n, n - 2
    return value


def _signed(sign: str, value: Fraction) -> Fraction:
    return -value if sign == "-" else value
