"""What a stored rollout remembers of the teacher that wrote it."""

import os


def short_name(model: str) -> str:
    """A Hub id as it is; of a directory its last part, which stays the same where it is moved."""
    return os.path.basename(os.path.normpath(model)) if os.path.isabs(model) or os.path.isdir(model) else model


def identity_entry(model: str | None, revision: str | None, config_hash: str | None) -> dict[str, str | None]:
    """One teacher's entry of `Teacher.identity`. What is not known is `None`."""
    return {"model": model and short_name(model), "revision": revision, "config_hash": config_hash}
