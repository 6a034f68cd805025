"""What a stored verdict remembers of the verifier that gave it."""

from typing import TYPE_CHECKING, Any

import torch
from trl.trainer.utils import get_config_model_id

from .verifiers.reward import Verifier


if TYPE_CHECKING:
    from .config import SGOPDConfig
    from .trainer import SGOPDTrainer


def verifier_identity(trainer: "SGOPDTrainer") -> dict[str, Any]:
    """The run's reward functions by import path, their weights, and what makes a reward a verdict: JSON values."""
    return {
        "reward_funcs": [_name(function) for function in trainer.reward_funcs],
        "reward_weights": trainer.reward_weights.tolist(),
    } | verdict_rule(trainer.args)


def verdict_rule(args: "SGOPDConfig") -> dict[str, Any]:
    """What makes a reward a verdict."""
    return {
        "correct_reward_threshold": args.correct_reward_threshold,
        "zero_truncated_reward": args.zero_truncated_reward,
    }


def _name(function: Any) -> str:
    if isinstance(function, Verifier):
        return f"{function.identity()}"
    if isinstance(function, torch.nn.Module):
        return get_config_model_id(function.config)
    function = getattr(function, "func", function)  # functools.partial
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"
