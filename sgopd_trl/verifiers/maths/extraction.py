r"""The answer of a completion: its last closed `\boxed{...}`, or the last few where they are one list."""

import re


_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)  # an escaped brace is text, not a group
_FENCE = re.compile(r"^[ \t>]*(```+|~~~+).*?(?:^[ \t>]*\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_THOUGHT_ENDS = "</think>"
_THOUGHT_STARTS = "<think>"
_DELIMITERS = re.compile(
    r"\\\\|\\[()\[\],;:! ]|\\q?quad(?![a-zA-Z])|\$|&|\*\*|~|\\(?:text|mbox|mathrm|textrm)(?![a-zA-Z])|[{}]"
)
_JOINS = re.compile(
    r"(?:\s*(?:[,;/|.()—–]|\\(?:vee|lor|land|wedge|cup)(?![a-zA-Z])|\b(?:and|or|either|maybe|possibly|perhaps|alternatively|"
    r"also|even|else|otherwise|oder|vs|versus|it is|it could be)\b|(?:^|(?<=\s))(?:[-*•]|\(?(?:\d{1,2}|[a-zA-Z])[.)])(?=\s)))*\s*",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?<![a-zA-Z\\])([a-zA-Z](?:_\w|_\{\w+\})?\s*=)[\s$]*$")
_MAX_JOIN = 60  # characters between neighbouring boxes


def extract_answer(completion: str) -> str | None:
    r"""What a completion gives as its answer, or None where it gives none.

    The reasoning up to the last `</think>` and fenced code are left out. An answer is a closed box; the last one counts.
    Boxes with nothing but separators, "and" or "or" between them are one list of answers, so that two guesses are never
    read as the right one of them.
    """
    text = completion.rpartition(_THOUGHT_ENDS)[2]
    text = text.partition(_THOUGHT_STARTS)[0]  # a thought that was not ended
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    text = _FENCE.sub("\n", text)
    boxes = _closed_boxes(text)
    if not boxes:
        return None
    first = len(boxes) - 1
    while first > 0 and _joined(text, boxes, first):
        first -= 1
    contents = list(dict.fromkeys(text[begin:end].strip() for _, begin, end, _ in boxes[first:]))
    if not all(contents):
        return None
    return contents[0] if len(contents) == 1 else r" \tor ".join(contents)


def _closed_boxes(text: str) -> list[tuple[int, int, int, int]]:
    """The outermost closed boxes: where each begins, where its content begins and ends, and where it ends."""
    boxes: list[tuple[int, int, int, int]] = []
    groups: list[tuple[int, int] | None] = []
    start = _BOX.search(text)
    for token in _TOKEN.finditer(text, start.start() if start else len(text)):
        kind = token.group()
        if len(kind) > 2:
            groups.append((token.start(), token.end()))
        elif kind == "{":
            groups.append(None)
        elif kind == "}" and groups:
            opened = groups.pop()
            if opened:
                while boxes and boxes[-1][0] > opened[0]:
                    boxes.pop()  # it lies inside this one
                boxes.append((opened[0], opened[1], token.start(), token.end()))
    return boxes


def _joined(text: str, boxes: list[tuple[int, int, int, int]], number: int) -> bool:
    """Whether box `number` goes on with the list that the box before it is part of."""
    start, end = boxes[number - 1][3], boxes[number][0]
    between = text[start:end]
    if len(between) > _MAX_JOIN or "\n\n" in between:
        return False
    label = _LABEL.search(between)
    if label:  # "x = [3] or x = [-3]"
        before = _LABEL.search(text[max(boxes[number - 1][0] - 20, 0) : boxes[number - 1][0]])
        if not before or re.sub(r"\s", "", before.group(1)) != re.sub(r"\s", "", label.group(1)):
            return False
        between = between[: label.start()]
    return _JOINS.fullmatch(_DELIMITERS.sub(" ", between)) is not None
