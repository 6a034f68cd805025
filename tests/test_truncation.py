"""Which completions are truncated, and what they keep."""

import math

import torch

from sgopd_trl.truncation import is_truncated, zero_truncated


def test_truncated_is_at_the_limit_and_not_ended():
    assert [is_truncated(ids, 3, {0, 1}) for ids in ([5, 6, 7], [5, 6, 1], [5, 6], [])] == [True, False, False, False]


def test_truncated_completions_keep_penalties_and_what_was_not_judged():
    rewards = torch.tensor([[1.0, -0.5], [math.nan, 2.0], [1.0, 2.0]])
    found = zero_truncated(rewards, torch.tensor([True, True, False]))
    expected = torch.tensor([[0.0, -0.5], [math.nan, 0.0], [1.0, 2.0]])
    torch.testing.assert_close(found, expected, equal_nan=True)
