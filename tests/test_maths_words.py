"""Words, letters of choices, units, percentages and degrees: (gold, answer, whether the answer is correct)."""

import pytest

from sgopd_trl.verifiers.maths import verify_maths


CASES = [
    ("1234567", "1,234,567", True),
    ("1234567", "1{,}234{,}567", True),
    ("1234567", "1 234 567", True),
    ("Yes", "YES", True),
    ("Yes", r"\text{yes}", True),
    ("Yes", r"\text{Yes.}", True),
    ("Yes", "Yes!", True),
    ("Yes", r"\text{Yes or no}", False),
    ("Yes", r"\text{Yes and No}", False),
    ("Yes", r"\text{Not yes}", False),
    ("Yes", r"\text{No, yes}", False),
    ("Yes", r"\text{Yes, but no}", False),
    ("Yes", r"\textbf{Yes}", True),
    ("Yes", "True", False),
    ("Yes", "1", False),
    ("No", r"\text{No, it diverges}", True),
    ("No", r"\text{no solution}", False),
    ("No", r"\text{Nope}", False),
    ("No", "n o", False),
    (r"\text{True}", "True", True),
    (r"\text{True}", r"\text{true}", True),
    (r"\text{Monday}", r"\text{Monday}", True),
    (r"\text{Monday}", "monday", True),
    (r"\text{Monday}", r"\text{Tuesday}", False),
    (r"\text{Monday}", r"\mathrm{Monday}", True),
    ("B", r"\text{(B)}", True),
    ("B", "(B)", True),
    ("B", r"\textbf{B}", True),
    ("B", r"\mathrm{B}", True),
    ("B", "B.", True),
    ("B", "B)", True),
    ("B", r"\text{B. 24}", True),
    ("B", r"\text{(B) 24}", True),
    ("B", "A", False),
    ("B", "BB", False),
    ("B", r"\text{A or B}", False),
    ("B", r"\text{B, C}", False),
    ("B", r"\text{not B}", False),
    ("C", "B", False),
    ("12", "12 cm", True),
    ("12", r"12\text{cm}", True),
    ("12", r"12\text{ cm}^2", True),
    ("12", r"12\,\text{cm}^2", True),
    ("12", r"12 \text{ square units}", True),
    ("12", r"12\ \mathrm{m/s}", True),
    ("12", "$12", True),
    ("12", r"12\text{ dollars}", True),
    ("12", "12 dollars", True),
    ("12", r"\text{12 cm}", True),
    ("12", r"12 \text{ or so}", False),
    ("12", "12x", False),
    ("12", r"12\text{ dozen}", False),
    ("12", r"12 \text{ million}", False),
    ("12", r"12\text{ cm} \text{ and } 5 \text{ mm}", False),
    ("12", r"12\text{ hours } 30 \text{ minutes}", False),
    ("12", r"12 \text{ degrees}", True),
    (r"12\text{ cm}", "12", True),
    (r"12\text{ cm}", r"12\text{ m}", False),
    (r"12\text{ cm}", r"12 \text{ centimeters}", True),
    (r"50\%", r"50\%", True),
    (r"50\%", "0.5", True),
    (r"50\%", r"50 \%", True),
    (r"50\%", r"50\text{ percent}", True),
    (r"50\%", "50%", True),
    (r"50\%", r"\frac12", True),
    (r"50\%", "5", False),
    (r"50\%", "500", False),
    (r"50\%", r"0.5\%", False),
    ("0.5", r"50\%", True),
    ("0.05", r"50\%", False),
    (r"30^\circ", "30", True),
    (r"30^\circ", "30°", True),
    (r"30^\circ", r"30 \text{ degrees}", True),
    (r"30^\circ", r"\frac{\pi}{6} \text{ radians}", True),
    (r"30^\circ", r"\frac{\pi}{3}", False),
    (r"30^\circ", r"60^\circ", False),
    (r"\frac{\pi}{6}", r"30^\circ", True),
    (r"\frac{\pi}{6}", "30", False),
    (r"\text{no solution}", r"\text{no solution}", True),
    (r"\text{even}", r"\text{odd}", False),
    ("45", r"45^{\circ}", True),
    ("30", r"\angle A = 30^\circ", True),
    ("12", r"\text{Area} = 12", True),
    ("12", r"\sqrt{4} = 12", False),
    ("12", r"\pi = 12", False),
    ("12", r"\sin(3) = 12", False),
    ("C", r"\text{(C) } \frac12", True),
    ("24", r"\textbf{(C)}\ 24", True),
    ("24", r"\textbf{(C)}\ 25", False),
    (r"\textbf{(C)} 24", "C", True),
    ("12:30", "12:45", False),
    (r"\$5", "5", True),
    (r"\frac{2}{5}\text{ cm}", "0.4", True),
]


@pytest.mark.parametrize(("gold", "answer", "correct"), CASES)
def test_answer(gold, answer, correct):
    verdict = verify_maths(f"Therefore the answer is $\\boxed{{{answer}}}$.", gold)
    assert verdict.correct == correct, verdict
    turned = verify_maths(f"\\boxed{{{gold}}}", answer)
    assert turned.correct == correct, turned


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        (r"50\%", "50", True),  # the sign may be left out
        ("50", r"50\%", False),  # but 50% is 0.5
        ("60", r"60\%", False),
        ("60", r"60 \text{ percent}", False),
        ("0.6", r"60\%", True),
        (r"\frac35", r"60\%", True),
        ("60", r"6000\%", True),
        (r"\{10, 20\}", r"\{10\%, 20\%\}", True),
    ],
)
def test_a_percent_sign_depends_on_which_of_the_two_is_the_gold(gold, answer, correct):
    assert verify_maths(f"\\boxed{{{answer}}}", gold).correct == correct
