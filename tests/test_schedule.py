"""alpha(t), Eq. 3, by hand; the number of teacher prompts, Algorithm 1."""

import math

import pytest

from sgopd_trl.schedule import phase_end, teacher_alpha, teacher_prompt_count


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 0.8),
        (30, 0.8),
        (31, 0.2 + 0.3 * (1 + math.cos(math.pi / 5))),
        (32, 0.2 + 0.3 * (1 + math.cos(2 * math.pi / 5))),
        (35, 0.2),
        (36, 0.0),
        (100, 0.0),
    ],
)
def test_alpha_by_hand(step, expected):
    assert teacher_alpha(step, 30, 35, alpha_0=0.8, alpha_end=0.2) == pytest.approx(expected, abs=1e-12)


def test_alpha_is_exactly_zero_past_the_phases_and_without_a_transition():
    assert teacher_alpha(36, 30, 35, 0.8, 0.2) == 0
    assert [teacher_alpha(step, 2, 2, 1.0, 0.0) for step in (1, 2, 3)] == [1.0, 1.0, 0.0]
    assert teacher_alpha(1, 0, 0, 1.0, 0.5) == 0


def test_phase_ends_are_fractions_or_steps():
    assert [phase_end(value, 100) for value in (0.0, 0.29, 0.30, 0.35, 1.0)] == [0, 29, 30, 35, 100]
    assert [phase_end(value, 100) for value in (30, 35.0, 250)] == [30, 35, 250]


def test_teacher_prompts_add_up_to_the_ratio():
    # rho = 1/8: one teacher prompt for seven of the student's
    assert [teacher_prompt_count(n, 7, 0.125) for n in (1, 2, 3)] == [1, 1, 1]
    counts = [teacher_prompt_count(n, 8, 0.125) for n in range(1, 8)]  # 8/7 a batch: 8 in seven batches
    assert sum(counts) == 8 and set(counts) == {1, 2}
    assert [teacher_prompt_count(n, 4, 0.0) for n in (1, 2)] == [0, 0]
    assert teacher_prompt_count(1, 4, 0.5) == 4
    assert sum(teacher_prompt_count(n, 128, 0.125) for n in range(1, 101)) == 12800 // 7
