"""Sampling in which every rollout has a seed of its own, so that it does not depend on who else is in the batch."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from .stability import wide_dtype


if TYPE_CHECKING:
    from .teachers import SamplingSettings


def rollout_seed(*parts: object) -> int:
    """A 63-bit seed from anything printable, the same on every machine and process."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


class SeededSampler(LogitsProcessor):
    """Draws each row's token by inverse transform from that row's own uniform numbers; greedy decoding then takes it.

    Args:
        seeds: one a row. max_new_tokens: uniform numbers to draw for each row.
    """

    def __init__(self, seeds: Sequence[int], max_new_tokens: int):
        rows = [
            torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self.uniform = torch.stack(rows)
        self.prompt_length: int | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.prompt_length is None:
            self.prompt_length = input_ids.size(1)
            self.uniform = self.uniform.to(scores.device, wide_dtype(scores.device))
        step = input_ids.size(1) - self.prompt_length
        cdf = scores.to(self.uniform.dtype).softmax(-1).cumsum(-1)
        target = self.uniform[:, step : step + 1] * cdf[:, -1:]
        drawn = torch.searchsorted(cdf, target, right=True).clamp(max=scores.size(1) - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class VocabularyLimit(LogitsProcessor):
    """Forbids the ids from `size` on: rows of a padded embedding that no tokenizer entry stands behind."""

    def __init__(self, size: int):
        self.size = size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if scores.size(1) <= self.size:
            return scores
        return scores.index_fill(1, torch.arange(self.size, scores.size(1), device=scores.device), -torch.inf)


def sampling_processors(seeds: Sequence[int], settings: "SamplingSettings", vocab_size: int) -> LogitsProcessorList:
    """What makes greedy decoding sample at these settings; temperature 0 is greedy itself."""
    processors = LogitsProcessorList([VocabularyLimit(vocab_size)])
    if settings.temperature == 0:
        return processors
    if settings.temperature != 1:
        processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k > 0:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    processors.append(SeededSampler(seeds, settings.max_new_tokens))
    return processors
