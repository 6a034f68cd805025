"""Evaluation during training on held-out problems, for trainers whose own evaluation is a loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from ..evaluation import avg_at_k, evaluate, pass_at_k
from ..failure import RandomState
from ..seeded_sampling import rollout_seed
from ..truncation import is_truncated, zero_truncated
from ..verifiers.reward import Verifier
from ..verifiers.watch import stop_if_failing


@dataclass(frozen=True)
class _Solved:
    """Which of a problem's K completions are correct, and their tokens, all together."""

    correct: list[bool]
    tokens: int


class HeldOutEvaluation:
    """Mixin of a TRL trainer whose `evaluate` samples K completions a problem and asks the verifier: avg@K, pass@K.

    Every process solves its share of the problems, whole problems at a time. Training goes on with the random numbers it
    would have had; every evaluation of a run has the same ones. `per_device_eval_batch_size` completions are generated at
    once.

    Attributes:
        held_out_rewards: the verifier, TRL reward functions whose sum is compared with `correct_reward_threshold`.
        verifiers: those of them that are `Verifier`s, from `watched_verifiers`.
    """

    held_out_rewards: list[Callable[..., list[float | None]]]
    verifiers: list[Verifier]

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
            ValueError: without problems or without a verifier. VerifierFailure: when the verifier fails too often.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not self.held_out_rewards or dataset is None or len(dataset) == 0:
            raise ValueError("Evaluation needs held-out problems and `reward_funcs`.")
        state = RandomState.now()
        self.model.eval()
        solved = self._solve(dataset)
        state.restore()
        stop_if_failing(self.verifiers, self.accelerator)
        solved, k = gather_object(solved), held_out_samples(self.args)
        correct = [problem.correct for problem in solved]
        metrics = {
            f"{metric_key_prefix}_avg@{k}": avg_at_k(correct),
            f"{metric_key_prefix}_pass@{k}": pass_at_k(correct, k),
            f"{metric_key_prefix}_completions/mean_length": sum(p.tokens for p in solved) / (k * len(solved)),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _solve(self, dataset: Dataset) -> list[_Solved]:
        """This process's share of the problems, each once."""
        args, k = self.args, held_out_samples(self.args)
        share = math.ceil(len(dataset) / self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        # Under ZeRO-3 and FSDP all processes generate together, so all have as many problems: the last ones get some that
        # other processes solve, and drop them afterwards.
        mine = dataset.select([number % len(dataset) for number in range(first, first + share)])
        rewards = _SummedRewards(self.held_out_rewards, args)
        rewards.eos_token_ids = _eos_token_ids(self.model, self.processing_class)
        rewards.pad_token_id = self.processing_class.pad_token_id
        progress = tqdm(
            total=share,
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
            evaluate(
                model,
                _Templated(self.processing_class, args.chat_template_kwargs or {}),
                mine,
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
        solved = [
            _Solved(
                correct=[reward > args.correct_reward_threshold for reward in rewards.totals[start : start + k]],
                tokens=sum(rewards.lengths[start : start + k]),
            )
            for start in range(0, share * k, k)
        ]
        return solved[: max(0, len(dataset) - first)]


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
    """The sum of several reward functions, that keeps what it has judged.

    Attributes:
        totals, lengths: of every completion, in order: its reward, and its tokens up to the one that ends it.
    """

    def __init__(self, functions: list[Callable[..., list[float | None]]], args: Any):
        self.functions = functions
        self.args = args
        self.eos_token_ids: set[int] = set()
        self.pad_token_id: int | None = None
        self.totals: list[float] = []
        self.lengths: list[int] = []

    def __call__(self, completion_ids: list[list[int]], **columns: Any) -> list[float]:
        kept = [self._until_eos(ids) for ids in completion_ids]
        ends = {*self.eos_token_ids, self.pad_token_id}
        rewards = summed_rewards(self.functions, self.args, ends, kept, **columns).tolist()
        self.totals += rewards
        self.lengths += map(len, kept)
        return rewards

    def _until_eos(self, ids: list[int]) -> list[int]:
        return ids[: next((place for place, token in enumerate(ids, 1) if token in self.eos_token_ids), len(ids))]


def _eos_token_ids(model: Any, tokenizer: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    ids = [] if ids is None else [ids] if isinstance(ids, int) else ids
    return {*ids, tokenizer.eos_token_id}
