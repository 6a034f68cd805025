"""A miniature checkpoint with wider attention heads, for engines that cannot take its own."""

import os

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from . import resolve


def export(source: str, output_dir: str | os.PathLike, head_dim: int = 32) -> None:
    """Writes a checkpoint of the same function with heads padded by zeros.

    vLLM's attention on a CPU takes heads of 32 and more; the miniature's have 16.

    Args:
        source: "miniature:NAME" or the directory of a Qwen3. output_dir: gets model and tokenizer.
        head_dim: a multiple of the source's.

    Raises:
        ValueError: when `head_dim` is no multiple of the source's.
    """
    folder = resolve(source)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    old = model.config.head_dim
    if head_dim % old != 0:
        raise ValueError(f"`head_dim` must be a multiple of the source's {old}, got {head_dim}.")
    factor = head_dim // old
    # Rotary pairs are (i, i + d/2) at frequency theta^(-2i/d): pair i of d is pair i * factor of d * factor.
    half = torch.arange(old // 2) * factor
    place = torch.cat([half, head_dim // 2 + half])
    state = {}
    for name, weight in model.state_dict().items():
        part = name.split(".")[-2]
        if part in ("q_proj", "k_proj", "v_proj"):
            heads = weight.new_zeros(weight.shape[0] // old, head_dim, weight.shape[1])
            heads[:, place] = weight.view(-1, old, weight.shape[1])
            weight = heads.reshape(-1, weight.shape[1])
        elif part == "o_proj":
            heads = weight.new_zeros(weight.shape[0], weight.shape[1] // old, head_dim)
            heads[:, :, place] = weight.view(weight.shape[0], -1, old)
            weight = heads.reshape(weight.shape[0], -1)
        elif part in ("q_norm", "k_norm"):
            # The mean square is over `factor` times as many numbers, and scores are divided by sqrt(head_dim).
            wide = weight.new_zeros(head_dim)
            wide[place] = weight * (1.0 if part == "q_norm" else factor**-0.5)
            weight = wide
        state[name] = weight
    exported = Qwen3ForCausalLM(Qwen3Config.from_dict(model.config.to_dict() | {"head_dim": head_dim}))
    exported.load_state_dict(state)
    exported.generation_config = model.generation_config
    exported.save_pretrained(output_dir)
    AutoTokenizer.from_pretrained(folder).save_pretrained(output_dir)
