"""A frozen model that is on the device only while it works."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel


if TYPE_CHECKING:
    from .trainer import SGOPDTrainer


def check_offload(model: PreTrainedModel, trainer: "SGOPDTrainer") -> None:
    """What cannot be moved as a whole.

    Raises:
        ValueError: under ZeRO-3 and FSDP, which have an offload of their own, and for quantized weights.
    """
    remedy = "Set `teacher_offload=False`."
    if trainer._dist.is_zero3:
        raise ValueError(
            "`teacher_offload` moves whole weights, but ZeRO-3 partitions them. Set DeepSpeed's `offload_param` "
            f"(`offload_param_device: cpu` in the accelerate configuration), which holds for the teacher too. {remedy}"
        )
    if trainer.is_fsdp_enabled:
        raise ValueError(
            "`teacher_offload` moves whole weights, but FSDP partitions them. Set `fsdp_offload_params: true` in the "
            f"accelerate configuration, which holds for the teacher too. {remedy}"
        )
    if getattr(model, "is_quantized", False):
        raise ValueError(f"`teacher_offload` cannot move the quantized weights of {type(model).__name__}. {remedy}")


class HostCopy(AbstractContextManager):
    """Puts a model's weights on the device for the time of a `with` block.

    The weights never change, so they go to the device and are dropped there: nothing is copied back. The copy in host
    memory is page-locked where the device is a GPU.

    Args:
        model: frozen. device: where it works.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device):
        self.device = device
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for tensor in [*model.parameters(), *model.buffers()]:
            host = tensor.data.to("cpu")
            self._pairs.append((tensor, host.pin_memory() if device.type == "cuda" else host))
        self.__exit__()

    def __enter__(self) -> None:
        for tensor, host in self._pairs:
            tensor.data = host.to(self.device, non_blocking=True)

    def __exit__(self, *exception: object) -> None:
        for tensor, host in self._pairs:
            tensor.data = host
