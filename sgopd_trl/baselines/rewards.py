"""A verifier for trainers that have none of their own: TRL reward functions, called as `GRPOTrainer` calls them."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import TrainerState
from trl.trainer.utils import is_async_callable

from ..truncation import is_truncated, zero_truncated


RewardFunction = Callable[..., list[float | None]]


def check_rewards(functions: Sequence[RewardFunction], weights: Sequence[float] | None) -> None:
    """
    Raises:
        ValueError: for functions that cannot be called here, and for weights of another number.
    """
    if asynchronous := [function for function in functions if is_async_callable(function)]:
        raise ValueError(
            f"`reward_funcs`: {asynchronous[0]!r} is asynchronous, which `trainer: sft` and `trainer: gkd` cannot call. Write "
            "it as a plain function."
        )
    if weights is not None and len(weights) != len(functions):
        raise ValueError(f"`reward_weights` must be {len(functions)}, one a reward function, got {list(weights)}.")


class SummedRewards:
    """The weighted sum of reward functions, with what they log.

    Truncated completions earn nothing where `args.zero_truncated_reward`. What a function could not judge (`None` or NaN) adds
    nothing, as in TRL.

    Args:
        args: with `max_completion_length`, `zero_truncated_reward` and `reward_weights`. ends: ids of the tokens that end a
            completion. state: of the trainer.
    """

    def __init__(self, functions: Sequence[RewardFunction], args: Any, ends: set[int | None], state: TrainerState):
        self.functions = list(functions)
        self.args = args
        self.ends = ends
        self.state = state
        self._logged: list[tuple[str, float, int]] = []  # name, value, of how many completions

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        """
        Args:
            completion_ids: of B completions, without padding. columns: what else the functions take.

        Returns:
            B sums.

        Raises:
            ValueError: when a function returned the wrong number of rewards.
        """
        count = len(completion_ids)
        columns |= {
            "trainer_state": self.state,
            "log_extra": lambda column, values: None,  # there is no table of completions
            "log_metric": lambda name, value: self._logged.append((name, float(value), count)),
        }
        rewards = torch.full((count, len(self.functions)), math.nan)
        for number, function in enumerate(self.functions):
            found = function(completion_ids=completion_ids, **columns)
            if len(found) != count:
                raise ValueError(
                    f"A reward function returned {len(found)} rewards for {count} completions: {function}."
                )
            rewards[:, number] = torch.tensor([math.nan if reward is None else reward for reward in found])
        if self.args.zero_truncated_reward:
            truncated = [is_truncated(ids, self.args.max_completion_length, self.ends) for ids in completion_ids]
            rewards = zero_truncated(rewards, torch.tensor(truncated))
        weights = self.args.reward_weights or [1.0] * len(self.functions)
        return (rewards * torch.tensor(weights)).nansum(1).tolist()

    def metrics(self, accelerator: Accelerator) -> dict[str, float]:
        """What the functions have logged: means over the completions of all calls and processes. Collective."""
        totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for name, value, count in gather_object(self._logged):
            totals[name][0] += value * count
            totals[name][1] += count
        return {name: total / count for name, (total, count) in totals.items()}
