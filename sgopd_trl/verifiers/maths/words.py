"""Answers in words: "Yes", "no solution", "Monday"."""

import re

from .answers import Words


_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z'’ ,.\-:;()!?]*")
_DATE = re.compile(
    r"(?i)(?:jan|feb|mar|apr|may|june?|july?|aug|sept?|oct|nov|dec)(?:[a-z]*(?:uary|ember|ober|ust|ch|il))?\.? \d{1,2}(?:, ?\d{4})?"
)
_VERDICTS = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_SHORT = frozenset("yes no true false none dne".split())


def read_words(text: str) -> Words | None:
    r"""A text in words, or None. Up to three letters without `\text{}` are a product of symbols, unless a known word."""
    if not text[:1].isalpha() and not text.startswith("\\text"):
        return None
    plain = _TEXT.sub(r" \1 ", text)
    plain = re.sub(r"\s+", " ", plain).strip(" .,;:!")
    if _DATE.fullmatch(plain):
        return Words(plain.casefold())
    if not _WORDS.fullmatch(plain) or "\\" in plain:
        return None
    if text == plain or "\\text" not in text:
        longest = max(map(len, re.findall(r"[a-zA-Z]+", plain)), default=0)
        if longest <= 3 and plain.lower() not in _SHORT and not re.match(r"(?i)(?:yes|no|true|false)\b", plain):
            return None
    elif len(plain) == 1 or re.fullmatch(r"\(?[A-Z]\)?", plain):
        return None
    return Words(plain.casefold())


def same_words(left: Words, right: Words) -> bool:
    """Whether two texts are the same, or one is "yes" (no, true, false) and the other starts with it and explains."""
    if _bare(left.text) == _bare(right.text):
        return True
    for verdict, other in ((left.text, right.text), (right.text, left.text)):
        opposite = _VERDICTS.get(verdict)
        if opposite and re.match(rf"{verdict}\s*[,.;:\-]", other):
            return re.search(rf"\b(?:{opposite}|or|if|unless|not sure|maybe)\b", other) is None
    return False


def _bare(text: str) -> str:
    return re.sub(r"[\s.,;:!]+", " ", text).strip()
