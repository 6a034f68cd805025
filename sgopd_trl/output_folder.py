"""What lies where in a run's output folder. Without torch: a study looks before it starts anything."""

import os
from pathlib import Path


METRICS = "metrics.jsonl"
STAGES = "_stages"  # all stages but the last one work there; with an underscore it is not pushed to the Hub
STATE = "trainer_state.json"  # of a checkpoint: transformers writes it last


def last_checkpoint(folder: str | os.PathLike, since: float = 0.0) -> Path | None:
    """The last whole checkpoint of a folder: the one that was being written when a run was killed has no state yet.

    Args:
        since: leave out checkpoints from before this time, in seconds as `time.time()` has them.
    """
    states = Path(folder).glob(f"checkpoint-*/{STATE}")
    found = [path.parent for path in states if path.stat().st_mtime >= since]
    steps = {path: path.name.rpartition("-")[2] for path in found}
    return max((path for path in found if steps[path].isdecimal()), key=lambda path: int(steps[path]), default=None)
