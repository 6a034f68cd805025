"""Held-out accuracy, avg@k and pass@k: of a loaded model (`evaluate`), and of `sgopd eval`. docs/evaluation.md explains it."""

from typing import TYPE_CHECKING

from .metrics import avg_at_k, pass_at_k


if TYPE_CHECKING:
    from .in_memory import evaluate

__all__ = ["avg_at_k", "evaluate", "pass_at_k"]


def __getattr__(name: str):
    # Imported on first use, so that `sgopd eval --compare` does not wait for torch
    if name == "evaluate":
        from .in_memory import evaluate

        return evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
