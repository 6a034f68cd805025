"""The verdict on a completion."""

from ..verdict import Status, Verdict
from .answers import Quantity, Verbatim
from .comparison import is_one_side, same, with_golds_mark
from .extraction import extract_answer
from .gold import Gold, read_gold
from .limits import MAX_NORMALISED, Refused
from .literals import read_number
from .normal import key, normalise
from .reading import read


_SHOWN = 500  # characters of an answer that a verdict carries


def verify_maths(completion: str, gold: str) -> Verdict:
    r"""Whether the answer of a completion, its last closed `\boxed{...}`, is the gold answer.

    Args:
        completion: the model's text; reasoning up to the last `</think>` is left out.
        gold: in LaTeX or plain, boxed or bare.

    Returns:
        `CORRECT`, `WRONG`, `NO_ANSWER`, `REFUSED` (too large to judge) or `ERROR` (a defect of this code). Never raises,
        uses no signal and no timer, and may be called from any thread.
    """
    try:
        answer = extract_answer(completion)
        if answer is None:
            return Verdict(Status.NO_ANSWER)
        return judge(answer, read_gold(str(gold)))
    except Exception as error:
        return Verdict(Status.ERROR, detail=repr(error)[:200])


def judge(answer: str, gold: Gold) -> Verdict:
    """The verdict on what stands in the box."""
    shown = answer[:_SHOWN]
    if not gold.usable:
        return Verdict(Status.REFUSED, shown, f"the gold answer cannot serve: {gold.problem}")
    if len(answer) > MAX_NORMALISED:
        return Verdict(Status.REFUSED, shown, f"{len(answer)} characters")
    text = normalise(answer)
    if not text:
        return Verdict(Status.NO_ANSWER, shown)
    if text == gold.text or key(text) == gold.key:
        return Verdict(Status.CORRECT, shown)
    try:
        number = read_number(text)
        read_answer = Quantity(number) if number is not None else read(text)
        if isinstance(read_answer, Verbatim):
            if read_answer.refused:
                return Verdict(Status.REFUSED, shown, read_answer.refused)
            return Verdict(Status.WRONG, shown, "not the gold's text, and not read as anything else")
        right = not is_one_side(gold.answer, read_answer) and same(
            gold.answer, with_golds_mark(gold.answer, read_answer)
        )
        return Verdict(Status.CORRECT if right else Status.WRONG, shown)
    except Refused as refusal:
        return Verdict(Status.REFUSED, shown, str(refusal))
