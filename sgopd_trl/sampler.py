"""The order of the prompts."""

from collections.abc import Callable

from datasets import Dataset
from torch.utils.data import Sampler
from trl.trainer.utils import RepeatSampler


class EpochSampler(Sampler):
    """TRL's sampler with an order that depends on the epoch, so that a run resumed in a later epoch finds it again.

    It asks for the epoch: accelerate's `set_epoch` does not reach a sampler on several processes.
    """

    def __init__(self, sampler: RepeatSampler, epoch: Callable[[], int]):
        self.sampler = sampler
        self.epoch = epoch

    def __iter__(self):
        if self.sampler.shuffle and self.sampler.seed is not None:
            self.sampler.generator.manual_seed(self.sampler.seed + self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


class OrderedByEpoch:
    """Mixin of a TRL trainer whose order of prompts depends on the epoch."""

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler:
        return EpochSampler(super()._get_train_sampler(dataset), lambda: int((self.state.epoch or 0) + 1e-6))
