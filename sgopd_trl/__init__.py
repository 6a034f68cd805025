"""SG-OPD, sign-gated on-policy distillation, for TRL."""

from typing import TYPE_CHECKING


__version__ = "0.1.0"

if TYPE_CHECKING:
    from .config import SGOPDConfig
    from .trainer import SGOPDTrainer

__all__ = ["SGOPDConfig", "SGOPDTrainer", "__version__"]


def __getattr__(name: str):
    # Imported on first use, so that `sgopd --help` does not wait for torch
    if name == "SGOPDConfig":
        from .config import SGOPDConfig

        return SGOPDConfig
    if name == "SGOPDTrainer":
        from .trainer import SGOPDTrainer

        return SGOPDTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
