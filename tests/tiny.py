"""Tiny random models for tests: the miniature's tokenizer on a Qwen3 of a few thousand parameters."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

from sgopd_trl import SGOPDConfig
from sgopd_trl.miniature import make_dataset, make_tokenizer


VOCABULARY = 24


def make_model(
    folder: Path | str | None, seed: int, vocab_size: int = VOCABULARY, hidden: int = 16, scale: float = 0.5
):
    """A random Qwen3, saved with the miniature tokenizer in `folder` (or not saved, when it is None)."""
    set_seed(seed)
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, scale)
    if folder is not None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model


def even_digits_reward(completions, **kwargs) -> list[float]:
    """A verifier that random models pass about half of the time: is the number of digits in the completion even?"""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(character.isdigit() for character in text) % 2 == 0) for text in texts]


def make_args(output_dir: Path | str, **overrides) -> SGOPDConfig:
    """Settings of a few fast, logged float32 steps on the CPU."""
    settings = dict(
        output_dir=str(output_dir),
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=12,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        disable_tqdm=True,
        answer_column=None,
        teacher_sampling_ratio=0.5,
        teacher_sampling_phase1_end_frac=1.0,
        teacher_sampling_phase2_end_frac=1.0,
        zero_truncated_reward=False,
        stability_tau=2.0,
    )
    return SGOPDConfig(**(settings | overrides))


def dataset(size: int = 64) -> Dataset:
    return make_dataset("train", size)
