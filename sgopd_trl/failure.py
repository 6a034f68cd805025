"""What is saved when a teacher fails for good: the last finished optimizer step, as if the next had not begun."""

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .teachers import TeacherError


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


@dataclass(frozen=True)
class RandomState:
    """The random states that a checkpoint holds: Python's, NumPy's, and torch's on the CPU and the GPUs."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: list[torch.Tensor]

    @classmethod
    def now(cls) -> "RandomState":
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)


def save_before_the_failure(
    trainer: "SGOPDTrainer", state: RandomState, last_checkpoint: str | None, error: TeacherError
) -> None:
    """Saves a checkpoint of the last finished step, and adds to the error where it is. Collective.

    A teacher is asked before the first backward pass of an optimizer step, so the weights are those of the last step;
    with the random state from before the rollouts, a resumed run samples them again.

    Args:
        state: from before the generation batch or evaluation that failed.
        last_checkpoint: the folder that this run has saved last, or was resumed from.
    """
    step = trainer.state.global_step
    if step == 0:
        error.add_note("No step was finished, so there is nothing to resume.")
        return
    folder = os.path.join(trainer.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{step}")
    if last_checkpoint is None or os.path.realpath(folder) != os.path.realpath(last_checkpoint):
        state.restore()
        trainer._save_checkpoint(trainer.model, trial=None)
    error.add_note(f"Step {step} is saved in {folder}; go on with `resume_from_checkpoint`.")
