"""Checkpoints inside a generation cycle: the rollouts that later optimizer steps still train on are saved with them."""

import os

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


# With several processes on a CPU accelerate calls the device "cpu:0", and transformers loads the optimizer's state to it;
# torch.load only knows "cpu".
torch.serialization.register_package(
    1000, lambda storage: None, lambda storage, location: storage if location.startswith("cpu:") else None
)


def _path(checkpoint: str, process_index: int) -> str:
    return os.path.join(checkpoint, f"generation_cycle_{process_index}.pt")


def save_generation_cycle(checkpoint: str, process_index: int, step: int, buffered: list[dict]) -> None:
    """Saves this process's buffered micro-batches and its position among them.

    TRL does not, and a run resumed inside a cycle (`num_iterations` or `steps_per_generation` above one optimizer step)
    would generate anew and diverge.
    """
    os.makedirs(checkpoint, exist_ok=True)
    torch.save({"step": step, "buffered": buffered}, _path(checkpoint, process_index))


def load_generation_cycle(checkpoint: str, process_index: int, device: torch.device) -> tuple[int, list[dict]] | None:
    """What `save_generation_cycle` saved, or `None` when the checkpoint lies between two cycles."""
    path = _path(checkpoint, process_index)
    if not os.path.exists(path):
        return None
    state = torch.load(path, map_location=device, weights_only=True)
    return state["step"], state["buffered"]


class CheckpointsInsideCycles:
    """Mixin of a [`~trl.GRPOTrainer`] whose checkpoints may lie inside a generation cycle."""

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self._step % (self.args.steps_per_generation * self.num_iterations) != 0:
            folder = os.path.join(
                self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            )
            save_generation_cycle(folder, self.accelerator.process_index, self._step, self._buffered_inputs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            cycle = load_generation_cycle(checkpoint, self.accelerator.process_index, self.accelerator.device)
            if cycle is not None:
                self._step, self._buffered_inputs = cycle
