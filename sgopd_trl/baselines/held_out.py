"""Evaluation during training on held-out problems, for trainers whose own evaluation is a loss."""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from ..evaluation import evaluate
from ..failure import RandomState
from ..seeded_sampling import rollout_seed
from ..truncation import is_truncated, zero_truncated


class HeldOutEvaluation:
    """Mixin of a TRL trainer whose `evaluate` samples K completions a problem and asks the verifier: avg@K, pass@K.

    Every process solves its share of the problems, whole problems at a time. Training goes on with the random numbers it
    would have had; every evaluation of a run has the same ones. `per_device_eval_batch_size` completions are generated at
    once.

    Attributes:
        held_out_rewards: the verifier, TRL reward functions whose sum is compared with `correct_reward_threshold`.
    """

    held_out_rewards: list[Callable[..., list[float]]]

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Returns:
            `eval_avg@K` and `eval_pass@K` in [0, 1], and `eval_completions/mean_length` in tokens.

        Raises:
            ValueError: without problems or without a verifier.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not self.held_out_rewards or dataset is None or len(dataset) == 0:
            raise ValueError("Evaluation needs held-out problems and `reward_funcs`.")
        state = RandomState.now()
        self.model.eval()
        found = self._solve(dataset.shard(self.accelerator.num_processes, self.accelerator.process_index))
        state.restore()
        parts = gather_object([found])
        problems = sum(part["problems"] for part in parts)
        metrics = {
            f"{metric_key_prefix}_{name}": sum(part[name] * part["problems"] for part in parts) / problems
            for name in parts[0]
            if name != "problems"
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _solve(self, dataset: Dataset) -> dict[str, float]:
        """This process's figures, and how many problems they are of."""
        args, k = self.args, held_out_samples(self.args)
        rewards = _SummedRewards(self.held_out_rewards, args)
        rewards.eos_token_ids = _eos_token_ids(self.model, self.processing_class)
        rewards.pad_token_id = self.processing_class.pad_token_id
        progress = tqdm(
            total=len(dataset),
            desc="Held-out problems",
            disable=args.disable_tqdm or not self.is_local_process_zero(),
            leave=False,
        )
        with (
            progress,
            torch.no_grad(),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as model,
            DistributedBackend(self.accelerator).summon_full_params(self.model_wrapped, recurse=False),
        ):
            if len(dataset) == 0:  # more processes than problems
                return {f"avg@{k}": 0.0, f"pass@{k}": 0.0, "completions/mean_length": 0.0, "problems": 0}
            found = evaluate(
                model,
                _Templated(self.processing_class, args.chat_template_kwargs or {}),
                dataset,
                rewards,
                k=k,
                temperature=args.temperature,
                top_p=args.top_p,
                max_new_tokens=args.max_completion_length,
                batch_size=args.per_device_eval_batch_size,
                seed=rollout_seed(args.seed, "held-out", self.accelerator.process_index),
                threshold=args.correct_reward_threshold,
                progress=lambda done, total: progress.update(done - progress.n),
            )
        return found | {"completions/mean_length": rewards.tokens / rewards.completions}


def held_out_samples(args: Any) -> int:
    """K: completions a problem in the evaluation of these arguments, TRL's GRPO's among them."""
    return args.num_generations_eval or args.num_generations


class _Templated:
    """A tokenizer whose chat template is given these arguments."""

    def __init__(self, tokenizer: Any, chat_template_kwargs: dict[str, Any]):
        self.tokenizer = tokenizer
        self.chat_template_kwargs = chat_template_kwargs

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer(*args, **kwargs)

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        return self.tokenizer.apply_chat_template(*args, **self.chat_template_kwargs, **kwargs)


def summed_rewards(
    functions: list[Callable[..., list[float | None]]],
    args: Any,
    ends: set[int | None],
    completion_ids: list[list[int]],
    **columns: Any,
) -> torch.Tensor:
    """The sum of several reward functions, once truncated completions are zeroed where `args.zero_truncated_reward`.

    Args:
        args: with `max_completion_length` and `zero_truncated_reward`. ends: ids of the tokens that end a completion.
        completion_ids: of B completions, without padding. columns: what else the functions take.

    Returns:
        (B,). What a function could not judge (`None` or NaN) adds nothing, as in TRL.

    Raises:
        ValueError: when a function returned the wrong number of rewards.
    """
    rewards = torch.full((len(completion_ids), len(functions)), math.nan)
    for number, function in enumerate(functions):
        found = function(completion_ids=completion_ids, **columns)
        if len(found) != len(completion_ids):
            raise ValueError(
                f"A reward function returned {len(found)} rewards for {len(completion_ids)} completions: {function}."
            )
        rewards[:, number] = torch.tensor([math.nan if reward is None else reward for reward in found])
    if args.zero_truncated_reward:
        truncated = [is_truncated(ids, args.max_completion_length, ends) for ids in completion_ids]
        rewards = zero_truncated(rewards, torch.tensor(truncated))
    return rewards.nansum(1)


class _SummedRewards:
    """The sum of several reward functions, that counts the completions' tokens."""

    def __init__(self, functions: list[Callable[..., list[float | None]]], args: Any):
        self.functions = functions
        self.args = args
        self.eos_token_ids: set[int] = set()
        self.pad_token_id: int | None = None
        self.completions = self.tokens = 0

    def __call__(self, prompts: list, completions: list, completion_ids: list[list[int]], **columns) -> list[float]:
        kept = [self._until_eos(ids) for ids in completion_ids]
        self.completions += len(kept)
        self.tokens += sum(map(len, kept))
        columns |= {"prompts": prompts, "completions": completions}
        ends = {*self.eos_token_ids, self.pad_token_id}
        return summed_rewards(self.functions, self.args, ends, kept, **columns).tolist()

    def _until_eos(self, ids: list[int]) -> list[int]:
        return ids[: next((place for place, token in enumerate(ids, 1) if token in self.eos_token_ids), len(ids))]


def _eos_token_ids(model: Any, tokenizer: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else ids
    return {*ids, tokenizer.eos_token_id}
