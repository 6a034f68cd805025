"""Truncated completions, those that ended at their limit and not by themselves: they earn nothing."""

from collections.abc import Collection, Sequence

import torch


def is_truncated(completion_ids: Sequence[int], limit: int, ends: Collection[int]) -> bool:
    """Whether a completion ended at its limit.

    Args:
        limit: tokens a completion may have, at least 1. ends: ids of the tokens that end one.
    """
    return len(completion_ids) >= limit and completion_ids[-1] not in ends


def zero_truncated(rewards: torch.Tensor, truncated: torch.Tensor) -> torch.Tensor:
    """Takes from truncated completions what they have earned; penalties, and NaN where nothing was judged, stay.

    Args:
        rewards: (B, reward functions). truncated: (B,), boolean.
    """
    return torch.where(truncated.unsqueeze(1) & (rewards > 0), 0.0, rewards)
