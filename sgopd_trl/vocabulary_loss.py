r"""Losses of a token over the vocabulary, in place of the policy gradient of the sampled token.

Notation, for N positions and a vocabulary of V tokens:

    S, T, R : (N, V) log-probabilities, in nats, under student, teacher and reference; here from their logits
    lam     : (N,) extrapolation strength lambda of each position; 1 where the reference plays no part

The functions are pure and differentiable through the student's logits. Temperature has been divided out of all logits.
"""

from typing import Literal

import torch


ReverseKL = Literal["sampled_token", "full_vocabulary"]
NegativeAdvantageMode = Literal["policy_gradient", "forward_kl"]

REVERSE_KLS: tuple[str, ...] = ("sampled_token", "full_vocabulary")
NEGATIVE_ADVANTAGE_MODES: tuple[str, ...] = ("policy_gradient", "forward_kl")


def reverse_kl_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    reference_logits: torch.Tensor | None = None,
    lam: torch.Tensor | None = None,
    top_k: int | None = None,
) -> torch.Tensor:
    """Expectation over the vocabulary of what the sampled token's policy gradient estimates (Eq. 5, Appendix H).

    `-sum_v pi(v) [T - S + (lam - 1)(T - R)](v)`: at lam = 1 it is the reverse KL, KL(pi || pi*). Its gradient is the
    expectation of the policy gradient with the advantage `A_gopd(lam)`: what the derivative of the advantage itself adds,
    the expectation of grad S, is 0.

    Args:
        student_logits, teacher_logits, reference_logits: (N, V). The last one is read only with `lam`.
        lam: (N,); `None` is 1 everywhere.
        top_k: compare the distributions on the student's k most likely tokens alone, each renormalised there (as Li et
            al., 2026, arXiv:2604.13016); from V on it is exact.

    Returns:
        (N,) nats.
    """
    if top_k is not None and top_k < student_logits.size(-1):
        chosen = student_logits.detach().topk(top_k, dim=-1).indices
        student_logits, teacher_logits = student_logits.gather(-1, chosen), teacher_logits.gather(-1, chosen)
        reference_logits = None if reference_logits is None else reference_logits.gather(-1, chosen)
    student, teacher = student_logits.log_softmax(-1), teacher_logits.log_softmax(-1)
    advantage = teacher - student
    if lam is not None:
        advantage = advantage + (lam - 1).unsqueeze(-1) * (teacher - reference_logits.log_softmax(-1))
    return -(student.exp() * advantage).sum(-1)


def forward_kl_loss(student_logits: torch.Tensor, teacher_logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Truncated forward KL of AOPD (Jia et al., 2026, arXiv:2605.06387): to the teacher's k most likely tokens.

    `sum_v q(v) (log q(v) - S(v))` with q the teacher renormalised on those tokens, and the student's log-probabilities
    those of the whole vocabulary: it is never negative, and its gradient moves the mass that the student has elsewhere to
    those tokens. From k = V on it is KL(pi* || pi).

    Args:
        student_logits, teacher_logits: (N, V). top_k: >= 1.

    Returns:
        (N,) nats.
    """
    top, chosen = teacher_logits.topk(min(top_k, teacher_logits.size(-1)), dim=-1)
    log_q = top.log_softmax(-1)
    return (log_q.exp() * (log_q - student_logits.log_softmax(-1).gather(-1, chosen))).sum(-1)
