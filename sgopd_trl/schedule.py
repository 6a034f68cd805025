"""When the teacher is sampled, and how much: the cosine phases of Eq. 3 and the ratio rho of Algorithm 1."""

import math
from fractions import Fraction


def phase_end(value: float, max_steps: int) -> int:
    """A phase boundary in optimizer steps: `value` is a fraction of `max_steps` up to 1, else a number of steps."""
    return round(value * max_steps) if value <= 1 else round(value)


def teacher_alpha(step: int, phase1_end: int, phase2_end: int, alpha_0: float, alpha_end: float) -> float:
    """Weight alpha(t) of the teacher anchor, Eq. (3): flat, cosine, then exactly 0.

    Args:
        step: optimizer step t, counted from 1. phase1_end, phase2_end: P1 <= P2, in steps.

    Returns:
        alpha_0 up to P1, the cosine from alpha_0 to alpha_end up to P2, 0 after.
    """
    if step <= phase1_end:
        return alpha_0
    if step <= phase2_end:
        progress = (step - phase1_end) / (phase2_end - phase1_end)
        return alpha_end + (alpha_0 - alpha_end) / 2 * (1 + math.cos(math.pi * progress))
    return 0.0


def teacher_prompt_count(ordinal: int, student_prompts: int | Fraction, ratio: float) -> int:
    """Number of teacher prompts |B_T| of one optimizer step's batch (Algorithm 1, line 2).

    B_T is drawn in addition to B_S: |B_T| / (|B_S| + |B_T|) = rho. Where rho / (1 - rho) * |B_S| is not a whole number,
    the remainder is carried: after n batches exactly floor(n * rho / (1 - rho) * |B_S|) prompts have been drawn.

    Args:
        ordinal: number of the batch, counted from 1. student_prompts: |B_S|, a fraction where several optimizer steps
            share a generation batch. ratio: rho in [0, 1).
    """
    rho = Fraction(ratio).limit_denominator(10**6)
    per_batch = rho / (1 - rho) * student_prompts
    return math.floor(ordinal * per_batch) - math.floor((ordinal - 1) * per_batch)
