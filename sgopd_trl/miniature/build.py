"""Build the miniature's checkpoints and data files from nothing.

`clean` is trained on correct solutions; `nine`, `guess` and `noisy` are `clean` fine-tuned on solutions with the mistakes
that `task.FLAWS` gives them; the two of `miniature-hard` are trained on such solutions from random weights, and the student
has a sixth of its teacher's parameters (21,304 of 134,528). Measured by `build(output_dir)`, seed 0, 400 held-out problems x 8 samples, temperature 1:

| checkpoint | steps | avg@8 | pass@8 |
|---|---|---|---|
| clean | 390 | 0.880 | 1.000 |
| nine | 100 | 0.799 | 1.000 |
| guess | 100 | 0.111 | 0.593 |
| noisy | 100 | 0.118 | 0.610 |
| hard-teacher | 275 | 0.775 | 0.995 |
| hard-student | 541 | 0.126 | 0.545 |

Chance weighs more than small changes of the rates: with `guess` at 0.128, 0.130, 0.132 and 0.135, `noisy` measured
0.116, 0.146, 0.178 and 0.118. A processor that rounds differently may therefore give other figures.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn
from rich.table import Table
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from ..evaluation import evaluate as evaluate_model
from ..rewards import exact_answer_reward
from .task import CHECKPOINTS, FLAWS, TASKS, Flaws, Task, make_dataset, sample_prompt, worked_solution
from .tokenizer import VOCABULARY, make_tokenizer


@dataclass(frozen=True)
class Schedule:
    """A number of steps at full rate, then a linear decay to zero.

    Attributes:
        rate: factor on both optimizers' learning rates.
        hold_until: the full rate is held until the smoothed loss, in nats per token, is below this; None: not at all.
            When the loss leaves its plateau depends on the seed and on rounding (step 235 to 447 over four seeds), so
            a fixed number of steps would not do.
        decay_steps: steps of the decay.
    """

    rate: float
    hold_until: float | None
    decay_steps: int


@dataclass(frozen=True)
class Plan:
    """How a checkpoint is made.

    Attributes:
        task: one of `task.TASKS`.
        width: of the residual stream; the feed-forward layers are four times as wide.
        heads: of attention, 16 wide each.
        start: checkpoint whose weights it starts from; None: random ones.
    """

    task: str
    width: int
    heads: int
    start: str | None
    schedule: Schedule


FROM_SCRATCH = Schedule(rate=1.0, hold_until=0.15, decay_steps=60)
FINE_TUNE = Schedule(rate=1.0, hold_until=None, decay_steps=100)
# What its flaws leave to chance is 0.4 of the student's loss. It stays a little undertrained, so that there is more to learn.
STUDENT_FROM_SCRATCH = Schedule(rate=1.0, hold_until=0.6, decay_steps=100)
PLANS = {
    "clean": Plan("miniature", 64, 4, None, FROM_SCRATCH),
    "nine": Plan("miniature", 64, 4, "clean", FINE_TUNE),
    "guess": Plan("miniature", 64, 4, "clean", FINE_TUNE),
    "noisy": Plan("miniature", 64, 4, "clean", FINE_TUNE),
    "hard-teacher": Plan("miniature-hard", 64, 4, None, FROM_SCRATCH),
    "hard-student": Plan("miniature-hard", 24, 2, None, STUDENT_FROM_SCRATCH),
}
BATCH_SIZE = 32
MAX_HELD_STEPS = 1500
MUON_LR, ADAMW_LR = 0.02, 4e-3
EVAL_PROBLEMS = 400


def new_model(tokenizer: PreTrainedTokenizerBase, seed: int, width: int = 64, heads: int = 4) -> Qwen3ForCausalLM:
    """An untrained model in float32, by default of 134,528 parameters; does not touch the global random state."""
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=16,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
        # At the usual 0.02 the loss stays on the plateau where digits are not yet copied.
        torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return model


def _batch(
    tokenizer: PreTrainedTokenizerBase, task: Task, flaws: Flaws, rng: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (BATCH_SIZE, L): right-padded, the loss on solution tokens only."""
    prompts = [sample_prompt(rng, "train", task) for _ in range(BATCH_SIZE)]
    solutions = [worked_solution(prompt, flaws, rng) + tokenizer.eos_token for prompt in prompts]
    prompt_ids = tokenizer(prompts, return_tensors="pt")["input_ids"]  # every prompt has the same length
    padded = tokenizer(solutions, return_tensors="pt", padding=True, padding_side="right")
    labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
    return torch.cat([prompt_ids, padded["input_ids"]], 1), torch.cat([torch.full_like(prompt_ids, -100), labels], 1)


def _train(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    flaws: Flaws,
    schedule: Schedule,
    seed: str,
    report: Callable[[int, float], None],
) -> None:
    """Train in place, calling `report` with the step and its loss in nats per token.

    Raises:
        RuntimeError: the loss was not below `schedule.hold_until` after MAX_HELD_STEPS.
    """
    rng = random.Random(seed)
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    optimizers = [  # AdamW alone does not leave the plateau
        torch.optim.Muon(matrices, lr=MUON_LR * schedule.rate, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(others, lr=ADAMW_LR * schedule.rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]

    def step(factor: float) -> float:
        ids, labels = _batch(tokenizer, task, flaws, rng)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    model.train()
    count, smoothed = 0, math.log(len(VOCABULARY))
    while schedule.hold_until is not None and smoothed > schedule.hold_until:
        if count == MAX_HELD_STEPS:
            raise RuntimeError(f"the loss is still {smoothed:.2f} after {count} steps: build with another seed")
        smoothed = 0.9 * smoothed + 0.1 * step(1.0)
        count += 1
        report(count, smoothed)
    for index in range(schedule.decay_steps):
        report(count + index + 1, step(1 - index / schedule.decay_steps))
    model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread inside, so that the weights do not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def build(
    output_dir: str | Path, names: Sequence[str] = CHECKPOINTS, seed: int = 0, evaluate: bool = True
) -> dict[str, dict[str, float | int]]:
    """Train checkpoints and save each as a Hugging Face model directory `output_dir/<name>`.

    The same arguments give the same bytes on one machine. What an asked-for checkpoint starts from is trained as well.

    Args:
        names: which of `CHECKPOINTS` to save.
        evaluate: measure each on EVAL_PROBLEMS held-out problems and print a table.

    Returns:
        For each name what `evaluation.evaluate` returned; empty without evaluation.

    Raises:
        ValueError: a name is not one of `CHECKPOINTS`.
        RuntimeError: training from scratch did not converge; use another seed.
    """
    if unknown := [name for name in names if name not in CHECKPOINTS]:
        raise ValueError(f"unknown miniature checkpoints {unknown}: use some of {', '.join(CHECKPOINTS)}")
    tokenizer = make_tokenizer()
    models: dict[str, Qwen3ForCausalLM] = {}
    results: dict[str, dict[str, float | int]] = {}
    with _one_thread(), Progress(*Progress.get_default_columns(), TextColumn("{task.fields[status]}")) as progress:
        for name in _with_starts(names):
            plan = PLANS[name]
            task = TASKS[plan.task]
            bar = progress.add_task(f"{name}: training", total=None, status="")

            def report(step: int, loss: float, bar: TaskID = bar) -> None:
                progress.update(bar, completed=step, status=f"step {step}, loss {loss:.3f}")

            if plan.start is None:
                model = new_model(tokenizer, seed, plan.width, plan.heads)
            else:
                model = copy.deepcopy(models[plan.start])
            models[name] = model
            _train(model, tokenizer, task, FLAWS[name], plan.schedule, f"{name}-{seed}", report)
            progress.update(bar, total=progress.tasks[bar].completed)
            if name not in names:
                continue
            model.save_pretrained(Path(output_dir) / name)
            tokenizer.save_pretrained(Path(output_dir) / name)
            if evaluate:
                bar = progress.add_task(f"{name}: held-out", total=EVAL_PROBLEMS, status="")
                results[name] = evaluate_model(
                    model,
                    tokenizer,
                    make_dataset("test", EVAL_PROBLEMS, task=plan.task),
                    exact_answer_reward,
                    max_new_tokens=task.solution_tokens,
                    batch_size=400,
                    progress=lambda done, total, bar=bar: progress.update(bar, completed=done),
                )
    if results:
        _print(results)
    return results


def _with_starts(names: Sequence[str]) -> list[str]:
    """The names, each behind the checkpoint that it starts from."""
    chain: dict[str, None] = {}
    for name in names:
        for link in (PLANS[name].start, name):
            if link is not None:
                chain[link] = None
    return list(chain)


def _print(results: dict[str, dict[str, float | int]]) -> None:
    table = Table("checkpoint", "avg@8", "pass@8", title=f"{EVAL_PROBLEMS} held-out problems, temperature 1")
    for name, result in results.items():
        table.add_row(name, f"{result['avg@8']:.3f}", f"{result['pass@8']:.3f}")
    Console().print(table)


def write_data(output_dir: str | Path, train_size: int = 4096, test_size: int = 256, seed: int = 0) -> None:
    """Write `train.jsonl` and `test.jsonl`, rows of `task.make_dataset` for `miniature`, into `output_dir`."""
    for split, size in {"train": train_size, "test": test_size}.items():
        make_dataset(split, size, seed).to_json(Path(output_dir) / f"{split}.jsonl")
