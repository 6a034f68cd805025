"""Phased teacher sampling inside a trainer: which prompts the teacher answers at each step, and who trains on it."""

from collections.abc import Collection
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from .rollout_bank import BankRollout
from .schedule import phase_end, teacher_alpha, teacher_prompt_count
from .seeded_sampling import rollout_seed
from .teacher_rollouts import PendingRollouts, TeacherPrompt, TeacherRollouts
from .teacher_sampling import draw_teacher_prompts, prompt_key, teacher_batches


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


class PhasedTeacherSampling:
    """The sample-level half of SG-OPD (Section 4.1) for one trainer."""

    def __init__(self, trainer: "SGOPDTrainer"):
        self.trainer = trainer
        args = trainer.args
        self.enabled = teacher_sampling_enabled(args)
        # Optimizer steps that share one generation batch
        self.windows = args.steps_per_generation // args.gradient_accumulation_steps
        self.rollouts = TeacherRollouts(trainer) if self.enabled else None
        self._pending: tuple[PendingRollouts, list[int]] | None = None
        self._rollouts: list[list[BankRollout]] = [[] for _ in range(self.windows)]

    def check_checkpointing(self) -> None:
        """The anchor is a second forward pass before the backward pass, which reentrant checkpointing cannot take.

        Raises:
            ValueError: for several processes with `use_reentrant`, where gradients would be reduced twice.
        """
        args = self.trainer.args
        reentrant = args.gradient_checkpointing and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant")
        if self.enabled and reentrant and self.trainer.accelerator.num_processes > 1:
            raise ValueError(
                "Phased teacher sampling on several processes does not work with reentrant gradient checkpointing "
                f"(`gradient_checkpointing_kwargs` is {args.gradient_checkpointing_kwargs}; TRL sets it for PEFT under "
                "ZeRO-3). Set `gradient_checkpointing=False`, choose ZeRO-2, or set `teacher_sampling_enable=False`."
            )

    def alpha(self, step: int) -> float:
        """alpha(t) of optimizer step `step`, counted from 1, Eq. (3); 0 without PTS."""
        if not self.enabled:
            return 0.0
        args, total = self.trainer.args, self.trainer.state.max_steps
        return teacher_alpha(
            step,
            phase_end(args.teacher_sampling_phase1_end_frac, total),
            phase_end(args.teacher_sampling_phase2_end_frac, total),
            args.teacher_sft_alpha_0,
            args.teacher_sft_alpha_end,
        )

    def draw(self, global_step: int, student_prompts: Collection[str]) -> list[list[TeacherPrompt]]:
        """B_T of each optimizer step that the generation batch after `global_step` serves (Algorithm 1).

        Depends on the seed and the step alone.

        Args:
            global_step: finished optimizer steps. student_prompts: `prompt_key` of each prompt of B_S.
        """
        trainer, args = self.trainer, self.trainer.args
        generation = global_step // (self.windows * trainer.num_iterations)
        count_s = Fraction(args.generation_batch_size, trainer.num_generations * self.windows)
        taken = set(student_prompts)
        windows: list[list[TeacherPrompt]] = []
        for window in range(self.windows):
            if self.alpha(global_step + 1 + window) == 0:
                windows.append([])
                continue
            ordinal = generation * self.windows + window + 1
            count = teacher_prompt_count(ordinal, count_s, args.teacher_sampling_ratio)
            rows = draw_teacher_prompts(trainer.train_dataset, count, taken, args.seed, ordinal)
            taken.update(prompt_key(row["prompt"]) for row in rows)
            numbers = [rollout_seed(args.seed, "number", ordinal, place) for place in range(count)]
            windows.append(
                [TeacherPrompt(row, n % args.teacher_rollouts_per_prompt) for row, n in zip(rows, numbers, strict=True)]
            )
        return windows

    def begin(self, inputs: list[dict[str, Any]]) -> None:
        """Draws the teacher's prompts, looks into the bank, and asks the teacher for the rollouts that are not there.

        Args:
            inputs: this process's rows of B_S.
        """
        if not self.enabled:
            return
        self._rollouts = [[] for _ in range(self.windows)]
        step = self.trainer.state.global_step
        active = any(self.alpha(step + 1 + window) > 0 for window in range(self.windows))
        keys = set(gather_object([prompt_key(row["prompt"]) for row in inputs])) if active else set()
        windows = self.draw(step, keys)
        prompts = [prompt for window in windows for prompt in window]
        self._pending = self.rollouts.ask(prompts), [n for n, window in enumerate(windows) for _ in window]

    def finish(self) -> None:
        """Waits for the rollouts that `begin` asked for. Every process ends up with all of them."""
        if not self.enabled:
            return
        pending, window_of = self._pending
        self._pending = None
        rollouts = self.rollouts.collect(pending)
        used = [r.correct or not self.trainer.args.teacher_sampling_filter_correct for r in rollouts]
        for rollout, window, is_used in zip(rollouts, window_of, used, strict=True):
            if is_used:
                self._rollouts[window].append(rollout)
        tokens = sum(len(rollout.completion_ids) for window in self._rollouts for rollout in window)
        for name, total in (
            ("asked", pending.asked),
            ("from_bank", len(rollouts) - pending.asked),
            ("verified", sum(rollout.correct for rollout in rollouts)),
            ("tokens", tokens),
        ):
            self.trainer.step_log.value(f"teacher_sampling/{name}", total / self.windows)

    def attach(self, micro_batches: list[dict[str, Any]], window: int) -> list[dict[str, Any]]:
        """The micro-batches of one optimizer step, each with this process's share of its teacher rollouts, or `None`."""
        trainer = self.trainer
        batches = teacher_batches(
            self._rollouts[window],
            micro_steps=len(micro_batches),
            num_processes=trainer.accelerator.num_processes,
            process_index=trainer.accelerator.process_index,
            reduction=trainer.args.teacher_sft_reduction,
            pad_token_id=trainer.processing_class.pad_token_id,
            device=trainer.accelerator.device,
        )
        return [batch | {"teacher": teacher} for batch, teacher in zip(micro_batches, batches, strict=True)]


def teacher_sampling_enabled(args) -> bool:
    """Whether a run's settings ever ask the teacher for a rollout."""
    return args.teacher_sampling_enable and args.teacher_sampling_ratio > 0 and args.teacher_sft_alpha_0 > 0
