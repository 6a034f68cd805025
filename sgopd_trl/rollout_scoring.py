"""Scores one generation batch under student, teacher and reference, each only where it is needed."""

from typing import TYPE_CHECKING, Any

import torch
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.utils import use_adapter

from .advantages import reverse_kl_advantage
from .scoring import LogpsFunction, score_rollouts
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

    def score(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Log-probabilities, in nats at the sampling temperature, of every completion token.

        Args:
            batch: what TRL's `_generate_and_score_completions` returns.

        Returns:
            `student_logps`, `teacher_logps` and `reference_logps`, each (B, L), and `gate_coin` (B, L) for the random
            gate. Where no token of a sequence is extrapolated, the reference is not asked and stands at the teacher's.

        Raises:
            ValueError: when the teacher cannot score a token, naming the prompt and the position.
        """
        trainer = self.trainer
        mask = valid_tokens(batch)
        rows = mask.bool().any(1)
        student = self._student_logps(batch, rows)
        with trainer.timed("teacher"):
            self._check_vocabulary("teacher", trainer.teacher.vocab_size, batch, mask)
            teacher = self._score(trainer.teacher.logps, batch, rows)
            self._check_finite("teacher", teacher, batch, mask)
        scores = {"student_logps": student, "teacher_logps": teacher, "reference_logps": teacher}
        if trainer.router.gate == "random":
            scores["gate_coin"] = self._gate_coin(mask)
        if trainer.router.uses_reference:
            a1, a2 = batch["advantages"], reverse_kl_advantage(teacher, student)
            # A coin may call any token consensus; the other gates are known before the reference is asked.
            any_token = torch.ones_like(mask, dtype=torch.bool)
            consensus = any_token if "gate_coin" in scores else trainer.router.consensus(a1, a2)
            used = ((trainer.router.strengths(a1, a2, consensus) != 1) & mask.bool()).any(1)
            with trainer.timed("reference"):
                reference, scored = self._reference_logps(batch, used, rows)
                self._check_finite("reference", reference, batch, mask * used.unsqueeze(1))
            scores["reference_logps"] = torch.where(used.unsqueeze(1), reference, teacher)
            asked, total = trainer.accelerator.reduce(torch.stack([scored.sum(), rows.sum()]), reduction="sum").tolist()
            trainer.log_value("reference/saved_share", 1 - asked / max(total, 1))
        return scores

    def _score(self, logps_function: LogpsFunction, batch: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
        trainer, args = self.trainer, self.trainer.args
        width = batch["prompt_ids"].size(1) + batch["completion_ids"].size(1)
        budget = args.scoring_tokens_per_batch or args.per_device_train_batch_size * width
        return score_rollouts(logps_function, batch, rows, budget, trainer.accelerator)

    def _student_logps(self, batch: dict[str, Any], rows: torch.Tensor) -> torch.Tensor:
        trainer = self.trainer
        if batch.get("old_per_token_logps") is not None:
            return batch["old_per_token_logps"]
        kept = batch.get("sampling_per_token_logps") if trainer.keeps_sampling_logps else None
        if self._everywhere(kept is not None):
            return kept
        with trainer.timed("old"), self._no_checkpointing():
            return self._score(self._policy_logps, batch, rows)

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
            self._check_vocabulary("reference", trainer.reference.vocab_size, batch, used.unsqueeze(1))
            return self._score(trainer.reference.logps, batch, used), used
        if batch.get("ref_per_token_logps") is not None:
            return batch["ref_per_token_logps"], rows  # TRL's KL term has the same reference
        model = trainer.accelerator.unwrap_model(trainer.model)
        adapter = "ref" if "ref" in model.peft_config else None
        with use_adapter(model, adapter), self._no_checkpointing():
            return self._score(self._policy_logps, batch, used), used

    def _policy_logps(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, length: int) -> torch.Tensor:
        return self.trainer.per_token_logps(self.trainer.model, input_ids, attention_mask, length)

    def _no_checkpointing(self):
        return disable_gradient_checkpointing(self.trainer.model, self.trainer.args.gradient_checkpointing_kwargs)

    def _gate_coin(self, mask: torch.Tensor) -> torch.Tensor:
        """A coin a token from the seed, the step and the row's place in the global batch: the same however it is cut."""
        trainer = self.trainer
        first_row = trainer.accelerator.process_index * mask.size(0)
        coins = []
        for row in range(first_row, first_row + mask.size(0)):
            seed = rollout_seed(trainer.args.seed, "gate", trainer.state.global_step, row)
            coins.append(torch.rand(mask.size(1), generator=torch.Generator().manual_seed(seed)))
        return torch.stack(coins).to(mask.device)

    def _check_vocabulary(self, role: str, size: int, batch: dict[str, Any], mask: torch.Tensor) -> None:
        unknown = (batch["completion_ids"] >= size) & (mask * batch["completion_mask"]).bool()
        if unknown.any():
            raise ValueError(
                f"The student sampled token {int(batch['completion_ids'][unknown][0])}, but the {role}'s embedding "
                f"has {size} rows. Set `generation_kwargs={{'suppress_tokens': [...]}}` to keep the student from "
                "sampling ids beyond its tokenizer."
            )

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
