"""Phased teacher sampling inside a trainer: asks the teacher for rollouts, verifies them, hands them to the micro-steps."""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from .schedule import phase_end, teacher_alpha, teacher_prompt_count
from .seeded_sampling import rollout_seed
from .teacher_sampling import TeacherRollout, draw_teacher_prompts, prompt_key, teacher_batches


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
        self.seeds: list[int] | None = None  # set while the teacher generates
        self.max_completion_length = args.teacher_max_completion_length or args.max_completion_length
        self._rollouts: list[list[TeacherRollout]] = [[] for _ in range(self.windows)]

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

    def sample(self, inputs: list[dict[str, Any]]) -> None:
        """Draws B_T for each optimizer step of a generation batch and has the teacher answer it (Algorithm 1).

        Every process ends up with the same rollouts, and with all of them.

        Args:
            inputs: this process's rows of B_S.
        """
        if not self.enabled:
            return
        trainer, args, accelerator = self.trainer, self.trainer.args, self.trainer.accelerator
        self._rollouts = [[] for _ in range(self.windows)]
        steps = range(trainer.state.global_step + 1, trainer.state.global_step + 1 + self.windows)
        active = [window for window, step in enumerate(steps) if self.alpha(step) > 0]
        generation = trainer.state.global_step // (self.windows * trainer.num_iterations)
        student_prompts = Fraction(args.generation_batch_size, trainer.num_generations * self.windows)
        taken = set(gather_object([prompt_key(row["prompt"]) for row in inputs])) if active else set()
        rows, seeds, window_of = [], [], []
        for window in active:
            ordinal = generation * self.windows + window + 1
            count = teacher_prompt_count(ordinal, student_prompts, args.teacher_sampling_ratio)
            drawn = draw_teacher_prompts(trainer.train_dataset, count, taken, args.seed, ordinal)
            taken.update(prompt_key(row["prompt"]) for row in drawn)
            rows += drawn
            seeds += [rollout_seed(args.seed, "teacher", ordinal, number) for number in range(count)]
            window_of += [window] * count

        verified = used = 0
        if rows:
            # Every process generates for as many prompts; what it repeats to get there is dropped again.
            share = -(-len(rows) // accelerator.num_processes)
            numbers = [accelerator.process_index * share + i for i in range(share)]
            mine = [number % len(rows) for number in numbers]
            generated = self._generate([rows[i] for i in mine], [seeds[i] for i in mine])
            for number, rollout in gather_object(list(zip(numbers, generated, strict=True))):
                if number >= len(rows):
                    continue
                verified += rollout.correct
                if rollout.correct or not args.teacher_sampling_filter_correct:
                    used += len(rollout.completion_ids)
                    self._rollouts[window_of[number]].append(rollout)
        trainer.log_value("teacher_sampling/asked", len(rows) / self.windows)
        trainer.log_value("teacher_sampling/verified", verified / self.windows)
        trainer.log_value("teacher_sampling/tokens", used / self.windows)

    def _generate(self, rows: list[dict[str, Any]], seeds: list[int]) -> list[TeacherRollout]:
        """One judged rollout of the teacher a row, through TRL's own tokenizing, decoding and rewards."""
        trainer = self.trainer
        prompts = [row["prompt"] for row in rows]
        self.seeds = seeds
        try:
            with trainer.logs_set_aside():
                prompt_ids, completion_ids, _, completions, *_ = trainer._generate(prompts)
                rewards = trainer._calculate_rewards(rows, prompts, completions, completion_ids)
        finally:
            self.seeds = None
        first = trainer.accelerator.process_index * len(rows)
        total = (rewards * trainer.reward_weights.to(rewards.device)).nansum(1)[first : first + len(rows)]
        correct = (total > trainer.args.correct_reward_threshold).tolist()
        return [TeacherRollout(*rollout) for rollout in zip(prompt_ids, completion_ids, correct, strict=True)]

    def completions(self, prompt_ids: list[list[int]]) -> list[list[int]]:
        """The teacher's completions of the prompts `sample` is waiting for, with the teacher's own sampling settings."""
        args = self.trainer.args
        return self.trainer.teacher.generate(
            prompt_ids,
            self.seeds,
            max_new_tokens=self.max_completion_length,
            temperature=args.teacher_temperature,
            top_p=args.teacher_top_p,
            top_k=args.teacher_top_k,
        )

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
