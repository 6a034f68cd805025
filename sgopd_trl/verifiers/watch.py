"""Verifiers inside a trainer of one or several processes: where their failures go, and that all processes stop together."""

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from .reward import Verifier, VerifierFailure


def watched_verifiers(reward_funcs: Any, output_dir: str) -> list[Verifier]:
    """The verifiers among a trainer's reward functions. They leave stopping to `stop_if_failing`.

    Args:
        output_dir: where the completions that they fail on are kept, unless they have a file of their own.
    """
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    verifiers = [function for function in functions if isinstance(function, Verifier)]
    for verifier in verifiers:
        verifier.belong_to(output_dir)
    return verifiers


def stop_if_failing(verifiers: Sequence[Verifier], accelerator: Accelerator) -> None:
    """Collective, where there are verifiers.

    Raises:
        VerifierFailure: on every process, when a verifier fails too often on one of them.
    """
    if not verifiers:
        return
    problems = gather_object([problem for verifier in verifiers if (problem := verifier.failing())])
    if problems:
        raise VerifierFailure(problems[0])
