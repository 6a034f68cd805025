"""Stability weight phi of the token loss, Eq. 9, with a unit mean over the whole optimizer step."""

import torch


def stability_weight(a2: torch.Tensor, tau: float) -> torch.Tensor:
    """`phi = min(1, tau / |a2|)`, Eq. (9), detached and not yet normalised.

    Args:
        a2: (B, L) nats. tau: nats, > 0.

    Returns:
        (B, L) in (0, 1].
    """
    # |a2| is clamped at tau from below: the ratio is then exactly 1 where phi does not clip, and 0 / 0 cannot occur.
    return tau / a2.detach().abs().clamp(min=tau)


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, where the device has it (Apple's does not)."""
    return torch.float32 if device.type == "mps" else torch.float64


def masked_sum(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over the valid tokens, in float64 so that it does not depend on how the batch was cut.

    Padding is selected away, not multiplied: it may hold anything, non-finite values included.

    Args:
        values, mask: (B, L).

    Returns:
        scalar.
    """
    return torch.where(mask.bool(), values, 0).sum(dtype=wide_dtype(values.device))


def unit_mean(phi: torch.Tensor, total: torch.Tensor | float, count: torch.Tensor | float) -> torch.Tensor:
    """phi divided by its mean over the valid tokens of the optimizer step.

    Args:
        phi: (B, L). total, count: sum of phi over, and number of, the valid tokens of *all* micro-batches and processes.

    Returns:
        (B, L); unchanged when there is no valid token.
    """
    mean = float(total) / max(float(count), 1.0)
    return phi / mean if mean > 0 else phi
