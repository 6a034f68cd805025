"""The trainer's gradients against a reference written a second time, and against TRL's where they must coincide."""

import copy

import pytest
import tiny
import torch
from peft import LoraConfig
from reference import (
    StepRecorder,
    relative_error,
    sequence_logps,
    sg_opd_loss,
    unpad,
    unpad_teacher,
)
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

from sgopd_trl import SGOPDTrainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "student", seed=0)
    tiny.make_model(root / "teacher", seed=1, hidden=32, scale=0.3)
    tiny.make_model(root / "padded", seed=1, vocab_size=40)
    return root


def make_trainer(folders, tmp_path, teacher="teacher", *, trainer_kwargs=None, **overrides) -> SGOPDTrainer:
    arguments = dict(
        model=str(folders / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=tiny.make_args(tmp_path / "run", **overrides),
        train_dataset=tiny.dataset(),
        teacher_model=str(folders / teacher),
    )
    return SGOPDTrainer(**(arguments | (trainer_kwargs or {})))


def train_recorded(trainer) -> list[dict]:
    """Trains at once, so that the global random state is as the trainer seeded it, and returns what each step did."""
    recorder = StepRecorder().watch(trainer)
    trainer.train()
    return recorder.steps


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def add_logps(rollouts, **models):
    with torch.no_grad():
        for rollout in rollouts:
            for name, model in models.items():
                rollout[name] = sequence_logps(model, rollout["prompt"], rollout["completion"])
    return rollouts


def logged(trainer, name):
    return [line[name] for line in trainer.state.log_history if name in line]


@pytest.mark.parametrize("teacher", ["teacher", "padded"])
def test_gradients_of_a_step_with_gate_phi_reference_and_teacher_sampling(folders, tmp_path, teacher):
    """Also with a teacher whose embedding is padded beyond the tokenizer."""
    trainer = make_trainer(
        folders, tmp_path, teacher, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4
    )
    steps = train_recorded(trainer)
    initial, teacher_model = load(folders / "student"), load(folders / teacher)
    seen_teacher_rollouts = 0
    for number, step in enumerate(steps):
        student = load(folders / "student")
        student.load_state_dict(step["weights"])
        rollouts = add_logps(unpad(step["batches"]), old=student, teacher=teacher_model, reference=initial)
        teacher_rollouts = unpad_teacher(step["batches"])
        seen_teacher_rollouts += len(teacher_rollouts)
        loss = sg_opd_loss(student, rollouts, teacher_rollouts=teacher_rollouts, alpha=0.1)
        loss.backward()
        expected = {name: parameter.grad for name, parameter in student.named_parameters()}
        clip = min(1.0, 1.0 / torch.stack([g.norm() for g in expected.values()]).norm().item())
        expected = {name: gradient * clip for name, gradient in expected.items()}
        assert relative_error(step["gradients"], expected) < 1e-5
        assert logged(trainer, "loss")[number] == pytest.approx(loss.item(), rel=1e-3)
    assert seen_teacher_rollouts > 0
    assert logged(trainer, "teacher_sampling/alpha") == [0.1] * 4


def test_gradients_of_a_second_pass_over_the_same_rollouts(folders, tmp_path):
    """num_iterations = 2: the advantages keep the old policy, PPO's ratio moves and clips."""
    trainer = make_trainer(folders, tmp_path, num_iterations=2, teacher_sampling_enable=False, max_grad_norm=0.0)
    steps = train_recorded(trainer)
    initial, teacher = load(folders / "student"), load(folders / "teacher")
    rollouts = add_logps(unpad(steps[0]["batches"]), old=initial, teacher=teacher, reference=initial)
    for step in steps:
        student = load(folders / "student")
        student.load_state_dict(step["weights"])
        sg_opd_loss(student, rollouts).backward()
        expected = {name: parameter.grad for name, parameter in student.named_parameters()}
        assert relative_error(step["gradients"], expected) < 1e-5
    assert logged(trainer, "clip_ratio/region_mean")[1] > 0  # the second pass was really off-policy


def test_lora_gradients_with_the_disabled_adapter_as_reference(folders, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make_trainer(
        folders,
        tmp_path,
        teacher_sampling_enable=False,
        max_grad_norm=0.0,
        trainer_kwargs={"peft_config": config},
    )
    assert trainer.reference is None
    initial = copy.deepcopy(trainer.model)
    steps = train_recorded(trainer)
    base, teacher = load(folders / "student"), load(folders / "teacher")
    del initial.base_model.model.forward  # the plain forward again, not TRL's patched one
    for step in steps:
        initial.load_state_dict(step["weights"])
        initial.zero_grad()
        rollouts = add_logps(unpad(step["batches"]), old=initial, teacher=teacher, reference=base)
        sg_opd_loss(initial, rollouts).backward()
        expected = {name: p.grad for name, p in initial.named_parameters() if p.grad is not None}
        assert relative_error(step["gradients"], expected) < 1e-5


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_everything_off_with_a1_is_stock_grpo(folders, tmp_path, micro_batches):
    """To the bit where the shapes are the same; several micro-batches are trimmed, which rounds differently."""
    shared = dict(
        loss_type="grpo",
        max_steps=3,
        per_device_train_batch_size=8 // micro_batches,
        gradient_accumulation_steps=micro_batches,
    )
    ours = make_trainer(
        folders,
        tmp_path,
        gate="never",
        disagree_mode="grpo",
        stability_tau=None,
        teacher_sampling_enable=False,
        **shared,
    )
    our_steps = train_recorded(ours)
    settings = tiny.make_args(tmp_path / "run", **shared).to_dict()
    names = GRPOConfig.__dataclass_fields__.keys()
    settings = {
        name: value
        for name, value in settings.items()
        if name in names and name not in ("generation_batch_size", "steps_per_generation")
    }
    stock = GRPOTrainer(
        model=str(folders / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=GRPOConfig(**settings),
        train_dataset=tiny.dataset(),
    )
    stock_steps = train_recorded(stock)
    assert logged(ours, "loss") == pytest.approx(logged(stock, "loss"), abs=1e-6) and any(logged(ours, "loss"))
    for our_step, stock_step in zip(our_steps, stock_steps, strict=True):
        if micro_batches == 1:
            assert relative_error(our_step["gradients"], stock_step["gradients"]) == 0
        assert relative_error(our_step["gradients"], stock_step["gradients"]) < 1e-5


@pytest.mark.parametrize("loss_type", ["bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo"])
def test_other_loss_types_and_options_of_grpo_consume_the_same_advantages(folders, tmp_path, loss_type):
    trainer = make_trainer(
        folders,
        tmp_path,
        max_steps=1,
        loss_type=loss_type,
        entropy_coef=0.01,
        mask_truncated_completions=True,
        top_entropy_quantile=0.8,
        off_policy_mask_threshold=0.5,
        beta=0.05,
        **({"vllm_importance_sampling_mode": "token_truncate"} if loss_type == "vespo" else {}),
    )
    (batch,) = train_recorded(trainer)[0]["batches"]
    assert batch["advantages"].shape == batch["completion_ids"].shape
    assert trainer.reference is None  # TRL's KL term has the same reference: it is not loaded twice
    assert torch.isfinite(torch.tensor(logged(trainer, "grad_norm"))).all()


def test_logprobs_kept_while_sampling_agree_with_a_fresh_pass(folders, tmp_path):
    kept = make_trainer(folders, tmp_path, temperature=0.7, top_k=5)
    (first,) = train_recorded(kept)[0]["batches"]
    fresh = make_trainer(folders, tmp_path, temperature=0.7, top_k=5, reuse_sampling_logps=False)
    (second,) = train_recorded(fresh)[0]["batches"]
    assert torch.equal(first["completion_ids"], second["completion_ids"])
    mask = first["completion_mask"].bool()
    torch.testing.assert_close(first["student_logps"][mask], second["student_logps"][mask], atol=2e-6, rtol=1e-5)
    assert "sampling_per_token_logps" in first and "sampling_per_token_logps" not in second
    assert logged(kept, "seconds/old") == [0, 0] and min(logged(fresh, "seconds/old")) > 0


def test_no_teacher_rollout_is_asked_for_once_alpha_is_zero(folders, tmp_path, monkeypatch):
    trainer = make_trainer(
        folders,
        tmp_path,
        max_steps=4,
        teacher_sampling_phase1_end_frac=0.25,
        teacher_sampling_phase2_end_frac=0.5,
        teacher_sft_alpha_0=0.5,
        teacher_sft_alpha_end=0.2,
    )
    asked = []
    generate = trainer.teacher.generate
    monkeypatch.setattr(
        trainer.teacher, "generate", lambda *a, **k: asked.append(trainer.state.global_step + 1) or generate(*a, **k)
    )
    trainer.train()
    assert asked == [1, 2]
    assert logged(trainer, "teacher_sampling/alpha") == [0.5, 0.2, 0.0, 0.0]
    assert logged(trainer, "teacher_sampling/loss")[2:] == [0, 0]


def test_wrong_teacher_rollouts_are_filtered_unless_the_filter_is_off(folders, tmp_path):
    for filtered in (True, False):
        output = tmp_path / str(filtered)
        trainer = make_trainer(folders, output, max_steps=3, teacher_sampling_filter_correct=filtered)
        rollouts = [rollout for step in train_recorded(trainer) for rollout in unpad_teacher(step["batches"])]
        texts = [trainer.processing_class.decode(completion, skip_special_tokens=True) for _, completion in rollouts]
        verdicts = tiny.even_digits_reward(texts)
        if filtered:
            assert len(rollouts) == sum(logged(trainer, "teacher_sampling/verified")) and all(verdicts)
        else:
            assert len(rollouts) == sum(logged(trainer, "teacher_sampling/asked")) and not all(verdicts)


def test_teacher_prompts_are_distinct_from_the_students(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, max_steps=3)
    for step in train_recorded(trainer):
        mine = {tuple(rollout["prompt"]) for rollout in unpad(step["batches"])}
        assert mine.isdisjoint(tuple(prompt) for prompt, _ in unpad_teacher(step["batches"]))


def test_truncated_rollouts_get_reward_zero_and_keep_the_teachers_signal(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, max_steps=1, max_completion_length=2, zero_truncated_reward=True)
    (batch,) = train_recorded(trainer)[0]["batches"]
    ended = (batch["completion_ids"] == trainer.processing_class.eos_token_id).any(1)
    assert not ended.all()
    assert (batch["advantages"][~ended] != 0).any()
    rewards = torch.tensor(list(trainer._logs["rewards"]["even_digits_reward"]))
    assert rewards.sum() <= ended.sum()


def test_reference_is_not_asked_for_groups_without_consensus(folders, tmp_path, monkeypatch):
    """All rewards equal: a1 = 0, no token is extrapolated, no reference pass is made."""
    trainer = make_trainer(folders, tmp_path, max_steps=1)
    trainer.reward_funcs = [lambda completions, **kwargs: [1.0] * len(completions)]
    monkeypatch.setattr(trainer.reference.model, "forward", lambda *a, **k: pytest.fail("the reference was asked"))
    trainer.train()
    assert logged(trainer, "reference/saved_share") == [1.0]
    assert logged(trainer, "sign/neutral") == [1.0]


def test_reward_correction_uses_another_reference(folders, tmp_path):
    trainer = make_trainer(
        folders,
        tmp_path,
        max_steps=1,
        reference_model_name_or_path=str(folders / "teacher"),
        max_grad_norm=0.0,
        teacher_sampling_enable=False,
    )
    steps = train_recorded(trainer)
    student, teacher = load(folders / "student"), load(folders / "teacher")
    rollouts = add_logps(unpad(steps[0]["batches"]), old=student, teacher=teacher, reference=teacher)
    sg_opd_loss(student, rollouts).backward()
    expected = {name: parameter.grad for name, parameter in student.named_parameters()}
    assert relative_error(steps[0]["gradients"], expected) < 1e-5


def test_evaluation_reports_the_same_objective(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, max_steps=1, per_device_eval_batch_size=8)
    metrics = trainer.evaluate(tiny.dataset(4))
    assert {"eval_loss", "eval_reward", "eval_reverse_kl", "eval_sign/agree"} <= metrics.keys()


def test_chord_weights_scale_the_anchor(folders, tmp_path):
    losses = []
    for phi in ("none", "chord"):
        trainer = make_trainer(
            folders,
            tmp_path,
            max_steps=1,
            teacher_sft_phi=phi,
            teacher_sft_reduction="sum",
            teacher_sampling_filter_correct=False,
        )
        trainer.train()
        losses += logged(trainer, "teacher_sampling/loss")
    assert 0 < losses[1] < losses[0] / 4


def test_penalties_stay_on_truncated_rollouts(folders, tmp_path):
    """Only what a truncated rollout has earned is taken; a rollout that ends without the token is not truncated."""
    trainer = make_trainer(folders, tmp_path, zero_truncated_reward=True, max_completion_length=3)
    trainer.reward_funcs = [lambda completions, **kwargs: [1.0, -0.5, 1.0, 1.0]]
    eos = trainer.processing_class.eos_token_id
    ids = [[5, 6, 7], [5, 6, 7], [5, 6], [5, 6, eos]]
    rewards = trainer._calculate_rewards([{"prompt": "1"}] * 4, ["1"] * 4, ["a"] * 4, ids)
    assert rewards.squeeze(1).tolist() == [0.0, -0.5, 1.0, 1.0]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_groups_with_equal_rewards_are_neutral_to_the_bit(folders, tmp_path, aggregation):
    """TRL's group mean can miss equal rewards by a rounding error, whose sign would open the gate."""
    trainer = make_trainer(
        folders,
        tmp_path,
        max_steps=1,
        multi_objective_aggregation=aggregation,
        teacher_sampling_enable=False,
        num_generations=4,
        per_device_train_batch_size=8,
    )
    trainer.reward_funcs = [lambda completions, **kwargs: [0.9] * 4 + [0.1, 0.7, 0.1, 0.1]]
    (batch,) = train_recorded(trainer)[0]["batches"]
    assert sorted((batch["outcome_advantages"] == 0).tolist()) == [False] * 4 + [True] * 4


def test_the_ratio_holds_where_optimizer_steps_share_a_prompt(folders, tmp_path):
    """Half a student prompt an optimizer step, rho 1/2: one teacher prompt for two steps."""
    trainer = make_trainer(
        folders,
        tmp_path,
        max_steps=4,
        num_generations=8,
        per_device_train_batch_size=4,
        steps_per_generation=2,
        teacher_sampling_filter_correct=False,
    )
    rollouts = [rollout for step in train_recorded(trainer) for rollout in unpad_teacher(step["batches"])]
    assert len(rollouts) == 2


def test_a_peft_teacher_scores_as_its_merged_self(folders, tmp_path):
    from peft import get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    teacher = get_peft_model(load(folders / "teacher"), config)
    merged = copy.deepcopy(teacher).merge_and_unload()
    trainer = make_trainer(
        folders, tmp_path, max_steps=1, teacher_sampling_enable=False, trainer_kwargs={"teacher_model": teacher}
    )
    (batch,) = train_recorded(trainer)[0]["batches"]
    rollouts = add_logps(unpad([batch]), expected=merged)
    for row, rollout in enumerate(rollouts):
        scored = batch["teacher_logps"][row, : len(rollout["completion"])]
        torch.testing.assert_close(scored, rollout["expected"], atol=1e-5, rtol=1e-5)


def test_a_trained_adapter_keeps_its_own_start_as_reference(folders, tmp_path):
    """A PeftModel that was trained before: the reference is base plus adapter, not the base alone."""
    from peft import get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    student = get_peft_model(load(folders / "student"), config)
    initial = copy.deepcopy(student).merge_and_unload()
    trainer = make_trainer(
        folders, tmp_path, teacher_sampling_enable=False, trainer_kwargs={"model": student}, learning_rate=0.1
    )
    batch = train_recorded(trainer)[1]["batches"][0]
    rollouts = add_logps(unpad([batch]), expected=initial)
    asked = (batch["reference_logps"] != batch["teacher_logps"]).any(1)
    assert asked.any()
    for row in asked.nonzero().squeeze(1).tolist():
        scored = batch["reference_logps"][row, : len(rollouts[row]["completion"])]
        torch.testing.assert_close(scored, rollouts[row]["expected"], atol=1e-5, rtol=1e-5)
