"""The teacher's rollouts of given prompts: from the bank, or generated, verified and put there."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list, gather_object

from .overlap import TeacherCall
from .rollout_bank import BankRollout, RolloutBank, identity_hash, tokenizer_hash
from .seeded_sampling import rollout_seed
from .teacher_sampling import prompt_key
from .teachers import SamplingSettings
from .verifier_identity import verifier_identity


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


@dataclass(frozen=True)
class TeacherPrompt:
    """A prompt that wants one of the teacher's rollouts: the dataset's row, and which of its rollouts."""

    row: dict[str, Any]
    number: int = 0


@dataclass
class PendingRollouts:
    """Rollouts that the teacher is asked for.

    Attributes:
        prompts, prompt_ids, found: of all prompts; what the bank held, or `None`. missing: indices of the others.
        mine, seeds: those this process asks for. share: how many each process judges. call: the teacher's.
    """

    prompts: list[TeacherPrompt]
    prompt_ids: list[list[int]]
    found: list[BankRollout | None]
    missing: list[int]
    mine: list[int]
    seeds: list[int]
    share: int
    call: TeacherCall


class TeacherRollouts:
    """Asks a trainer's teacher for rollouts, each once.

    Raises:
        ValueError: when the bank was filled by another teacher, with other sampling settings or another verifier.
    """

    def __init__(self, trainer: "SGOPDTrainer"):
        self.trainer = trainer
        args = trainer.args
        self.max_completion_length = args.teacher_max_completion_length or args.max_completion_length
        self.settings = SamplingSettings(
            args.teacher_temperature, args.teacher_top_p, args.teacher_top_k, self.max_completion_length
        )
        self.judged: list[list[int]] | None = None  # set while TRL decodes and judges the teacher's rollouts
        identity = self.identity()
        self.folder = args.teacher_bank or os.path.join(args.output_dir, f"teacher_rollouts-{identity_hash(identity)}")
        # The main process alone reads and writes; the others hear from it.
        self.bank = RolloutBank(self.folder, identity) if trainer.accelerator.is_main_process else None

    def identity(self) -> dict[str, Any]:
        """What the rollouts and their verdicts depend on, as JSON values."""
        tokenizer = {"tokenizer_hash": tokenizer_hash(self.trainer._tokenizer)}
        return {
            "teachers": {name: entry | tokenizer for name, entry in self.trainer.teacher.identity().items()},
            "sampling": asdict(self.settings),
            "verifier": verifier_identity(self.trainer),
        }

    def ask(self, prompts: Sequence[TeacherPrompt]) -> PendingRollouts:
        """Looks the prompts up in the bank, and has the teacher generate what it does not hold. Collective."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        rows = [prompt.row for prompt in prompts]
        names = [trainer.teacher_name(row) for row in rows]
        prompt_ids = trainer._tokenize_prompts([row["prompt"] for row in rows])[0] if rows else []
        found: list[BankRollout | None] = [None] * len(rows)
        if accelerator.is_main_process and rows:
            self.bank.refresh()
            found = [
                self.bank.get(ids, prompt.number, name, self._answer(prompt.row))
                for ids, prompt, name in zip(prompt_ids, prompts, names, strict=True)
            ]
        (found,) = broadcast_object_list([found])
        missing = [index for index, rollout in enumerate(found) if rollout is None]
        # Every process judges as many rollouts, for TRL gathers the rewards; what is repeated to get there is dropped.
        share = -(-len(missing) // accelerator.num_processes)
        places = [accelerator.process_index * share + i for i in range(share)]
        mine = [missing[place] for place in places if place < len(missing)]
        seeds = [rollout_seed("teacher", prompt_ids[i], prompts[i].number) for i in mine]
        call = TeacherCall(
            lambda: trainer.teacher.generate(
                [prompt_ids[i] for i in mine], seeds, self.settings, names=[names[i] for i in mine]
            ),
            background=trainer.teacher.runs_elsewhere,
        )
        return PendingRollouts(list(prompts), prompt_ids, found, missing, mine, seeds, share, call)

    def collect(self, pending: PendingRollouts) -> list[BankRollout]:
        """The rollouts of `ask`'s prompts, in order: generated ones judged and stored. Collective."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        rollouts = list(pending.found)
        if not pending.missing:
            return rollouts
        with trainer.step_log.teacher("teacher_rollouts", pending.call):
            completion_ids = pending.call.result(accelerator)
        judged = gather_object(self._judge(pending, completion_ids))
        stored = self.bank.add(judged) if accelerator.is_main_process else None
        (stored,) = broadcast_object_list([stored])  # where another run was faster, its rollouts: all runs agree
        for index, rollout in zip(pending.missing, stored, strict=True):
            rollouts[index] = rollout
        return rollouts

    def _judge(self, pending: PendingRollouts, completion_ids: list[list[int]]) -> list[BankRollout]:
        """This process's rollouts, decoded and judged by TRL's own methods."""
        trainer, args = self.trainer, self.trainer.args
        real = len(pending.mine)
        mine = (pending.mine or pending.missing[:1]) * pending.share  # others stand in for what this process lacks
        mine = pending.mine + mine[: pending.share - real]
        rows = [pending.prompts[i].row for i in mine]
        prompts = [row["prompt"] for row in rows]
        self.judged = completion_ids + [[trainer._tokenizer.eos_token_id]] * (pending.share - real)
        try:
            with trainer.step_log.set_aside():
                prompt_ids, completion_ids, _, completions, *_ = trainer._generate(prompts)
                rewards = trainer._calculate_rewards(rows, prompts, completions, completion_ids)
        finally:
            self.judged = None
        first = trainer.accelerator.process_index * pending.share
        totals = (rewards * trainer.reward_weights.to(rewards.device)).nansum(1)[first : first + real].tolist()
        return [
            BankRollout(
                prompt=prompt_key(prompts[i]),
                prompt_ids=prompt_ids[i],
                number=pending.prompts[mine[i]].number,
                teacher=trainer.teacher_name(rows[i]),
                completion=trainer._tokenizer.decode(completion_ids[i], skip_special_tokens=True),
                completion_ids=completion_ids[i],
                correct=totals[i] > args.correct_reward_threshold,
                reward=totals[i],
                truncated=trainer.is_truncated(completion_ids[i], self.max_completion_length),
                answer=self._answer(rows[i]),
                seed=pending.seeds[i],
            )
            for i in range(real)
        ]

    def _answer(self, row: dict[str, Any]) -> str | None:
        column = self.trainer.args.answer_column
        return None if column is None or row.get(column) is None else str(row[column])
