"""What a run reports of the gate: shares of tokens, sign flips, distance to the teacher, clipping (Figure 7)."""

import torch

from .advantages import AGREE, DISAGREE, NEUTRAL, token_classes
from .stability import masked_sum


def token_sums(a1: torch.Tensor, a2: torch.Tensor, mask: torch.Tensor, phi: torch.Tensor | None) -> torch.Tensor:
    """Sums that add up over micro-batches and processes.

    Args:
        a1: (B,) or (B, L). a2, mask: (B, L). phi: (B, L) before its normalisation, or `None`.

    Returns:
        (6,) float64: valid tokens, agreeing, disagreeing, a2, phi-clipped tokens, phi.
    """
    classes = token_classes(a1, a2)
    phi = torch.ones_like(a2) if phi is None else phi
    per_token = (torch.ones_like(a2), classes == AGREE, classes == DISAGREE, a2, phi < 1, phi)
    return torch.stack([masked_sum(values, mask) for values in per_token])


def token_metrics(sums: torch.Tensor, flips: float | None) -> dict[str, float]:
    """Metrics of one optimizer step from its global sums.

    Args:
        sums: (6,) of `token_sums`, over all micro-batches and processes. flips: number of sign-flipped consensus tokens;
            `None` where none was looked for.

    Returns:
        `sign/*` in shares of all valid tokens, `*_nonzero` of those with a1 * a2 != 0 (Figure 7), `sign/flips` of all,
        unless it is `None`; `reverse_kl` (k1 estimate, nats a token); `stability/*`.
    """
    tokens, agree, disagree, a2, clipped, phi = sums.tolist()
    tokens, nonzero = max(tokens, 1.0), max(agree + disagree, 1.0)
    metrics = {
        "sign/agree": agree / tokens,
        "sign/disagree": disagree / tokens,
        "sign/neutral": 1 - (agree + disagree) / tokens,
        "sign/agree_nonzero": agree / nonzero,
        "sign/disagree_nonzero": disagree / nonzero,
        "reverse_kl": -a2 / tokens,
        "stability/clipped": clipped / tokens,
        "stability/phi": phi / tokens,
    }
    return metrics if flips is None else metrics | {"sign/flips": flips / tokens}


CLASS_NAMES = {AGREE: "agree", DISAGREE: "disagree", NEUTRAL: "neutral"}
