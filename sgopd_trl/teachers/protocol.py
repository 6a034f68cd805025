"""What a trainer asks of a teacher, wherever the teacher lives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch


if TYPE_CHECKING:
    from ..trainer import SGOPDTrainer


class TeacherError(RuntimeError):
    """The teacher cannot answer, or what it answered cannot be used. Training stops, with its last step saved."""


@dataclass(frozen=True)
class SamplingSettings:
    """How a teacher samples its rollouts.

    Args:
        temperature: 0 is greedy. top_p: nucleus. top_k: 0 keeps every token. max_new_tokens: tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 1024


@runtime_checkable
class Teacher(Protocol):
    """A frozen language model that scores token ids and continues prompts.

    Attributes:
        eos_token_ids: the tokens that end its rollouts.
        runs_elsewhere: its calls need nothing of the training process: they may be made in a thread, and each process
            makes its own, as many as it likes. Otherwise every process makes the same calls, at the same time.
    """

    eos_token_ids: Sequence[int]
    runs_elsewhere: bool

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        temperature: float,
        names: Sequence[str | None] | None = None,
    ) -> list[torch.Tensor]:
        """Log-probability of each completion token, given the prompt and the tokens before it.

        Args:
            prompt_ids, completion_ids: b lists of token ids; any of the completions may be empty.
            temperature: the logits are divided by it.
            names: b names of teachers, where there are several.

        Returns:
            b float32 tensors, (l_i,) nats each, on any device.

        Raises:
            TeacherError: when there is no answer.
        """
        ...

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        names: Sequence[str | None] | None = None,
        finished: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        """One rollout a prompt, cut after its end-of-sequence token.

        Args:
            prompt_ids: b lists of token ids. seeds: (b,), one a rollout. settings: how to sample.
            names: b names of teachers, where there are several.
            finished: called with a prompt's place and its rollout as soon as it is there, from any thread. A teacher that
                has all its rollouts at once need not call it.

        Returns:
            b lists of token ids.

        Raises:
            TeacherError: when there is no answer.
        """
        ...

    def identity(self) -> dict[str, dict[str, str | None]]:
        """Who each teacher is: under its name ("teacher" where there is one only) `model`, `revision` and hashes.

        What cannot be known is `None`.
        """
        ...

    def prepare(self, trainer: "SGOPDTrainer") -> None:
        """Called once, when the trainer's accelerator is there and before the first request."""
        return None
