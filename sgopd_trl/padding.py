"""Micro-batches without the padding that only other micro-batches of the generation batch need."""

from typing import Any

import torch


def trim_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch cut to its own longest prompt and completion; every value left is what it was.

    TRL pads to the longest rollout of the generation batch, and its loss runs the model over all of that.

    Args:
        batch: `prompt_ids`, `prompt_mask` (B, P), left-padded; `completion_ids`, `completion_mask` (B, L),
            right-padded; any further (B, L) tensors of completion tokens.
    """
    length = batch["completion_ids"].size(1)
    prompt = max(int(batch["prompt_mask"].sum(1).max()), 1)
    completion = max(int(batch["completion_mask"].sum(1).max()), 1)
    trimmed = {}
    for name, value in batch.items():
        if name in ("prompt_ids", "prompt_mask"):
            value = value[:, -prompt:]
        elif isinstance(value, torch.Tensor) and value.dim() == 2 and value.size(1) == length:
            value = value[:, :completion]
        trimmed[name] = value
    return trimmed
