"""A teacher that runs elsewhere, as far as a trainer can tell: a plain transformers model asked in a thread."""

import time

import torch
from reference import sequence_logps
from transformers import AutoModelForCausalLM

from sgopd_trl.teachers import TeacherError


class PlainTeacher:
    """Scores one sequence at a time through full logits, and continues prompts greedily.

    Args:
        folder: of the model. name: of the teacher. delay: seconds every call takes at least.
        fail_on: number of the scoring call, from 1, from which on it raises a `TeacherError`.
        fail_on_rollout: number of rollouts after which it does.

    Attributes:
        asked, finished: prompts of rollouts.
    """

    runs_elsewhere = True

    def __init__(
        self,
        folder,
        name: str = "teacher",
        delay: float = 0.0,
        fail_on: int | None = None,
        fail_on_rollout: int | None = None,
    ):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.eos_token_ids = [self.model.generation_config.eos_token_id]
        self.name, self.delay, self.fail_on, self.fail_on_rollout = name, delay, fail_on, fail_on_rollout
        self.scored = 0  # calls
        self.asked: list[list[int]] = []
        self.finished: list[list[int]] = []

    def prepare(self, trainer):
        self.trainer = trainer

    def identity(self):
        return {self.name: {"model": "plain", "revision": None, "config_hash": None}}

    @torch.no_grad()
    def score(self, prompt_ids, completion_ids, *, temperature, names=None):
        self.scored += 1
        if self.fail_on is not None and self.scored >= self.fail_on:
            raise TeacherError("The teacher at http://nowhere has not answered for 900 s (refused).")
        time.sleep(self.delay)
        return [
            sequence_logps(self.model, list(prompt), list(completion), temperature)
            for prompt, completion in zip(prompt_ids, completion_ids, strict=True)
        ]

    @torch.no_grad()
    def generate(self, prompt_ids, seeds, settings, *, names=None, finished=None):
        time.sleep(self.delay)
        self.asked += [list(ids) for ids in prompt_ids]
        rollouts = []
        for place, ids in enumerate(prompt_ids):
            if self.fail_on_rollout is not None and len(self.finished) >= self.fail_on_rollout:
                raise TeacherError("The teacher at http://nowhere has not answered for 900 s (refused).")
            output = self.model.generate(
                torch.tensor([list(ids)]), do_sample=False, max_new_tokens=settings.max_new_tokens
            )
            rollouts.append(output[0, len(ids) :].tolist())
            self.finished.append(list(ids))
            if finished is not None:
                finished(place, rollouts[-1])
        return rollouts
