"""The teacher's rollouts of given prompts: from the bank, or generated, verified and put there."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

from .main_process import on_main_process
from .overlap import TeacherCall
from .rollout_bank import BankRollout, RolloutBank, check_identity, identity_hash, rollout_key, tokenizer_hash
from .seeded_sampling import rollout_seed
from .teacher_sampling import prompt_key
from .teachers import SamplingSettings
from .unverified_rollouts import UnverifiedRollouts
from .verifier_identity import verdict_rule, verifier_identity


if TYPE_CHECKING:
    from .config import SGOPDConfig
    from .trainer import SGOPDTrainer


@dataclass(frozen=True)
class TeacherPrompt:
    """A prompt that wants one of the teacher's rollouts: the dataset's row, and which of its rollouts."""

    row: dict[str, Any]
    number: int = 0


@dataclass
class PendingRollouts:
    """Rollouts that a verdict is wanted of.

    Attributes:
        prompts, prompt_ids, found: of all prompts; what the bank held with its verdict, or `None`.
        written: of all prompts; token ids of rollouts that were there without a verdict on this answer, or `None`.
        missing: indices of those to be judged. mine: those this process judges. share: how many each process judges.
        call: of the teacher, for those of `mine` that are not written; `None` where none is missing anywhere.
    """

    prompts: list[TeacherPrompt]
    prompt_ids: list[list[int]]
    found: list[BankRollout | None]
    written: list[list[int] | None]
    missing: list[int]
    mine: list[int]
    share: int
    call: TeacherCall[list[list[int]]] | None

    @property
    def asked(self) -> int:
        """How many the teacher is asked for, by all processes."""
        return sum(self.written[index] is None for index in self.missing)


class TeacherRollouts:
    """Asks a trainer's teacher for rollouts, each once.

    Raises:
        ValueError: when the bank was filled by another teacher, with other sampling settings or another verifier.
    """

    def __init__(self, trainer: "SGOPDTrainer"):
        self.trainer = trainer
        args = trainer.args
        self.settings = sampling_settings(args)
        self.max_completion_length = self.settings.max_new_tokens
        self.judged: list[list[int]] | None = None  # set while TRL decodes and judges the teacher's rollouts
        identity = self.identity()
        # Names that begin with an underscore are left out when the output folder is pushed to the Hub
        own = os.path.join(args.output_dir, f"_teacher_rollouts-{identity_hash(identity)}")
        self.folder = args.teacher_bank or own
        self.bank: RolloutBank | None = None  # the main process alone reads and writes; the others hear from it
        on_main_process(trainer.accelerator, lambda: self._open(identity))
        self.unverified = UnverifiedRollouts(self.folder)

    def _open(self, identity: dict[str, Any]) -> None:
        self.bank = RolloutBank(self.folder, identity)

    def identity(self) -> dict[str, Any]:
        """What the rollouts and their verdicts depend on, as JSON values."""
        trainer = self.trainer
        tokenizer = {"tokenizer_hash": tokenizer_hash(trainer._tokenizer)}
        return {
            "teachers": {name: entry | tokenizer for name, entry in trainer.teacher.identity().items()},
            "sampling": asdict(self.settings) | {"student_eos_token_ids": sorted(trainer.eos_token_ids)},
            "verifier": verifier_identity(trainer),
        }

    def ask(self, prompts: Sequence[TeacherPrompt]) -> PendingRollouts:
        """Looks the prompts up in the bank, and has the teacher generate what it does not hold. Collective."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        rows = [prompt.row for prompt in prompts]
        prompt_ids = trainer._tokenize_prompts([row["prompt"] for row in rows])[0] if rows else []
        pending = PendingRollouts(list(prompts), prompt_ids, [], [], [], [], 0, None)
        if not rows:
            return pending
        looked_up = on_main_process(accelerator, lambda: self._look_up(pending))
        pending.found, pending.written = map(list, zip(*looked_up, strict=True))
        missing = pending.missing = [index for index, rollout in enumerate(pending.found) if rollout is None]
        # Every process judges as many rollouts, for TRL gathers the rewards; what is repeated to get there is dropped.
        share = pending.share = -(-len(missing) // accelerator.num_processes)
        places = [accelerator.process_index * share + i for i in range(share)]
        pending.mine = [missing[place] for place in places if place < len(missing)]
        if pending.asked > 0:
            pending.call = TeacherCall(lambda: self._generate(pending), background=trainer.teacher.runs_elsewhere)
        return pending

    def _look_up(self, pending: PendingRollouts) -> list[tuple[BankRollout | None, list[int] | None]]:
        """Each prompt's rollout with its verdict, and without one: unverified, or judged against another answer."""
        self.bank.refresh()
        answers = []
        for index, prompt in enumerate(pending.prompts):
            key = self._key(pending, index)
            rollout = self.bank.get(key)
            if rollout is not None and rollout.answer != self._answer(prompt.row):
                answers.append((None, rollout.completion_ids))
            else:
                answers.append((rollout, self.unverified.get(key) if rollout is None else None))
        return answers

    def _generate(self, pending: PendingRollouts) -> list[list[int]]:
        """The teacher's rollouts of this process's prompts, each kept as soon as it is finished."""
        asked = [index for index in pending.mine if pending.written[index] is None]
        keys = [self._key(pending, index) for index in asked]
        kept: set[int] = set()

        def finished(place: int, completion_ids: list[int]) -> None:
            self.unverified.put(keys[place], completion_ids)
            kept.add(place)

        rollouts = self.trainer.teacher.generate(
            [pending.prompt_ids[index] for index in asked],
            [self._seed(pending, index) for index in asked],
            self.settings,
            names=[self.trainer.teacher_name(pending.prompts[index].row) for index in asked],
            finished=finished,
        )
        for place, completion_ids in enumerate(rollouts):
            if place not in kept:
                finished(place, completion_ids)
        return rollouts

    def collect(self, pending: PendingRollouts) -> list[BankRollout]:
        """The rollouts of `ask`'s prompts, in order: new ones judged and stored. Collective."""
        accelerator = self.trainer.accelerator
        rollouts = list(pending.found)
        if not pending.missing:
            return rollouts
        generated = iter(())
        if pending.call is not None:
            with self.trainer.step_log.teacher("teacher_rollouts", pending.call):
                generated = iter(pending.call.result(accelerator))
        written = [pending.written[index] for index in pending.mine]
        judged, failed = self._judge(pending, [next(generated) if ids is None else ids for ids in written])
        judged, failed = gather_object(judged), gather_object(failed)
        for index, rollout in zip(pending.missing, judged, strict=True):
            rollouts[index] = rollout
        # Where the verifier failed there is no verdict to keep. Where another run was faster, its rollouts: all runs agree
        kept = [index for index, no_verdict in zip(pending.missing, failed, strict=True) if not no_verdict]
        stored = on_main_process(accelerator, lambda: self.bank.add([rollouts[index] for index in kept]))
        for index, rollout in zip(kept, stored, strict=True):
            rollouts[index] = rollout
        self.unverified.remove(self._key(pending, index) for index in pending.mine if index in kept)
        return rollouts

    def _judge(self, pending: PendingRollouts, completion_ids: list[list[int]]) -> tuple[list[BankRollout], list[bool]]:
        """This process's rollouts, decoded and judged by TRL's own methods; and on which of them a verifier failed."""
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
        failed = [any(verifier.failed[i] for verifier in trainer.verifiers) for i in range(real)]
        rollouts = [
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
                seed=self._seed(pending, mine[i]),
            )
            for i in range(real)
        ]
        return rollouts, failed

    def _key(self, pending: PendingRollouts, index: int) -> str:
        prompt = pending.prompts[index]
        return rollout_key(pending.prompt_ids[index], prompt.number, self.trainer.teacher_name(prompt.row))

    def _seed(self, pending: PendingRollouts, index: int) -> int:
        return rollout_seed("teacher", pending.prompt_ids[index], pending.prompts[index].number)

    def _answer(self, row: dict[str, Any]) -> str | None:
        column = self.trainer.args.answer_column
        return None if column is None or row.get(column) is None else str(row[column])


def sampling_settings(args: "SGOPDConfig") -> SamplingSettings:
    """How a run's settings have the teacher sample."""
    length = args.teacher_max_completion_length or args.max_completion_length
    return SamplingSettings(args.teacher_temperature, args.teacher_top_p, args.teacher_top_k, length)


def check_bank(args: "SGOPDConfig") -> None:
    """Refuses a bank that the settings alone show to be another run's, before any model is loaded.

    Raises:
        ValueError: with both values.
    """
    if args.teacher_bank is not None:
        check_identity(args.teacher_bank, {"sampling": asdict(sampling_settings(args)), "verifier": verdict_rule(args)})
