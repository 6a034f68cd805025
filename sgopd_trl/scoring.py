"""Log-probabilities of whole rollouts: in order of length, in forward passes bounded by a token budget."""

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from trl.trainer.utils import pad


# (input_ids (b, p + l), attention_mask (b, p + l), l) -> log-probabilities (b, l), nats
LogpsFunction = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]


def plan_batches(
    prompt_lengths: Sequence[int], completion_lengths: Sequence[int], tokens_per_batch: int
) -> list[list[int]]:
    """Rows in order of length, longest first, cut so that a padded batch stays within the token budget.

    Prompts are padded on the left and completions on the right, so a batch is as wide as its longest prompt plus its
    longest completion. A row over the budget gets a batch of its own.

    Args:
        prompt_lengths, completion_lengths: (B,) tokens. tokens_per_batch: budget, padding included.

    Returns:
        lists of row indices, each row once.
    """
    order = sorted(range(len(prompt_lengths)), key=lambda i: -(prompt_lengths[i] + completion_lengths[i]))
    batches: list[list[int]] = []
    width = 0
    prompt = completion = 0
    for row in order:
        prompt = max(prompt, prompt_lengths[row])
        completion = max(completion, completion_lengths[row])
        width = prompt + completion
        if batches and (len(batches[-1]) + 1) * width <= tokens_per_batch:
            batches[-1].append(row)
        else:
            batches.append([row])
            prompt, completion = prompt_lengths[row], completion_lengths[row]
    return batches


def score_sequences(
    logps_function: LogpsFunction,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    tokens_per_batch: int,
    accelerator: Accelerator,
    pad_token_id: int = 0,
) -> list[torch.Tensor]:
    """Log-probability of every completion token, without gradients.

    Every process runs the same number of forward passes, repeating its cheapest where it has fewer: under ZeRO-3 and
    FSDP each pass gathers weights from all processes.

    Args:
        logps_function: one forward pass.
        prompt_ids, completion_ids: b lists of token ids; an empty completion needs no pass.
        tokens_per_batch: token budget of one pass.
        accelerator: tells the device, and the other processes' number of passes.
        pad_token_id: any id the model knows; it is masked.

    Returns:
        b float32 tensors on the device, (l_i,) nats.
    """
    device = accelerator.device
    logps = [torch.zeros(0, device=device) for _ in completion_ids]
    wanted = [row for row, ids in enumerate(completion_ids) if len(ids) > 0]
    lengths = [len(prompt_ids[row]) for row in wanted], [len(completion_ids[row]) for row in wanted]
    plan = [[wanted[index] for index in indices] for indices in plan_batches(*lengths, tokens_per_batch)]

    passes = len(plan)
    if accelerator.num_processes > 1:
        passes = int(accelerator.gather(torch.tensor([passes], device=device)).max())
    for number in range(passes):
        chosen = plan[number] if number < len(plan) else plan[-1] if plan else []
        prompts = [torch.tensor(prompt_ids[row]) for row in chosen] or [torch.tensor([pad_token_id])]
        completions = [torch.tensor(completion_ids[row]) for row in chosen] or [torch.tensor([pad_token_id])]
        input_ids, attention_mask = join_padded(prompts, completions, pad_token_id)
        length = max(map(len, completions))
        with torch.no_grad():
            scored = logps_function(input_ids.to(device), attention_mask.to(device), length)
        if number < len(plan):
            for row, values in zip(chosen, scored.float(), strict=True):
                logps[row] = values[: len(completion_ids[row])]
    return logps


def join_padded(
    prompts: list[torch.Tensor], completions: list[torch.Tensor], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts padded on the left and completions on the right, side by side: ids and attention mask, (b, p + l) each."""
    parts = [(prompts, "left"), (completions, "right")]
    ids = [pad(rows, padding_value=pad_token_id, padding_side=side) for rows, side in parts]
    masks = [pad([torch.ones_like(row) for row in rows], padding_value=0, padding_side=side) for rows, side in parts]
    return torch.cat(ids, dim=1), torch.cat(masks, dim=1)


def stack_scores(scores: Sequence[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Scores of b sequences as one (B, L) tensor, float32, 0 behind their ends.

    Args:
        scores: B tensors (l_i,), l_i <= L. like: (B, L), for shape and device.
    """
    stacked = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    for row, values in enumerate(scores):
        stacked[row, : len(values)] = values.to(like.device)
    return stacked
