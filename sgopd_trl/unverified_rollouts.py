"""Rollouts that the teacher has finished and that no verifier has judged yet: a kill in between loses none."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from .atomic_file import write_whole


class UnverifiedRollouts:
    """One small file each, beside the rollout bank that they are for. Any process and thread may put some there.

    Args:
        bank: folder of the bank.
    """

    def __init__(self, bank: str | os.PathLike):
        self.folder = Path(bank) / ".unverified"

    def put(self, key: str, completion_ids: list[int]) -> None:
        """Keeps a rollout's token ids under the key it will have in the bank."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{key}.json", json.dumps(list(completion_ids)))

    def get(self, key: str) -> list[int] | None:
        """A rollout's token ids, or `None`."""
        try:
            return json.loads((self.folder / f"{key}.json").read_text())
        except FileNotFoundError:
            return None

    def remove(self, keys: Iterable[str]) -> None:
        """Forgets the rollouts that the bank has now."""
        for key in keys:
            (self.folder / f"{key}.json").unlink(missing_ok=True)
