"""Reading a normalised text as an answer: its structure here, its expressions by the parser."""

import re
from functools import partial

from .answers import Answer, Choice, Group, Infinity, Quantity, RealSet, Verbatim
from .evaluation import Undefined
from .intervals import SET_OPERATIONS, interval, read_membership, read_set_operations
from .limits import MAX_ITEMS, Refused, check_size
from .literals import read_number
from .matrices import read_matrix
from .normal import key, unwrapped
from .parser import Unreadable
from .regions import REALS, intersection, union
from .relations import RELATIONS, read_relations
from .scalars import SIGNED_INFINITY, SYMBOL, read_scalar
from .split import enclosed, split_top
from .units import without_unit
from .words import read_words


_MAX_DEPTH = 6  # sets inside lists inside equations
_SEPARATORS = (r"\tor", ";", r"\tand", ",")
_CHOICE = re.compile(
    r"\\text\{\s*(?:\(([A-Z])\)|([A-Z])\s*[.:)])[\s.:]*([^{}]*)\}(.*)|\(([A-Z])\)\s*(.*)|([A-Z])[.:)]\s*(.*)"
)
_OTHER_CHOICE = re.compile(
    r"(?<![a-zA-Z])\([A-Z]\)|(?:\\tor|\\tand|\\vee|[,;/]|\b(?:or|and))\s*(?:\\text\{\s*)?\(?[A-Z](?![a-zA-Z(_^])"
)
_TURNED = re.compile(r"([\[\]])([^\[\](){},;]+)[,;]([^\[\](){},;]+)([\[\]])")  # ]0, 1[
_BUILDER = re.compile(r"(.*?)(?:\\mid(?![a-zA-Z])|:|(?<!\|)\|(?!\|))(.*)", re.DOTALL)
_DOMAIN = re.compile(r"\\in\s*\\mathbb\{R\}")
_LEADING = re.compile(r"(?:\\(?:approx|Rightarrow|implies|to)(?![a-zA-Z])|=)\s*")


def read(text: str, depth: int = 0) -> Answer:
    """The answer that a normalised text gives. What is not understood, or is refused, is kept as it is written."""
    try:
        check_size(text)
        return _read(text, depth)
    except Refused as refusal:
        return Verbatim(key(text), refused=str(refusal))
    except Unreadable:
        return Verbatim(key(text))
    except Undefined:
        return Verbatim(key(text), undefined=True)
    except RecursionError:
        return Verbatim(key(text), refused="nested too deeply")


def _read(text: str, depth: int) -> Answer:
    """As `read`, but raises what `read` catches: what a part of an answer cannot be, the whole cannot be."""
    if depth > _MAX_DEPTH:
        raise Refused("nested too deeply")
    text = unwrapped(_LEADING.sub("", text, count=1) if _LEADING.match(text) else text)
    if not text:
        raise Unreadable("nothing")
    words = read_words(text)
    if words is not None:
        return words
    if choice := _CHOICE.fullmatch(text):
        return _read_choice(choice, depth)
    number = read_number(text)
    if number is not None:
        return Quantity(number)
    structured = _read_structure(text, depth)
    return structured if structured is not None else _read_single(text)


def _read_structure(text: str, depth: int) -> Answer | None:
    """An answer of several parts, cut where it binds least; None for a single value."""
    part = partial(_read, depth=depth + 1)
    if turned := _TURNED.fullmatch(text):
        opening, low, high, closing = turned.groups()
        if opening == "]" or closing == "[":
            ends = [part(low.strip()), part(high.strip())]
            return RealSet((interval(ends, opening == "[", closing == "]"),))
    for separator in _SEPARATORS:
        parts, found = split_top(text, separator.__eq__)
        if found:
            return _read_list(parts, separator, depth)
    for operators, reader in (
        (SET_OPERATIONS, lambda parts, found: read_set_operations(parts, found, part)),
        ((r"\in",), lambda parts, found: read_membership(parts, part)),
        (RELATIONS, lambda parts, found: read_relations(parts, found, partial(read, depth=depth + 1))),
    ):
        if any(operator in text for operator in operators):
            parts, found = split_top(text, operators.__contains__)
            if found:
                return reader(parts, found)
    brackets = enclosed(text)
    if (r"\pm" in text or r"\mp" in text) and not (brackets and brackets[0] == "\\{"):
        return _read_plus_minus(text, depth)
    if r"\begin" in text:
        return read_matrix(text)
    return _read_brackets(*brackets, depth) if brackets else None


def _read_single(text: str) -> Answer:
    if infinity := SIGNED_INFINITY.fullmatch(text):
        return Infinity(-1 if infinity.group(1) == "-" else 1)
    if text == r"\emptyset":
        return Group("set", ())
    if text == r"\mathbb{R}":
        return RealSet(REALS)
    bare, mark, unit = without_unit(text)
    if not bare:
        raise Unreadable(text[:80])
    return Quantity(read_scalar(bare), mark, unit)


def _read_choice(choice: re.Match[str], depth: int) -> Choice:
    first, second, inside, after, third, behind, fourth, last = choice.groups()
    rest = " ".join(filter(None, (inside, after, behind, last))).strip()
    if _OTHER_CHOICE.search(rest):
        raise Unreadable("two choices")
    return Choice(first or second or third or fourth, read(rest, depth + 1) if rest else None)


def _read_list(parts: list[str], separator: str, depth: int) -> Answer:
    items = _read_items([part.strip(", ") for part in parts], depth)  # without the comma before "and"
    if all(isinstance(item, RealSet) for item in items) and len({item.variable for item in items}) == 1:
        return _join_inequalities(items, separator)
    return Group("list", tuple(items))


def _read_items(parts: list[str], depth: int) -> list[Answer]:
    """The parts of a list, those that are lists themselves (as 2 ± 1 is) as their items."""
    if len(parts) > MAX_ITEMS:
        raise Refused(f"{len(parts)} answers")
    if not all(parts):
        raise Unreadable("an empty place in a list")
    items: list[Answer] = []
    for part in parts:
        item = _read(part, depth + 1)
        items += item.items if isinstance(item, Group) and item.kind == "list" else [item]
    return items


def _join_inequalities(items: list[RealSet], separator: str) -> RealSet:
    """Inequalities joined by "and" hold together, those joined by "or" one by one; by commas, if they exclude each other."""
    regions, variable = [item.region for item in items], items[0].variable
    if separator == r"\tand":
        region = regions[0]
        for other in regions[1:]:
            region = intersection(region, other)
        return RealSet(region, variable)
    if separator == "," and REALS in regions:  # x real, x ≠ 2
        others = [region for region in regions if region != REALS]
        return RealSet(others[0] if len(others) == 1 else REALS, variable)
    if separator != r"\tor" and any(intersection(a, b) for n, a in enumerate(regions) for b in regions[n + 1 :]):
        raise Unreadable("inequalities side by side")
    return RealSet(union(*regions), variable)


def _read_brackets(opening: str, content: str, closing: str, depth: int) -> Answer | None:
    """A set, a tuple or an interval; None where the brackets only group."""
    if opening == "\\{" and closing == "\\}":
        return _read_set(content, depth)
    parts, found = split_top(content, (",", ";").__contains__)
    if "\\{" in opening or "\\}" in closing or "{" in opening:
        raise Unreadable("unequal brackets")
    if not found:
        if (opening, closing) == ("(", ")"):
            return None
        raise Unreadable("square brackets around one value")
    if len(parts) == 2 and (opening, closing) != ("(", ")"):
        ends = [_read(part, depth + 1) for part in parts]
        return RealSet((interval(ends, opening == "[", closing == "]"),))
    if (opening, closing) not in (("(", ")"), ("[", "]")):
        raise Unreadable("unequal brackets")
    return Group("tuple", tuple(_read_items(parts, depth)))


def _read_set(content: str, depth: int) -> Answer:
    if not content:
        return Group("set", ())
    builder = _BUILDER.fullmatch(content)
    if builder and SYMBOL.fullmatch(_DOMAIN.sub("", builder.group(1)).strip()):
        inside = _read(_DOMAIN.sub("", builder.group(2)).strip(" ,"), depth + 1)
        if isinstance(inside, RealSet):
            return RealSet(inside.region)
        raise Unreadable("a set of solutions")
    parts, _ = split_top(content, (",", ";", r"\tand").__contains__)
    return Group("set", tuple(_read_items(parts, depth)))


def _read_plus_minus(text: str, depth: int) -> Group:
    if text.count(r"\pm") + text.count(r"\mp") != 1:
        raise Unreadable("several signs")
    before, _, after = text.partition(r"\pm" if r"\pm" in text else r"\mp")
    items = [_read(f"{before}{sign}{after}".strip().removeprefix("+"), depth + 1) for sign in "+-"]
    return Group("list", tuple(items))
