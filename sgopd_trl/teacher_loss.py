"""The sample-level anchor L_SLT, Eq. 2: cross-entropy of the student on verified teacher rollouts."""

from typing import Literal

import torch


TeacherReduction = Literal["token_mean", "sequence_mean", "sum"]
TeacherPhi = Literal["none", "chord"]

TEACHER_REDUCTIONS: tuple[str, ...] = ("token_mean", "sequence_mean", "sum")
TEACHER_PHIS: tuple[str, ...] = ("none", "chord")


def teacher_token_weights(
    mask: torch.Tensor, reduction: TeacherReduction, total_tokens: int, total_sequences: int
) -> torch.Tensor:
    """Weight of each teacher token in L_SLT.

    `"sum"` is Eq. (2) to the letter; `"token_mean"` divides by the tokens, `"sequence_mean"` averages each sequence and
    then the sequences: the totals are those of the whole optimizer step, so the weights add up over any cut of it.

    Args:
        mask: (B, L), 1 on completion tokens of verified rollouts. total_tokens, total_sequences: of the step.

    Returns:
        (B, L) float.

    Raises:
        ValueError: for an unknown reduction.
    """
    mask = mask.float()
    if reduction == "sum":
        return mask
    if reduction == "token_mean":
        return mask / max(total_tokens, 1)
    if reduction == "sequence_mean":
        return mask / mask.sum(1, keepdim=True).clamp(min=1) / max(total_sequences, 1)
    raise ValueError(f"Unknown teacher_sft_reduction {reduction!r}. Expected one of {TEACHER_REDUCTIONS}.")


def chord_weight(logps: torch.Tensor) -> torch.Tensor:
    """CHORD's token weight `p (1 - p)`, detached (Appendix C, `teacher_sft_phi_*`).

    Args:
        logps: (B, L) nats.

    Returns:
        (B, L) in [0, 1/4].
    """
    p = logps.detach().exp()
    return p * (1 - p)


def teacher_cross_entropy(logps: torch.Tensor, weights: torch.Tensor, phi: TeacherPhi = "none") -> torch.Tensor:
    """Weighted cross-entropy `-sum w phi log pi`, Eq. (2): the only gradient path is through `logps`.

    Args:
        logps: (B, L) nats, of the student. weights: (B, L) from `teacher_token_weights`. phi: `"chord"` multiplies by
            `chord_weight`.

    Returns:
        scalar, nats.

    Raises:
        ValueError: for an unknown phi.
    """
    if phi == "chord":
        weights = weights * chord_weight(logps)
    elif phi != "none":
        raise ValueError(f"Unknown teacher_sft_phi {phi!r}. Expected one of {TEACHER_PHIS}.")
    return -(weights * logps).sum()
