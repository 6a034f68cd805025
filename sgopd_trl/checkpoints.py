"""Which checkpoint of a folder a run goes on from. Without torch: a study asks before it starts anything."""

import os
from pathlib import Path


STATE = "trainer_state.json"  # transformers writes it last


def last_checkpoint(folder: str | os.PathLike, since: float = 0.0) -> Path | None:
    """The last whole checkpoint of a folder: the one that was being written when a run was killed has no state yet.

    Args:
        since: leave out checkpoints from before this time, in seconds as `time.time()` has them.
    """
    states = Path(folder).glob(f"checkpoint-*/{STATE}")
    found = [path.parent for path in states if path.stat().st_mtime >= since]
    steps = {path: path.name.rpartition("-")[2] for path in found}
    return max((path for path in found if steps[path].isdecimal()), key=lambda path: int(steps[path]), default=None)
