"""The sign of a2, pinned twice: by exact enumeration, and by what a flipped sign does to the miniature."""

import itertools

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

import sgopd_trl.step_routing
from sgopd_trl import SGOPDTrainer


LENGTH = 2


def make_trainer(tmp_path) -> SGOPDTrainer:
    """lambda = 1 without a gate, without phi: plain OPD."""
    tiny.make_model(tmp_path / "student", seed=0)
    tiny.make_model(tmp_path / "teacher", seed=1)
    return SGOPDTrainer(
        model=str(tmp_path / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=tiny.make_args(
            tmp_path / "run", sign_gated_extrapolation=False, stability_tau=None, teacher_sampling_enable=False
        ),
        train_dataset=tiny.dataset(),
        teacher_model=str(tmp_path / "teacher"),
    )


def test_expected_update_is_the_gradient_of_reverse_kl_by_enumeration(tmp_path):
    """Every completion of two tokens, weighted by its probability, through the trainer's own scoring, routing and loss.

    With a per-token discount of 0 the expected update is E_y[sum_t a2_t grad log pi(y_t)], the descent direction of
    sum_t E_{y_<t} KL(pi(.|y_<t) || pi*(.|y_<t)), with the distribution of prefixes held fixed.
    """
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    prompt = torch.tensor([[5, 9, 20, 7]])
    completions = torch.tensor(list(itertools.product(range(tiny.VOCABULARY), repeat=LENGTH)))
    count = len(completions)
    batch = {
        "prompt_ids": prompt.expand(count, -1),
        "prompt_mask": torch.ones(count, prompt.size(1), dtype=torch.long),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "advantages": torch.zeros(count),
        "num_items_in_batch": torch.tensor(count * LENGTH),
    }
    batch = batch | trainer.scorer.score(batch)
    (batch,) = trainer._route([batch])
    # TRL's loss averages over rows and tokens: turn these means into the expectation over completions
    probability = batch["student_logps"].sum(1, keepdim=True).exp()
    batch["advantages"] = batch["advantages"] * probability * count * LENGTH
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    got = {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}

    student, teacher = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("student", "teacher"))
    kl = 0.0
    for prefix in [(), *[(token,) for token in range(tiny.VOCABULARY)]]:
        ids = torch.cat([prompt, torch.tensor([prefix], dtype=torch.long)], dim=1)
        log_p = student(input_ids=ids).logits[0].log_softmax(-1)
        log_q = teacher(input_ids=ids).logits[0].log_softmax(-1)
        weight = log_p[prompt.size(1) - 1, prefix[0]].detach().exp() if prefix else 1.0
        kl = kl + weight * (log_p[-1].exp() * (log_p[-1] - log_q[-1])).sum()
    kl.backward()
    for name, parameter in student.named_parameters():
        error = (got[name] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 1e-5, f"{name}: {error:.2e}"


@pytest.mark.slow
@pytest.mark.parametrize("flipped", [False, True])
def test_a_flipped_sign_drives_the_miniature_away_from_its_teacher(tmp_path, monkeypatch, flipped):
    """Teacher `nine`, student `noisy`, plain OPD: the right sign learns, the literal sign of Eq. 1 and 10 collapses."""
    from sgopd_trl.evaluation import evaluate
    from sgopd_trl.miniature import checkpoint_path, make_dataset
    from sgopd_trl.miniature.task import SOLUTION_TOKENS
    from sgopd_trl.rewards import exact_answer_reward

    if flipped:
        monkeypatch.setattr(sgopd_trl.step_routing, "reverse_kl_advantage", lambda teacher, student: student - teacher)
    trainer = SGOPDTrainer(
        model=str(checkpoint_path("noisy")),
        reward_funcs=exact_answer_reward,
        args=tiny.make_args(
            tmp_path / "run",
            sign_gated_extrapolation=False,
            teacher_sampling_enable=False,
            max_steps=40,
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=SOLUTION_TOKENS,
            learning_rate=1e-3,
        ),
        train_dataset=make_dataset("train", 2000),
        teacher_model=str(checkpoint_path("nine")),
    )
    trainer.train()
    sign = -1 if flipped else 1  # the estimate is logged from the same, patched a2
    kl = [sign * line["reverse_kl"] for line in trainer.state.log_history if "reverse_kl" in line]
    score = evaluate(
        trainer.model,
        trainer.processing_class,
        make_dataset("test", 40),
        exact_answer_reward,
        max_new_tokens=SOLUTION_TOKENS,
    )
    if flipped:
        assert kl[-1] > 1.5 * kl[0]
        assert score["avg@8"] < 0.05
    else:
        assert kl[-1] < 0.5 * kl[0]
        assert score["avg@8"] > 0.45
