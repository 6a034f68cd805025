"""A teacher in the training process, on the training's devices."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ..frozen import FrozenModel, eos_token_ids
from ..rollout_bank import config_hash
from .identity import identity_entry, parameters_hash, weights_hash
from .protocol import SamplingSettings


if TYPE_CHECKING:
    from ..trainer import SGOPDTrainer


class InProcessTeacher:
    """A frozen model beside the student, prepared as the student is: DDP, DeepSpeed ZeRO or FSDP.

    Args:
        model: from `load_frozen`. name: of the teacher among several. model_name: Hub id or directory it was loaded from;
            `None` where it was passed as it is. revision: of it.
        offload: keep the weights in host memory between calls.
    """

    runs_elsewhere = False

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        name: str = "teacher",
        model_name: str | None = None,
        revision: str | None = None,
        offload: bool = False,
    ):
        self.name = name
        self.offload = offload
        self.eos_token_ids = eos_token_ids(model)
        self._identity = identity_entry(
            model_name or model.config.name_or_path or type(model).__name__,
            getattr(model.config, "_commit_hash", None) or revision,
            config_hash(model.config),
            weights_hash(model_name),
            parameters_hash(model) if model_name is None else None,
        )
        self.frozen: FrozenModel | None = None
        self._model: PreTrainedModel | None = model

    def prepare(self, trainer: "SGOPDTrainer") -> None:
        """Puts the model where the trainer's accelerator has its models.

        Raises:
            ValueError: for `offload` where the weights are partitioned or quantized.
        """
        self.frozen = FrozenModel(self._model, trainer, self.name, self.offload)
        self._model = None  # the prepared one is the only one

    def score(
        self,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        *,
        temperature: float,
        names: Sequence[str | None] | None = None,
    ) -> list[torch.Tensor]:
        if temperature != self.frozen.trainer.temperature:
            raise ValueError(
                f"The teacher's LM head is fused with the run's temperature {self.frozen.trainer.temperature}, got "
                f"{temperature}."
            )
        return self.frozen.score(prompt_ids, completion_ids)

    def generate(
        self,
        prompt_ids: Sequence[Sequence[int]],
        seeds: Sequence[int],
        settings: SamplingSettings,
        *,
        names: Sequence[str | None] | None = None,
        finished: Callable[[int, list[int]], None] | None = None,
    ) -> list[list[int]]:
        return self.frozen.generate(prompt_ids, seeds, settings)

    def identity(self) -> dict[str, dict[str, str | None]]:
        return {self.name: self._identity}
