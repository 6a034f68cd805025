"""Two miniature tasks with a tokenizer and six small models, for runs on a CPU without a download.

Nothing here imports torch, transformers or datasets before it is needed.
"""

from pathlib import Path

from .task import CHECKPOINTS, TASKS, make_dataset
from .tokenizer import make_tokenizer


__all__ = ["CHECKPOINTS", "TASKS", "checkpoint_path", "make_dataset", "make_tokenizer", "resolve"]

_PREFIX = "miniature:"


def checkpoint_path(name: str) -> Path:
    """Return the directory of a shipped checkpoint, a complete Hugging Face model directory.

    Args:
        name: one of `CHECKPOINTS`.

    Raises:
        ValueError: there is no miniature checkpoint of that name.
        FileNotFoundError: the name is valid but the checkpoint's files are missing from the installation.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"unknown miniature checkpoint {name!r}: use one of {', '.join(CHECKPOINTS)}")
    path = Path(__file__).parent / "checkpoints" / name
    if not (path / "model.safetensors").is_file():
        raise FileNotFoundError(f"{path} holds no model.safetensors: reinstall the package or rebuild the checkpoints")
    return path


def resolve(name: str) -> str:
    """Turn `miniature:<checkpoint>` into the path of that checkpoint; return any other string unchanged.

    Raises:
        ValueError: the part behind `miniature:` is not one of `CHECKPOINTS`.
    """
    return str(checkpoint_path(name.removeprefix(_PREFIX))) if name.startswith(_PREFIX) else name
