"""Held-out avg@k and pass@k during training, from the samples and verdicts that TRL's evaluation makes anyway."""

from typing import Any

import torch
from accelerate.logging import get_logger
from transformers.trainer_utils import EvalLoopOutput, has_length
from trl import GRPOTrainer

from .evaluation import avg_at_k, pass_at_k
from .truncation import is_truncated, zero_truncated


logger = get_logger(__name__)


class HeldOutAccuracy:
    """
    Mixin for a [`~trl.GRPOTrainer`] that gives `evaluate()` the metrics `avg@K` and `pass@K`.

    K is the number of samples a prompt (`num_generations_eval`, by default `num_generations`), and a sample is correct
    when its weighted reward is above `args.correct_reward_threshold` (0.5 where the arguments have no such field); one that
    no reward function could judge is not correct. The metrics are there for `metric_for_best_model`, early stopping and
    `load_best_model_at_end`, under the names `eval_avg@8` and `eval_pass@8`; with several evaluation datasets
    `eval_<dataset>_avg@8`.

    They are exact over all batches and processes: where the last batch is filled up with rows that have been there before,
    those do not count again. A streamed dataset does not tell how many these are, so under several processes it gets no such
    metrics.

    A trainer calls `record_rewards` once its `_calculate_rewards` has them in their final form.
    """

    _held_out: list[bool] | None = None  # of the evaluation under way: its samples in the sampler's order

    def record_rewards(self, rewards: torch.Tensor) -> None:
        """Keeps which samples of an evaluation are correct; without effect outside of one.

        Args:
            rewards: (samples of all processes, reward functions), as `_calculate_rewards` returns it.
        """
        if self._held_out is None:
            return
        threshold = getattr(self.args, "correct_reward_threshold", 0.5)
        self._held_out += ((rewards * self.reward_weights.to(rewards.device)).nansum(1) > threshold).tolist()

    def evaluation_loop(
        self, dataloader: Any, description: str, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> EvalLoopOutput:
        self._held_out = []
        try:
            output = super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
            correct = self._held_out
        finally:
            self._held_out = None
        k = self.num_generations_eval
        if has_length(dataloader.dataset):
            correct = correct[: len(dataloader.dataset) * k]  # the rest fills up the last batch
        elif self.accelerator.num_processes > 1:
            logger.warning(
                f"No avg@{k} and pass@{k} for a streamed evaluation dataset under {self.accelerator.num_processes} "
                "processes: rows of its last batch may be there twice, and it does not tell which. Load the dataset "
                "without streaming."
            )
            return output
        if correct:
            groups = [correct[first : first + k] for first in range(0, len(correct), k)]
            output.metrics[f"{metric_key_prefix}_avg@{k}"] = avg_at_k(groups)
            output.metrics[f"{metric_key_prefix}_pass@{k}"] = pass_at_k(groups, k)
        return output


class HeldOutGRPOTrainer(HeldOutAccuracy, GRPOTrainer):
    """[`~trl.GRPOTrainer`], whose evaluation also gives avg@K and pass@K.

    Where the arguments have `zero_truncated_reward` and it is true, truncated completions earn nothing, in training too.
    """

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if getattr(self.args, "zero_truncated_reward", False):
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            truncated = [is_truncated(ids, self.max_completion_length, ends) for ids in completion_ids_list]
            truncated = self.accelerator.gather(torch.tensor(truncated, device=self.accelerator.device))
            rewards = zero_truncated(rewards, truncated)
        self.record_rewards(rewards)
        return rewards
