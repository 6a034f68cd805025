r"""Rewards that compare answers as strings: exact, and microseconds per completion."""

import re
from typing import Any


_BOX = "\\boxed{"
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace is text, not a group


def boxed_answer(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` of a text whose braces balance, or None where there is none."""
    start = text.rfind(_BOX)
    while start >= 0:
        begin, depth = start + len(_BOX), 1
        for brace in _BRACE.finditer(text, begin):
            depth += {"{": 1, "}": -1}.get(brace.group(), 0)
            if depth == 0:
                return text[begin : brace.start()]
        start = text.rfind(_BOX, 0, start)
    return None


def exact_answer_reward(
    completions: list[str] | list[list[dict[str, str]]], solution: list[str], **kwargs: Any
) -> list[float]:
    r"""Reward 1.0 where the last closed `\boxed{...}` of the completion holds exactly the gold answer, else 0.0.

    Args:
        completions: B completions, each a string or a list of messages whose last one is the assistant's.
        solution: B gold answers, boxed or bare.
        kwargs: the other columns that TRL passes; not used.

    Returns:
        B rewards.

    Raises:
        ValueError: there are not as many golds as completions, or a boxed gold is not closed.
        TypeError: a gold is not a string.
    """
    if len(completions) != len(solution):
        raise ValueError(f"got {len(completions)} completions but {len(solution)} solutions: one each is needed")
    texts = [c if isinstance(c, str) else c[-1]["content"] or "" for c in completions]
    return [float(boxed_answer(text) == _gold(gold)) for text, gold in zip(texts, solution, strict=True)]


def _gold(gold: str) -> str:
    if not isinstance(gold, str):
        raise TypeError(f"a solution must be a string, got {type(gold).__name__} {gold!r}: convert the column")
    if _BOX not in gold:
        return gold
    content = boxed_answer(gold)
    if content is None:
        raise ValueError(f"the box in the solution {gold!r} is not closed")
    return content
