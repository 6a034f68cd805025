"""Judges that compare the boxed answer: as a string, as a number, as a choice."""

import re
from decimal import Decimal, InvalidOperation
from fractions import Fraction

from ..rewards import boxed_answer
from .verdict import Status, Verdict


_CHOICE = re.compile(r"\W*\b([A-Za-z])\b")
_MARKUP = re.compile(r"\\(?:text|textbf|mathbf|mathrm|textrm|rm|bf)\b|[{}$]")


def final_answer(completion: str) -> str | None:
    r"""Content of the last closed `\boxed{...}` behind the reasoning, or `None`."""
    return boxed_answer(completion.rpartition("</think>")[2])


def verify_exact(completion: str, gold: str) -> Verdict:
    """Correct where the boxed answer is the gold, character by character; white space around them does not count.

    Args:
        completion: text. gold: boxed or bare.
    """
    answer = final_answer(completion)
    if answer is None:
        return Verdict(Status.NO_ANSWER)
    right = answer.strip() == bare(gold).strip()
    return Verdict(Status.CORRECT if right else Status.WRONG, answer)


def verify_numeric(completion: str, gold: str | float, tolerance: float = 1e-6, relative: bool = True) -> Verdict:
    """Correct where the boxed answer is a number within a tolerance of the gold.

    Numbers are decimals, as -1,234.5e-6, and fractions, as 22/7; they are compared exactly.

    Args:
        completion: text. gold: a number, boxed or bare. tolerance: of the difference. relative: to the gold's size.

    Raises:
        ValueError: when the gold is no number.
    """
    answer = final_answer(completion)
    if answer is None:
        return Verdict(Status.NO_ANSWER)
    expected = _number(bare(str(gold)))
    if expected is None:
        raise ValueError(f"the gold answer must be a number, got {gold!r}")
    if len(answer) > 1000:
        return Verdict(Status.REFUSED, answer[:100], "longer than 1,000 characters")
    number = _number(answer)
    if number is None:
        return Verdict(Status.WRONG, answer, "not a number")
    allowed = Fraction(tolerance) * (abs(expected) if relative else 1)
    return Verdict(Status.CORRECT if abs(number - expected) <= allowed else Status.WRONG, answer)


def verify_choice(completion: str, gold: str) -> Verdict:
    r"""Correct where the boxed answer names the gold's letter, as `B`, `(B)`, `\textbf{(B) } 24` or `b`.

    Args:
        completion: text. gold: a letter, boxed or bare.

    Raises:
        ValueError: when the gold is no letter.
    """
    answer = final_answer(completion)
    if answer is None:
        return Verdict(Status.NO_ANSWER)
    expected, chosen = choices(bare(gold)), choices(answer)
    if len(expected) != 1:
        raise ValueError(f"the gold answer must name one choice, got {gold!r}")
    return Verdict(Status.CORRECT if chosen == expected else Status.WRONG, answer)


def choices(answer: str) -> set[str]:
    """Letters that an answer names: those that stand alone at its start, and capitals that stand alone behind it."""
    text = _MARKUP.sub(" ", answer)
    first = _CHOICE.match(text)
    return {first[1].upper(), *re.findall(r"\b[A-Z]\b", text)} if first else set()


def bare(gold: str) -> str:
    """A gold answer without its box, where it has one."""
    content = boxed_answer(gold)
    return gold if content is None else content


def as_completion(gold: str | int | float) -> str:
    """A gold answer as the shortest completion that gives it."""
    text = str(gold)
    return text if boxed_answer(text) is not None else f"\\boxed{{{text}}}"


def _number(text: str) -> Fraction | None:
    text = text.strip().strip("$").replace("\u2212", "-").replace("{,}", "").replace("\\,", "")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", text):
        text = text.replace(",", "")
    parts = text.split("/")
    if len(parts) > 2:
        return None
    values = []
    for part in parts:
        try:
            value = Decimal(part.strip())
        except InvalidOperation:
            return None
        # Beyond this a fraction of integers would not fit in memory
        if not value.is_finite() or abs(value.adjusted()) > 10_000:
            return None
        values.append(Fraction(value))
    if len(values) == 1:
        return values[0]
    return None if values[1] == 0 else values[0] / values[1]
