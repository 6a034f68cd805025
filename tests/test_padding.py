"""Trimming takes padding away and nothing else."""

import torch

from sgopd_trl.padding import trim_padding


def test_trimming_by_hand():
    batch = {
        "prompt_ids": torch.tensor([[0, 0, 5, 6], [0, 0, 0, 7]]),
        "prompt_mask": torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1]]),
        "completion_ids": torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]]),
        "completion_mask": torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0]]),
        "advantages": torch.arange(8.0).view(2, 4),
        "importance_sampling_ratio": torch.ones(2, 1),
        "outcome_advantages": torch.tensor([1.0, -1.0]),
        "num_items_in_batch": torch.tensor(3),
        "teacher": None,
    }
    trimmed = trim_padding(batch)
    assert trimmed["prompt_ids"].tolist() == [[5, 6], [0, 7]]
    assert trimmed["prompt_mask"].tolist() == [[1, 1], [0, 1]]
    assert trimmed["completion_ids"].tolist() == [[1, 2], [3, 0]]
    assert trimmed["advantages"].tolist() == [[0, 1], [4, 5]]
    for name in ("importance_sampling_ratio", "outcome_advantages", "num_items_in_batch", "teacher"):
        assert trimmed[name] is batch[name]


def test_a_batch_without_valid_completion_keeps_a_column():
    batch = {name: torch.zeros(2, 3, dtype=torch.long) for name in ("completion_ids", "completion_mask")}
    batch |= {name: torch.ones(2, 2, dtype=torch.long) for name in ("prompt_ids", "prompt_mask")}
    assert trim_padding(batch)["completion_ids"].shape == (2, 1)
