"""Matrices."""

import re

from .answers import Matrix
from .limits import MAX_CELLS, Refused
from .normal import unwrapped
from .parser import Unreadable
from .scalars import read_scalar


_MATRIX = re.compile(r"\\begin\{([bpBvV]?(?:small)?matrix|array)\}(.*)\\end\{\1\}", re.DOTALL)
_COLUMNS = re.compile(r"^(?:\[[a-z]\])?\s*\{[^{}]*\}")
_LINE = re.compile(r"\\hline(?![a-zA-Z])|(?<=\\\\)\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm)\s*\]")


def read_matrix(text: str) -> Matrix:
    """A matrix, perhaps with a number before it. Brackets of any shape are the same; a determinant is no matrix.

    Raises:
        Refused: too large, or something to compute. Unreadable: no matrix.
    """
    found = _MATRIX.search(text)
    if not found or found.group(1)[0] in "vV":
        raise Refused("no plain matrix")
    factor, rest = text[: found.start()].strip(), text[found.end() :].strip()
    if factor.endswith(("(", "[")):
        if not rest.startswith({"(": ")", "[": "]"}[factor[-1]]):
            raise Unreadable("a matrix with unequal brackets")
        factor, rest = factor[:-1].strip(), rest[1:].strip()
    elif found.group(1) == "array":
        raise Unreadable("an array without brackets")
    if rest:
        raise Refused("a matrix with something behind it")
    body = found.group(2).strip()
    if r"\begin" in body:
        raise Refused("a matrix of matrices")
    if found.group(1) == "array":
        body = _COLUMNS.sub("", body)
    rows = [row.split("&") for row in _LINE.sub("", body).strip().removesuffix("\\\\").split("\\\\")]
    if sum(map(len, rows)) > MAX_CELLS:
        raise Refused("a large matrix")
    if len({len(row) for row in rows}) != 1:
        raise Unreadable("rows of unequal length")
    return Matrix(tuple(tuple(_cell(cell.strip(), factor) for cell in row) for row in rows))


def _cell(cell: str, factor: str):
    if not factor:
        return read_scalar(unwrapped(cell))
    factor = factor.removesuffix(r"\cdot").strip()
    return read_scalar(f"({'-1' if factor == '-' else factor})({cell})")
