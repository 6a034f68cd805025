"""Evaluation during training on held-out problems, for trainers whose own evaluation is a loss."""

import math
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from trl.distributed import DistributedBackend
from trl.models import unwrap_model_for_generation

from ..evaluation import avg_at_k, pass_at_k
from ..evaluation.in_memory import Scored, sample_and_score
from ..failure import RandomState
from ..frozen import eos_token_ids
from ..verifiers.reward import Verifier
from ..verifiers.watch import stop_if_failing, watched_verifiers
from .rewards import RewardFunction, SummedRewards, check_rewards


class HeldOutEvaluation:
    """Mixin of a TRL trainer whose `evaluate` samples K completions a problem and asks the verifier: avg@K, pass@K.

    Every process solves its share of the problems. A sample depends on the seed, its problem and its number among the K: not on
    the batch (`per_device_eval_batch_size` completions), the processes or the step. Training goes on with the random numbers
    it would have had.

    Attributes:
        held_out_rewards: the verifier, TRL reward functions whose weighted sum is compared with
            `correct_reward_threshold`. verifiers: those of them that are `Verifier`s.
    """

    held_out_rewards: list[RewardFunction]
    verifiers: list[Verifier]

    def watch(self, reward_funcs: list[RewardFunction]) -> None:
        """Takes the verifier, which may be empty where nothing is evaluated.

        Raises:
            ValueError: as `check_rewards`.
        """
        check_rewards(reward_funcs, self.args.reward_weights)
        self.held_out_rewards = reward_funcs
        self.verifiers = watched_verifiers(reward_funcs, self.args.output_dir)

    def summed_rewards(self) -> SummedRewards:
        """The verifier, to be called."""
        ends = {*eos_token_ids(self.model), self.processing_class.eos_token_id, self.processing_class.pad_token_id}
        return SummedRewards(self.held_out_rewards, self.args, ends, self.state)

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Returns:
            `eval_avg@K` and `eval_pass@K` in [0, 1], `eval_completions/mean_length` in tokens, and what the verifier logs.

        Raises:
            ValueError: without problems or without a verifier. VerifierFailure: when the verifier fails too often.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if not self.held_out_rewards or dataset is None or len(dataset) == 0:
            raise ValueError("Evaluation needs held-out problems and `reward_funcs`.")
        state, verifier = RandomState.now(), self.summed_rewards()
        solved = self._solve(dataset, verifier)
        state.restore()
        stop_if_failing(self.verifiers, self.accelerator)
        solved, k = gather_object(solved), held_out_samples(self.args)
        correct = [[sample.reward > self.args.correct_reward_threshold for sample in samples] for samples in solved]
        metrics = {
            f"{metric_key_prefix}_avg@{k}": avg_at_k(correct),
            f"{metric_key_prefix}_pass@{k}": pass_at_k(correct, k),
            f"{metric_key_prefix}_completions/mean_length": fmean(sample.tokens for row in solved for sample in row),
        } | {f"{metric_key_prefix}_{name}": value for name, value in verifier.metrics(self.accelerator).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _solve(self, dataset: Dataset, verifier: SummedRewards) -> list[list[Scored]]:
        """This process's share of the problems, each once."""
        args = self.args
        share = math.ceil(len(dataset) / self.accelerator.num_processes)
        first = self.accelerator.process_index * share
        # Under ZeRO-3 and FSDP all processes generate together, so all have as many problems: the last ones get some that
        # other processes solve, and drop them afterwards.
        mine = dataset.select([number % len(dataset) for number in range(first, first + share)])
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
                gather_deepspeed3_params=getattr(args, "ds3_gather_for_generation", True),
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as model,
            DistributedBackend(self.accelerator).summon_full_params(self.model_wrapped, recurse=False),
        ):
            solved = sample_and_score(
                model,
                self.processing_class,
                mine,
                verifier,
                k=held_out_samples(args),
                temperature=args.temperature,
                top_p=args.top_p,
                top_k=args.top_k,
                max_new_tokens=args.max_completion_length,
                batch_size=args.per_device_eval_batch_size,
                seed=args.seed,
                chat_template_kwargs=args.chat_template_kwargs,
                progress=lambda done, total: progress.update(done - progress.n),
            )
        return solved[: max(0, len(dataset) - first)]


def held_out_samples(args: Any) -> int:
    """K: completions a problem in the evaluation of these arguments, TRL's GRPO's among them."""
    return args.num_generations_eval or args.num_generations
