"""What an evaluation asks of an engine."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ...teachers.protocol import SamplingSettings


class EngineError(RuntimeError):
    """The engine cannot answer. What it has finished is kept."""


@dataclass(frozen=True)
class Request:
    """One completion that is asked for.

    Args:
        dataset, problem, sample: which one it is. prompt_ids: token ids. seed: of this completion alone.
    """

    dataset: str
    problem: int
    sample: int
    prompt_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Sample:
    """A finished completion.

    Args:
        completion_ids: token ids, the end of sequence included. finish_reason: it ended by itself ("stop"), or at its limit.
    """

    completion_ids: list[int]
    finish_reason: Literal["stop", "length"]


Finished = list[tuple[Request, Sample]]


class Engine(Protocol):
    """Samples completions of a model.

    Attributes:
        served: what a server calls the model behind it, `id` and `root`; `None` where the settings say which model it is.
    """

    served: dict[str, str | None] | None

    def generate(self, requests: Sequence[Request], settings: SamplingSettings) -> Generator[Finished, None, None]:
        """Hands over what has finished, as soon as it has, in any order; every request once.

        Closing the iterator gives up what is under way.

        Raises:
            EngineError: when there is no answer.
        """
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...
