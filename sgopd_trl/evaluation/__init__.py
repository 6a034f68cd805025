"""Held-out accuracy, avg@k and pass@k: of a loaded model (`evaluate`), and of `sgopd eval`. docs/evaluation.md explains it."""

import importlib
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .in_memory import evaluate
    from .metrics import avg_at_k, pass_at_k

__all__ = ["avg_at_k", "evaluate", "pass_at_k"]

_MODULES = {"avg_at_k": "metrics", "evaluate": "in_memory", "pass_at_k": "metrics"}


def __getattr__(name: str):
    # Imported on first use, so that `sgopd --help` does not wait for NumPy, nor `sgopd eval --compare` for torch
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
