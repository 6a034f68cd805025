"""What is too large to judge, decided on the text before any parser runs."""

import re


MAX_TEXT = 500  # characters given to the parser; equal texts of any length are equal before this
MAX_NORMALISED = 12_000  # characters whose form is looked at: sets, matrices, long literals
MAX_DEPTH = 14  # brackets inside brackets
MAX_FRACTIONS = 8  # fractions inside fractions: the time to build them doubles with each
MAX_FUNCTIONS = 24  # commands other than fractions and roots
MAX_SCRIPTS = 40  # exponents and subscripts
MAX_DIGITS = 4000  # of one literal; Python itself refuses to read more than 4300
MAX_ITEMS = 64  # of a list, a set, a tuple, a union
MAX_CELLS = 144  # of a matrix

_UNSUPPORTED = re.compile(
    r"\\(?:sum|prod|coprod|i*nt|oint|lim|limsup|liminf|partial|nabla|det|Gamma|zeta|begin|xrightarrow|Vert|\|)"
    r"(?![a-zA-Z])|\\frac\{(?:d|\\partial)(?![a-zA-Z])|\|_|\]_|[^\x20-\x7e]"
)
_OPERATOR = re.compile(r"\\operatorname\*?\{(?!(?:gcd|lcm|floor|ceil|arc?(?:sin|cos|tan)h)\})")
_RUNS = re.compile(r"(?:[-+]\s*){9}|(?:!\s*){3}|\|(?:[^|]*\|){8}|\^\{[^{}]*\}\s*\^")
_DROPPED = re.compile(r"'|:.*:", re.DOTALL)  # the parser drops primes, and reads 3:2:1 as a fraction
_SUBSCRIPT = re.compile(r"[\d)}\]!|]\s*_")  # the parser would drop it
_FUNCTION = re.compile(r"\\(?!frac|sqrt|cdot|pi|left|right|[^a-z])[a-z]+")
_FRACTION = re.compile(r"\\frac(?=\{)|[{}]")
_DIGITS = re.compile(rf"\d{{{MAX_DIGITS + 1},}}")
_NUMBER = re.compile(r"\d+")
_BRACKET = re.compile(r"[({\[]|[)}\]]")


class Refused(Exception):
    """The answer is too large, or of a kind that is not computed."""


def check_size(text: str, limit: int = MAX_NORMALISED) -> None:
    """Refuses texts that are too long, or whose brackets nest too deeply.

    Raises:
        Refused: naming the limit.
    """
    if len(text) > limit:
        raise Refused(f"{len(text)} characters")
    depth = deepest = 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket.group() in "({[" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise Refused(f"brackets nested {deepest} deep")
    if _DIGITS.search(text):
        raise Refused(f"a number of more than {MAX_DIGITS} digits")


def check_expression(text: str) -> None:
    """Refuses what the parser would spend too long on, or evaluate while it parses.

    Raises:
        Refused: naming what was found.
    """
    check_size(text.replace(" ", ""), MAX_TEXT + longest_number(text))
    if len(_FUNCTION.findall(text)) > MAX_FUNCTIONS or text.count("^") + text.count("_") > MAX_SCRIPTS:
        raise Refused("many functions, exponents or subscripts")
    if nested_fractions(text) > MAX_FRACTIONS:
        raise Refused("fractions nested deeply")
    for pattern, what in (
        (_UNSUPPORTED, "not computed"),
        (_OPERATOR, "not computed"),
        (_RUNS, "repeated operators"),
        (_SUBSCRIPT, "a subscript of no name"),
        (_DROPPED, "not read"),
    ):
        found = pattern.search(text)
        if found:
            raise Refused(f"{what}: {found.group()[:20]!r}")


def longest_number(text: str) -> int:
    """Digits of the longest literal: they cost the parser little."""
    return max(map(len, _NUMBER.findall(text)), default=0)


def nested_fractions(text: str) -> int:
    """How many fractions lie inside one another, at most."""
    groups: list[int] = []
    inside = deepest = waiting = 0
    for token in _FRACTION.finditer(text):
        kind = token.group()
        if kind == "{":
            groups.append(1 if waiting else 0)
            inside, waiting = inside + groups[-1], max(waiting - 1, 0) if not groups[-1] else 0
        elif kind == "}":
            inside -= groups.pop() if groups else 0
            waiting = 0
            if token.end() < len(text) and text[token.end()] == "{":
                waiting = 1
        else:
            waiting = 1
        deepest = max(deepest, inside)
    return deepest
