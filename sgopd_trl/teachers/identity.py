"""What a stored rollout remembers of the teacher that wrote it."""

import hashlib
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel


_SAMPLE = 2**20  # bytes at either end of a file
_VALUES = 64  # of each parameter


def short_name(model: str) -> str:
    """A Hub id as it is; of a directory its last part, which stays the same where it is moved."""
    return os.path.basename(os.path.normpath(model)) if os.path.isabs(model) or os.path.isdir(model) else model


def identity_entry(
    model: str | None,
    revision: str | None = None,
    config_hash: str | None = None,
    weights_hash: str | None = None,
    parameters_hash: str | None = None,
) -> dict[str, str | None]:
    """One teacher's entry of `Teacher.identity`. What is not known is `None`."""
    return {
        "model": model and short_name(model),
        "revision": revision,
        "config_hash": config_hash,
        "weights_hash": weights_hash,
        "parameters_hash": parameters_hash,
    }


def weights_hash(model: str | None) -> str | None:
    """Hash of the sizes, beginnings and ends of a directory's weight files; `None` for a Hub id, which has a revision."""
    if model is None or not os.path.isdir(model):
        return None
    digest = hashlib.sha256()
    for path in sorted(path for pattern in ("*.safetensors", "*.bin") for path in Path(model).glob(pattern)):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_SAMPLE))
            file.seek(max(size - _SAMPLE, 0))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def parameters_hash(model: PreTrainedModel) -> str | None:
    """Hash of the first values of every parameter of a loaded model; `None` where they are partitioned."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id") or parameter.is_meta:
            return None
        digest.update(name.encode())
        digest.update(parameter.detach().flatten()[:_VALUES].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:16]
