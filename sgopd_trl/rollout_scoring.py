"""Scores one generation batch under student, teacher and reference, each only where it is needed."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from .overlap import TeacherCall
from .scoring import LogpsFunction, score_sequences, stack_scores
from .seeded_sampling import rollout_seed


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


def valid_tokens(batch: dict[str, Any]) -> torch.Tensor:
    """Mask (B, L) of the completion tokens the student wrote: neither padding nor a tool's."""
    return batch["completion_mask"] * batch.get("tool_mask", 1)


class RolloutScorer:
    """Adds the log-probabilities that SG-OPD needs to a generation batch of its trainer."""

    def __init__(self, trainer: "SGOPDTrainer"):
        self.trainer = trainer
        self._teacher_call: TeacherCall | None = None

    def ask_ahead(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> None:
        """Has a teacher that runs elsewhere begin to score the student's rollouts, while the trainer goes on.

        Args:
            prompt_ids, completion_ids: B lists of token ids.
        """
        trainer = self.trainer
        if not trainer.teacher.runs_elsewhere:
            return
        if trainer.mask_truncated_completions:  # nothing of them is trained on
            ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
            completion_ids = [ids if ids[-1] in ends else [] for ids in completion_ids]
        self._teacher_call = self._call_teacher(prompt_ids, completion_ids)

    def _call_teacher(self, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> TeacherCall:
        trainer, names = self.trainer, self.trainer.teacher_names
        return TeacherCall(
            lambda: trainer.teacher.score(prompt_ids, completion_ids, temperature=trainer.temperature, names=names),
            background=trainer.teacher.runs_elsewhere,
        )

    def score(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Log-probabilities, in nats at the sampling temperature, of every completion token.

        Student and reference are scored here while a teacher that runs elsewhere is still at work.

        Args:
            batch: what TRL's `_generate_and_score_completions` returns.

        Returns:
            `student_logps`, `teacher_logps` and `reference_logps`, each (B, L), `gate_coin` (B, L) for the random gate, and
            `teacher_index` (B,), the row's teacher among the run's, for a loss over the vocabulary. Where no token of a
            sequence can be extrapolated, or the sampled token's value is not what is extrapolated (full-vocabulary reverse
            KL), the reference is not asked and stands at the teacher's.

        Raises:
            ValueError: when a model cannot score a token, naming the prompt and the position.
            TeacherError: when the teacher does not answer.
        """
        trainer = self.trainer
        mask = valid_tokens(batch)
        rows = mask.bool().any(1)
        scores = {"student_logps": self._student_logps(batch, rows)}
        if trainer.full_vocabulary.enabled:
            scores["teacher_index"] = trainer.full_vocabulary.teacher_index(trainer.teacher_names, mask.device)
        coin = self._gate_coin(mask) if trainer.router.gate == "random" else None
        used = rows & trainer.router.may_extrapolate(batch.get("gate_advantages", batch["advantages"]))
        asks_reference = trainer.router.uses_reference and not trainer.full_vocabulary.takes_all_extrapolated
        if asks_reference:
            with trainer.step_log.timed("reference"):
                reference, scored = self._reference_logps(batch, used, rows)
                self._check_finite("reference", reference, batch, mask * used.unsqueeze(1))
            asked, total = trainer.accelerator.reduce(torch.stack([scored.sum(), rows.sum()]), reduction="sum").tolist()
            trainer.step_log.value("reference/saved_share", 1 - asked / max(total, 1))
        call = self._teacher_call or self._call_teacher(*_as_lists(batch, rows))
        self._teacher_call = None
        with trainer.step_log.teacher("teacher", call):
            answers = call.result(trainer.accelerator)
        teacher = stack_scores(answers, batch["completion_ids"]) * batch["completion_mask"]
        self._check_finite("teacher", teacher, batch, mask)
        scores["teacher_logps"] = scores["reference_logps"] = teacher
        if asks_reference:
            scores["reference_logps"] = torch.where(used.unsqueeze(1), reference, teacher)
        return scores if coin is None else scores | {"gate_coin": coin}

    def in_batches(
        self,
        logps_function: LogpsFunction,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
    ) -> list[torch.Tensor]:
        """`score_sequences` with the run's token budget: by default the tokens of one training micro-batch."""
        trainer, args = self.trainer, self.trainer.args
        width = max(map(len, prompt_ids), default=0) + max(map(len, completion_ids), default=0)
        budget = args.scoring_tokens_per_batch or args.per_device_train_batch_size * width
        pad_token_id = trainer._tokenizer.pad_token_id
        return score_sequences(logps_function, prompt_ids, completion_ids, budget, trainer.accelerator, pad_token_id)

    def _score_rows(self, model: Any, batch: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
        """(B, L) log-probabilities of the chosen rows under a `FrozenModel`, or under the policy where it is `None`."""
        prompts, completions = _as_lists(batch, rows)
        if model is not None:
            scored = model.score(prompts, completions)
        else:
            with disable_gradient_checkpointing(self.trainer.model, self.trainer.args.gradient_checkpointing_kwargs):
                scored = self.in_batches(
                    lambda *inputs: self.trainer.per_token_logps(self.trainer.model, *inputs), prompts, completions
                )
        return stack_scores(scored, batch["completion_ids"])

    def _student_logps(self, batch: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
        trainer = self.trainer
        if batch.get("old_per_token_logps") is not None:
            return batch["old_per_token_logps"]
        kept = batch.get("sampling_per_token_logps") if trainer.keeps_sampling_logps else None
        if self._everywhere(kept is not None):
            return kept
        with trainer.step_log.timed("old"):
            return self._score_rows(None, batch, rows)

    def _everywhere(self, holds: bool) -> bool:
        """Whether something holds on every process: they must decide alike which forward passes they make."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return holds
        return bool(accelerator.gather(torch.tensor([holds], device=accelerator.device)).all())

    def _reference_logps(
        self, batch: dict[str, Any], used: torch.Tensor, rows: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the reference on the rows `used`, and the rows that were really scored for them."""
        trainer = self.trainer
        if trainer.reference is not None:
            return self._score_rows(trainer.reference, batch, used), used
        if batch.get("ref_per_token_logps") is not None:
            return batch["ref_per_token_logps"], rows  # TRL's KL term has the same reference
        with self.student_as_reference():
            return self._score_rows(None, batch, used), used

    def student_as_reference(self) -> AbstractContextManager:
        """Under PEFT the student in its initial state: without its adapter, or with that which it came with."""
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        return use_adapter(model, "ref" if "ref" in model.peft_config else None)

    def _gate_coin(self, mask: torch.Tensor) -> torch.Tensor:
        """A coin a token from the seed, the step and the row's place in the global batch: the same however it is cut."""
        trainer = self.trainer
        first_row = trainer.accelerator.process_index * mask.size(0)
        coins = []
        for row in range(first_row, first_row + mask.size(0)):
            seed = rollout_seed(trainer.args.seed, "gate", trainer.state.global_step, row)
            coins.append(torch.rand(mask.size(1), generator=torch.Generator().manual_seed(seed)))
        return torch.stack(coins).to(mask.device)

    def _check_finite(self, role: str, logps: torch.Tensor, batch: dict[str, Any], mask: torch.Tensor) -> None:
        bad = (~torch.isfinite(logps) & mask.bool()).nonzero()
        if len(bad):
            row, position = bad[0].tolist()
            token = int(batch["completion_ids"][row, position])
            decode = self.trainer.processing_class.decode
            prompt = decode(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()])
            raise ValueError(
                f"The {role}'s log-probability of {len(bad)} tokens is not finite; the first is "
                f"{logps[row, position].item()} at completion position {position}, token {token} "
                f"({decode([token])!r}), of the prompt {prompt!r}. Check the {role}'s weights and dtype (float16 "
                "overflows; use bfloat16 or float32)."
            )


def _as_lists(batch: dict[str, Any], rows: torch.Tensor) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions without their padding; rows that are not wanted get an empty completion."""
    prompts, completions = (
        [ids[kept.bool()].tolist() for ids, kept in zip(batch[f"{part}_ids"], batch[f"{part}_mask"], strict=True)]
        for part in ("prompt", "completion")
    )
    return prompts, [ids if wanted else [] for ids, wanted in zip(completions, rows.tolist(), strict=True)]
