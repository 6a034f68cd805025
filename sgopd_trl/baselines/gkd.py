"""GKD (Agarwal et al., 2024, arXiv:2306.13649): on-policy distillation with a share of the teacher's own rollouts."""

from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import Trainer
from trl import DistillationTrainer
from trl.data_utils import is_conversational

from ..checks import check_tokenizers
from ..miniature import resolve
from ..sampler import OrderedByEpoch
from ..seeded_sampling import rollout_seed
from ..teachers.identity import identity_entry, weights_hash
from ..verifiers.watch import stop_if_failing
from .held_out import HeldOutEvaluation
from .rewards import RewardFunction
from .rollouts import RolloutsOfPrompts, check_teacher, load_bank_data


class GKDTrainer(HeldOutEvaluation, OrderedByEpoch, DistillationTrainer):
    """[`~trl.DistillationTrainer`] whose generation batches are the student's with probability `args.lmbda`, otherwise
    the teacher's rollouts of the same prompts (GKD's Algorithm 1).

    Which batches, and which of a prompt's rollouts, depends on the seed and the step alone. The metrics of the student's
    rollouts are those of such batches; of the teacher's batches they are logged as `off_policy/...`.

    Args:
        bank: the teacher's rollouts; not needed at `lmbda` = 1.
        held_out_rewards: the verifier, of the held-out problems and for `reward` in the logs; may be empty.
        kwargs: [`~trl.DistillationTrainer`]'s arguments.

    Raises:
        ValueError: when the bank lacks rollouts of the training prompts.
    """

    _tag_names = ["trl", "gkd"]
    _name = "GKD"

    def __init__(
        self,
        *args: Any,
        bank: RolloutsOfPrompts | None = None,
        held_out_rewards: list[RewardFunction],
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.bank = bank
        self.watch(held_out_rewards)
        if self.args.lmbda < 1:
            self.train_dataset = self._with_rollouts(self.train_dataset)

    @property
    def on_policy(self) -> bool:
        """Whether the generation batch of the step under way is the student's."""
        step = self.state.global_step
        return not self.model.training or rollout_seed(self.args.seed, "gkd", step) < self.args.lmbda * 2**63

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        if self.on_policy:
            return super()._generate_single_turn(prompt_ids, *args, **kwargs)
        number = rollout_seed(self.args.seed, "gkd number", self.state.global_step)
        return [self.bank.pick(ids, number) for ids in prompt_ids]

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        if self.model.training:
            self._metrics["train"]["gkd/on_policy"].append(float(self.on_policy))
        if not self.on_policy:
            self._set_apart("completions/")
        elif self.held_out_rewards:
            self._log_rewards(inputs, output)
        return output

    def compute_loss(self, *args, **kwargs):
        loss = super().compute_loss(*args, **kwargs)
        if not self.on_policy:
            self._set_apart("entropy")
        return loss

    def _set_apart(self, prefix: str) -> None:
        """The last value of each metric with this prefix is of the teacher's rollouts."""
        metrics = self._metrics["train"]
        for name in [name for name in metrics if name.startswith(prefix)]:
            metrics[f"off_policy/{name}"].append(metrics[name].pop())
            if not metrics[name]:
                del metrics[name]

    def _log_rewards(self, inputs: list[dict[str, Any]], output: dict[str, torch.Tensor]) -> None:
        """The verifier's word on the student's rollouts, as GRPO logs it. It does not enter the loss."""
        kept = zip(output["completion_ids"].tolist(), output["completion_mask"].tolist(), strict=True)
        ids = [[token for token, valid in zip(row, mask, strict=True) if valid] for row, mask in kept]
        texts = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        if is_conversational(inputs[0]):
            texts = [[{"role": "assistant", "content": text}] for text in texts]
        columns = {name: [row[name] for row in inputs] for name in inputs[0] if name != "prompt"}
        prompts = [row["prompt"] for row in inputs]
        verifier = self.summed_rewards()
        totals = verifier(completion_ids=ids, prompts=prompts, completions=texts, **columns)
        totals = self.accelerator.gather(torch.tensor(totals, device=self.accelerator.device))
        metrics = self._metrics["train"]
        for name, value in ({"reward": totals.mean().item()} | verifier.metrics(self.accelerator)).items():
            metrics[name].append(value)
        stop_if_failing(self.verifiers, self.accelerator)

    def _with_rollouts(self, dataset: Dataset) -> Dataset:
        """The rows whose prompt has a rollout. With `teacher_rollouts: verified` those without a verified one are left out."""
        found = []
        for start in tqdm(range(0, len(dataset), 256), desc="Rollouts of the prompts", disable=len(dataset) < 5000):
            prompts = self._tokenize_prompts(dataset[start : start + 256]["prompt"])[0]
            found += [start + place for place, ids in enumerate(prompts) if ids in self.bank]
        missing = len(dataset) - len(found)
        data = self.bank.data
        if missing and len(data.rollouts) == data.total or not found:
            raise ValueError(
                f"{data.folder} holds no rollout of {missing} of the {len(dataset)} training prompts. `sgopd "
                f"teacher-rollouts --config RECIPE --prompts all --teacher_bank {data.folder}` generates them."
            )
        if missing:
            self.accelerator.print(f"{missing} of {len(dataset)} prompts without a verified rollout are left out.")
        return dataset.select(found) if missing else dataset


def build(script_args: Any, args: Any, parts: Any) -> Trainer:
    """The trainer of `trainer: gkd`.

    Raises:
        ValueError: as `check_tokenizers`, `load_bank_data` and `check_teacher`, and when the bank lacks training prompts.
    """
    teacher = args.teacher_model_name_or_path = resolve(args.teacher_model_name_or_path)
    check_tokenizers(parts.tokenizer, None, "teacher", teacher, args.teacher_model_revision, args)
    bank = None
    if args.lmbda < 1:
        with parts.main_process_first():
            data = load_bank_data(args.teacher_bank, parts.tokenizer, script_args.teacher_rollouts or "all")
            check_teacher(
                args.teacher_bank, identity_entry(teacher, args.teacher_model_revision, None, weights_hash(teacher))
            )
            bank = RolloutsOfPrompts(data)
        parts.say(f"{1 - args.lmbda:.0%} of the batches are {data}.")
    return GKDTrainer(
        model=parts.model,
        teacher_model=teacher,
        args=args,
        train_dataset=parts.short_prompts(args),
        eval_dataset=parts.eval_dataset,
        processing_class=parts.tokenizer,
        callbacks=parts.callbacks,
        quantization_config=parts.quantization_config,
        peft_config=parts.peft_config,
        bank=bank,
        held_out_rewards=parts.reward_funcs,
    )
