"""SG-OPD's loss written a second time, one sequence at a time, from full logits: what the trainer is held against."""

from dataclasses import dataclass, field

import torch
from transformers import TrainerCallback


def sequence_logps(model, prompt_ids: list[int], completion_ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of one completion, (L,), unpadded, through the model's ordinary logits."""
    ids = torch.tensor([prompt_ids + completion_ids])
    logits = model(input_ids=ids).logits[0, len(prompt_ids) - 1 : -1].float() / temperature
    return logits.log_softmax(-1)[torch.arange(len(completion_ids)), completion_ids]


def sg_opd_loss(
    model,
    rollouts: list[dict],
    *,
    lambda_high: float = 1.8,
    tau: float | None = 2.0,
    epsilon: float = 0.2,
    teacher_rollouts: list[tuple[list[int], list[int]]] = (),
    alpha: float = 0.0,
) -> torch.Tensor:
    """The whole step's loss for the sign gate with interp at beta = 1.

    Args:
        rollouts: dicts of `prompt`, `completion` (token ids), `a1`, and (L,) `old`, `teacher`, `reference` log-probs;
            `certificates` (L,) in the place of a1 where there are any.
    """
    phis, advantages = [], []
    for rollout in rollouts:
        a2 = rollout["teacher"] - rollout["old"]
        advantage = a2.clone()
        certificates = rollout.get("certificates", [rollout["a1"]] * len(a2))
        for t in range(len(a2)):
            if certificates[t] * a2[t] > 0:
                advantage[t] = a2[t] + (lambda_high - 1) * (rollout["teacher"][t] - rollout["reference"][t])
        advantages.append(advantage)
        phis.append(torch.ones_like(a2) if tau is None else (tau / a2.abs()).clamp(max=1))
    mean_phi = torch.cat(phis).mean()
    loss = 0.0
    for rollout, advantage, phi in zip(rollouts, advantages, phis, strict=True):
        ratio = (sequence_logps(model, rollout["prompt"], rollout["completion"]) - rollout["old"]).exp()
        weighted = advantage * phi / mean_phi
        clipped = torch.minimum(ratio * weighted, ratio.clamp(1 - epsilon, 1 + epsilon) * weighted)
        loss = loss - clipped.mean() / len(rollouts)
    tokens = sum(len(completion) for _, completion in teacher_rollouts)
    for prompt, completion in teacher_rollouts:
        loss = loss - alpha * sequence_logps(model, prompt, completion).sum() / tokens
    return loss


@dataclass
class StepRecorder(TrainerCallback):
    """Keeps, for every optimizer step, the weights before it, the micro-batches and the gradients."""

    trainer: object = None
    steps: list[dict] = field(default_factory=list)

    def watch(self, trainer) -> "StepRecorder":
        self.trainer = trainer
        trainer.add_callback(self)
        compute_loss = trainer.compute_loss

        def recorded(model, inputs, *args, **kwargs):
            self.steps[-1]["batches"].append(inputs)
            return compute_loss(model, inputs, *args, **kwargs)

        trainer.compute_loss = recorded
        return self

    def on_step_begin(self, args, state, control, **kwargs):
        weights = {name: tensor.clone() for name, tensor in self.trainer.model.state_dict().items()}
        self.steps.append({"weights": weights, "batches": []})

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.steps[-1]["gradients"] = {
            name: parameter.grad.clone()
            for name, parameter in self.trainer.model.named_parameters()
            if parameter.grad is not None
        }


def unpad(batches: list[dict]) -> list[dict]:
    """The rollouts of a step's micro-batches, as token-id lists with their outcome advantages."""
    rollouts = []
    for batch in batches:
        for row in range(len(batch["prompt_ids"])):
            prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
            completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
            a1 = batch["outcome_advantages"][row].item()
            rollouts.append({"prompt": prompt, "completion": completion, "a1": a1})
    return rollouts


def unpad_teacher(batches: list[dict]) -> list[tuple[list[int], list[int]]]:
    """The teacher rollouts of a step's micro-batches (one process: none is a stand-in)."""
    rollouts = []
    for batch in batches:
        teacher = batch["teacher"]
        if teacher is None:
            continue
        for ids, attention, weights in zip(
            teacher["input_ids"], teacher["attention_mask"], teacher["weights"], strict=True
        ):
            length = weights.numel()
            prompt = ids[:-length][attention[:-length].bool()].tolist()
            rollouts.append((prompt, ids[-length:][attention[-length:].bool()].tolist()))
    return rollouts


def relative_error(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Largest difference over all gradients, relative to the largest gradient."""
    assert got.keys() == expected.keys()
    scale = max(tensor.abs().max().item() for tensor in expected.values())
    return max((got[name] - expected[name]).abs().max().item() for name in got) / scale
