r"""What of a completion is its answer, and the statuses that are neither right nor wrong."""

import pytest

from sgopd_trl.verifiers.maths import check_gold, verify_maths
from sgopd_trl.verifiers.maths.extraction import extract_answer
from sgopd_trl.verifiers.verdict import Status


# (completion, its answer; None where it gives none)
ANSWERS = [
    (r"The answer is $\boxed{204}$.", "204"),
    (r"\[\boxed{204}\]", "204"),
    (r"\boxed {204}", "204"),
    (r"\fbox{204}", "204"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (r"\boxed{\boxed{204}}", r"\boxed{204}"),
    (r"First \boxed{113}. Wait, that is wrong. So \boxed{104}.", "104"),
    (r"$\boxed{113}$ is too large, and so we need $\boxed{104}$.", "104"),
    (r"Hence $x=\boxed{3}$ and the requested sum is $\boxed{19}$.", "19"),
    (r"So $\boxed{\frac{3}{4}}$, so $m+n=\boxed{7}$.", "7"),
    ("\\boxed{113}\n\n\\boxed{104}", "104"),
    (r"\boxed{204}, that is $\boxed{204}$", "204"),
    (r"\boxed{204} \boxed{204}", "204"),
    # Neighbours are one list
    (r"$\boxed{2}$ and $\boxed{3}$", r"2 \tor 3"),
    (r"\boxed{2} or \boxed{3}", r"2 \tor 3"),
    (r"\boxed{2}, \boxed{3}, and \boxed{5}", r"2 \tor 3 \tor 5"),
    (r"$$\boxed{2}\quad\boxed{3}$$", r"2 \tor 3"),
    (r"\boxed{2} \text{ or } \boxed{3}", r"2 \tor 3"),
    (r"$x=\boxed{2}$ or $x=\boxed{3}$", r"2 \tor 3"),
    (r"\boxed{1}. Then \boxed{2}, \boxed{3}", r"2 \tor 3"),
    (r"\boxed{2}, or possibly \boxed{3}", r"2 \tor 3"),
    (r"$\boxed{2}$ | $\boxed{3}$", r"2 \tor 3"),
    (r"\boxed{2} \\ \boxed{3}", r"2 \tor 3"),
    (r"\boxed{2} (or \boxed{3})", r"2 \tor 3"),
    (r"\boxed{2}. Alternatively, \boxed{3}", r"2 \tor 3"),
    (r"\boxed{2} or perhaps it is \boxed{3}", r"2 \tor 3"),
    ("- \\boxed{2}\n- \\boxed{3}", r"2 \tor 3"),
    ("1. \\boxed{2}\n2. \\boxed{3}", r"2 \tor 3"),
    (r"(a) \boxed{2} (b) \boxed{3}", r"2 \tor 3"),
    # Reasoning and code are no answers
    (r"<think>\boxed{204}</think>The answer is \boxed{205}.", "205"),
    (r"so \boxed{204}</think>I am done.", None),
    (r"<think>so \boxed{204}", None),
    (r"</think>\boxed{1}</think>\boxed{2}", "2"),
    ("```python\n# \\boxed{204}\n```\n\\boxed{205}", "205"),
    ("\\boxed{205}\n```\n\\boxed{204}\n```", "205"),
    ("\\boxed{205}\n```\n\\boxed{204}", "205"),
    ("~~~\n\\boxed{204}\n~~~", None),
    # No closed box
    ("The answer is 204.", None),
    ("", None),
    (r"\boxed{204", None),
    (r"\boxed{\frac{1}{2}", None),
    (r"\boxed{}", None),
    (r"\boxed{ }", None),
    (r"Put it in \boxed{}. It is 204", None),
    (r"\boxed{1} and then \boxed{2", "1"),
    (r"boxed{204}", None),
    (r"\boxed 204", None),
]

# (gold, completion, status)
STATUSES = [
    ("204", r"\boxed{204}", Status.CORRECT),
    ("204", r"\boxed{205}", Status.WRONG),
    ("204", r"\boxed{$ $}", Status.NO_ANSWER),
    ("204", "204", Status.NO_ANSWER),
    ("204", r"\boxed{9^{9^{9^9}}}", Status.REFUSED),
    ("204", r"\boxed{\int_0^1 x dx}", Status.REFUSED),
    (r"\int_0^1 x dx", r"\boxed{\int_0^1x\,dx}", Status.CORRECT),  # the same text
    ("9^{9^{9^9}}", r"\boxed{9^{9^{9^9}}}", Status.CORRECT),
    (r"\frac{1}{0}", r"\boxed{\frac{1}{0}}", Status.REFUSED),  # a gold without a value equals nothing
    ("", r"\boxed{204}", Status.REFUSED),
    (r"$\boxed{204}$", r"\boxed{204}", Status.CORRECT),
    ("$204$", r"\boxed{204}", Status.CORRECT),
    ("104", r"First \boxed{113}. Wait, no. \boxed{104}", Status.CORRECT),
    ("480", r"\boxed{481} or \boxed{480}", Status.WRONG),
    ("480", r"\boxed{479}, \boxed{480}", Status.WRONG),
    ("480", r"\boxed{480}\qquad\boxed{481}", Status.WRONG),
    ("3, 5", r"$\boxed{5}$ and $\boxed{3}$", Status.CORRECT),
]

# (gold, a part of what is wrong with it; None where it is fine)
GOLDS = [
    ("204", None),
    ("-984", None),
    (r"8\sqrt{10}", None),
    (r"\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}", None),
    ("Yes", None),
    (r"\text{no solution}", None),
    (r"\mathbb{Z}/2\mathbb{Z}", None),
    (r"\boxed{204}", None),
    (r"\frac{sqrt{7} + 1}{2}", "malformed"),
    ("2 sqrt(3)", "malformed"),
    (r"\frac{1}{2", "braces"),
    ("", "empty"),
    ("  ", "empty"),
    (r"\boxed{}", "box"),
    (r"\boxed{204", "box"),
    (r"\frac{1}{0}", "no value"),
    (r"\infty - \infty", "no value"),
    ("9^{9^{9^9}}", "not computed"),
    (r"\sum_{n=1}^\infty \frac{1}{n^2}", "not computed"),
]


@pytest.mark.parametrize(("completion", "answer"), ANSWERS)
def test_extraction(completion, answer):
    assert extract_answer(completion) == answer


@pytest.mark.parametrize(("gold", "completion", "status"), STATUSES)
def test_status(gold, completion, status):
    assert verify_maths(completion, gold).status is status


@pytest.mark.parametrize(("gold", "problem"), GOLDS)
def test_check_gold(gold, problem):
    found = check_gold(gold)
    assert found is None if problem is None else problem in found


def test_malformed_gold_is_judged_as_meant():
    gold = r"\frac{sqrt{7} + 1}{2}"
    assert verify_maths(r"\boxed{\frac{\sqrt{7}+1}{2}}", gold).correct
    assert verify_maths(rf"\boxed{{{gold}}}", gold).correct
    assert not verify_maths(r"\boxed{\frac{7+1}{2}}", gold).correct


def test_verdict_carries_the_answer_shortened():
    assert verify_maths(r"\boxed{ 205 }", "204").answer == "205"
    assert len(verify_maths(rf"\boxed{{{'1' * 9000}}}", "204").answer) <= 500
