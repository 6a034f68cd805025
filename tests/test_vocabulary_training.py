"""Training on losses over the vocabulary: the trainer's gradients against the loss written a second time from full logits."""

import itertools

import pytest
import tiny
import torch
from peft import LoraConfig
from reference import StepRecorder, relative_error
from transformers import AutoModelForCausalLM

from sgopd_trl import SGOPDTrainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "student", seed=0)
    tiny.make_model(root / "teacher", seed=1, hidden=32, scale=0.3)
    tiny.make_model(root / "padded", seed=1, vocab_size=40)
    tiny.make_model(root / "second", seed=2, vocab_size=30)
    return root


def make_trainer(folders, tmp_path, teacher="teacher", *, trainer_kwargs=None, **overrides) -> SGOPDTrainer:
    settings = dict(reverse_kl="full_vocabulary", teacher_sampling_enable=False, max_grad_norm=0.0, max_steps=1)
    arguments = dict(
        model=str(folders / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=tiny.make_args(tmp_path / "run", **(settings | overrides)),
        train_dataset=tiny.dataset(),
        teacher_model=str(folders / teacher),
    )
    return SGOPDTrainer(**(arguments | (trainer_kwargs or {})))


def train_recorded(trainer) -> list[dict]:
    recorder = StepRecorder().watch(trainer)
    trainer.train()
    return recorder.steps


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def log_probabilities(model, prompt, completion, temperature=1.0):
    """(L, V) over the tokenizer's vocabulary."""
    logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, : tiny.VOCABULARY]
    return (logits / temperature).log_softmax(-1)


def rows_of(steps):
    """Each rollout of a step: prompt, completion, a1 and a2."""
    for batch in steps["batches"]:
        for row in range(len(batch["prompt_ids"])):
            length = int(batch["completion_mask"][row].sum())
            yield (
                batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist(),
                batch["completion_ids"][row, :length].tolist(),
                batch["outcome_advantages"][row].item(),
                batch["a2"][row, :length],
                batch.get("teacher_index", torch.zeros(len(batch["prompt_ids"])))[row],
            )


def gated_loss(
    student,
    teachers,
    reference,
    step,
    *,
    mode="interp",
    beta=1.0,
    high=1.8,
    base=1.0,
    gate=True,
    tau=2.0,
    temperature=1.0,
):
    """One step's loss, a sequence and a token at a time."""
    rows = list(rows_of(step))
    phis = [torch.ones_like(a2) if tau is None else (tau / a2.abs()).clamp(max=1) for *_, a2, _ in rows]
    mean_phi = torch.cat(phis).mean()
    loss = 0.0
    for (prompt, completion, a1, a2, index), phi in zip(rows, phis, strict=True):
        s = log_probabilities(student, prompt, completion, temperature)
        with torch.no_grad():
            t, r = (
                log_probabilities(model, prompt, completion, temperature) for model in (teachers[int(index)], reference)
            )
        for position, token in enumerate(completion):
            kl = (s[position].exp() * (s[position] - t[position])).sum()
            extra = (s[position].exp() * (t[position] - r[position])).sum()
            if not gate:
                of_token = kl - (base - 1) * extra
            elif a1 * a2[position] > 0:
                of_token = kl - (high - 1) * extra
            else:
                of_token = {
                    "interp": beta * kl,
                    "preserve": kl - (base - 1) * extra,
                    "mask": 0 * kl,
                    "grpo": -a1 * (s[position, token] - s[position, token].detach()).exp(),
                }[mode]
            loss = loss + of_token * phi[position] / mean_phi / len(completion) / len(rows)
    return loss


def gradients_of(loss, model):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_as_written_twice(trainer, steps, folders, teachers=("teacher",), **settings):
    initial, teachers = load(folders / "student"), [load(folders / name) for name in teachers]
    for step in steps:
        student = load(folders / "student")
        student.load_state_dict(step["weights"])
        expected = gradients_of(gated_loss(student, teachers, initial, step, **settings), student)
        assert relative_error(step["gradients"], expected) < 1e-5


@pytest.mark.parametrize("teacher", ["teacher", "padded"])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_gradients_with_gate_phi_and_reference(folders, tmp_path, teacher, micro_batches):
    """Also with a teacher whose head is padded beyond the tokenizer, and at another temperature."""
    trainer = make_trainer(
        folders,
        tmp_path,
        teacher,
        max_steps=2,
        temperature=0.8,
        per_device_train_batch_size=8 // micro_batches,
        gradient_accumulation_steps=micro_batches,
    )
    steps = train_recorded(trainer)
    assert_as_written_twice(trainer, steps, folders, (teacher,), temperature=0.8)
    logged = [line for line in trainer.state.log_history if "sign/agree" in line]
    assert all(line["sign/agree"] > 0 and line["sign/disagree"] > 0 for line in logged)


@pytest.mark.parametrize(
    ("overrides", "settings"),
    [
        (dict(disagree_interp_beta=0.7), dict(beta=0.7)),
        (dict(disagree_mode="preserve", lambda_base=1.25), dict(mode="preserve", base=1.25)),
        (dict(disagree_mode="mask"), dict(mode="mask")),
        (dict(disagree_mode="grpo"), dict(mode="grpo")),
        (dict(sign_gated_extrapolation=False), dict(gate=False)),
        (dict(sign_gated_extrapolation=False, lambda_base=1.25), dict(gate=False, base=1.25)),
    ],
)
def test_every_fallback(folders, tmp_path, overrides, settings):
    trainer = make_trainer(folders, tmp_path, **overrides)
    assert_as_written_twice(trainer, train_recorded(trainer), folders, **settings)


def test_a_second_pass_takes_the_expectation_under_the_policy_as_it_is(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, num_iterations=2, max_steps=2)
    steps = train_recorded(trainer)
    steps[1]["batches"] = steps[0]["batches"]
    assert_as_written_twice(trainer, steps, folders)
    assert (steps[0]["gradients"]["lm_head.weight"] != steps[1]["gradients"]["lm_head.weight"]).any()


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_each_row_has_its_own_teacher(folders, tmp_path, micro_batches):
    names = ["one", "two"] * 32
    trainer = make_trainer(
        folders,
        tmp_path,
        per_device_train_batch_size=8 // micro_batches,
        gradient_accumulation_steps=micro_batches,
        num_generations=2,
        trainer_kwargs=dict(
            teacher_model={"one": str(folders / "padded"), "two": str(folders / "second")},
            train_dataset=tiny.dataset().add_column("teacher", names),
        ),
    )
    steps = train_recorded(trainer)
    assert {int(index) for *_, index in rows_of(steps[0])} == {0, 1}
    assert_as_written_twice(trainer, steps, folders, ("padded", "second"))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_with_the_disabled_adapter_as_reference(folders, tmp_path, checkpointing):
    import copy

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make_trainer(
        folders, tmp_path, gradient_checkpointing=checkpointing, trainer_kwargs={"peft_config": config}
    )
    assert trainer.reference is None
    initial = copy.deepcopy(trainer.model)
    (step,) = train_recorded(trainer)
    del initial.base_model.model.forward  # the plain forward again, not TRL's patched one
    loss = gated_loss(initial, [load(folders / "teacher")], load(folders / "student"), step)
    assert relative_error(step["gradients"], gradients_of(loss, initial)) < 1e-5


def test_trls_own_reference_is_used_where_there_is_one(folders, tmp_path):
    """TRL's KL term on top: the difference to the run without it is that term's gradient alone."""
    trainer = make_trainer(folders, tmp_path, beta=0.05)
    assert trainer.reference is None
    (step,) = train_recorded(trainer)
    # At the first step student and reference are the same, and the k3 estimate has no gradient
    assert_as_written_twice(trainer, [step], folders)


def test_gradient_checkpointing_and_an_offloaded_teacher_change_nothing(folders, tmp_path):
    gradients = []
    for number, overrides in enumerate([{}, dict(gradient_checkpointing=True), dict(teacher_offload=True)]):
        trainer = make_trainer(folders, tmp_path / str(number), **overrides)
        gradients.append(train_recorded(trainer)[0]["gradients"])
    for other in gradients[1:]:
        assert relative_error(gradients[0], other) < 1e-6


@pytest.mark.parametrize("lam", [1.0, 1.8])
def test_the_gradient_is_the_expectation_of_the_sampled_tokens_by_enumeration(folders, tmp_path, lam):
    """Every completion of two tokens, weighted by its probability: both forms have the same expected update."""
    length, prompt, gradients = 2, torch.tensor([[5, 9, 20, 7]]), []
    completions = torch.tensor(list(itertools.product(range(tiny.VOCABULARY), repeat=length)))
    count = len(completions)
    for form in ("sampled_token", "full_vocabulary"):
        trainer = make_trainer(
            folders,
            tmp_path / form,
            reverse_kl=form,
            sign_gated_extrapolation=False,
            lambda_base=lam,
            stability_tau=None,
            reference_model_name_or_path=None if lam == 1 else str(folders / "second"),
        )
        trainer.model.train()
        trainer.teacher_names = ["teacher"] * count
        batch = {
            "prompt_ids": prompt.expand(count, -1),
            "prompt_mask": torch.ones(count, prompt.size(1), dtype=torch.long),
            "completion_ids": completions,
            "completion_mask": torch.ones_like(completions),
            "advantages": torch.zeros(count),
            "num_items_in_batch": torch.tensor(count * length),
        }
        batch = batch | trainer.scorer.score(batch)
        (batch,) = trainer._route([batch])
        probability = batch["student_logps"].sum(1, keepdim=True).exp() * count * length
        batch["advantages"] = batch["advantages"] * probability
        if form == "full_vocabulary":
            assert (batch["advantages"] == 0).all()
            batch["vocabulary_weights"] = batch["vocabulary_weights"] * probability
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()})
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() / expected.norm() < 1e-5, name


def test_top_k_nears_the_exact_gradient(folders, tmp_path):
    gradients = {}
    for k in (None, 2, 8, 16, 24):
        trainer = make_trainer(folders, tmp_path / str(k), reverse_kl_top_k=k)
        gradients[k] = train_recorded(trainer)[0]["gradients"]
    errors = [relative_error(gradients[k], gradients[None]) for k in (2, 8, 16, 24)]
    assert errors[0] > errors[1] > errors[2] > errors[3] == 0


def aopd_loss(student, teacher, step, top_k):
    """AOPD's Eq. 10: positive tokens' policy gradient, the others' forward KL to the teacher's k most likely tokens."""
    rows = list(rows_of(step))
    loss, kinds = 0.0, set()
    for prompt, completion, _, a2, _ in rows:
        s = log_probabilities(student, prompt, completion)
        with torch.no_grad():
            t = log_probabilities(teacher, prompt, completion)
        for position, token in enumerate(completion):
            kinds.add(bool(a2[position] > 0))
            if a2[position] > 0:
                of_token = -a2[position] * (s[position, token] - s[position, token].detach()).exp()
            else:
                chosen = sorted(range(tiny.VOCABULARY), key=lambda v: -t[position, v])[:top_k]
                mass = sum(t[position, v].exp() for v in chosen)
                of_token = sum(
                    t[position, v].exp() / mass * (t[position, v] - mass.log() - s[position, v]) for v in chosen
                )
            loss = loss + of_token / len(completion) / len(rows)
    assert kinds == {True, False}
    return loss


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("top_k", [4, 100])
def test_aopd(folders, tmp_path, micro_batches, top_k):
    trainer = make_trainer(
        folders,
        tmp_path,
        reverse_kl="sampled_token",
        negative_advantage_mode="forward_kl",
        forward_kl_top_k=top_k,
        sign_gated_extrapolation=False,
        stability_tau=None,
        max_steps=2,
        per_device_train_batch_size=8 // micro_batches,
        gradient_accumulation_steps=micro_batches,
    )
    teacher = load(folders / "teacher")
    for step in train_recorded(trainer):
        student = load(folders / "student")
        student.load_state_dict(step["weights"])
        expected = gradients_of(aopd_loss(student, teacher, step, top_k), student)
        assert relative_error(step["gradients"], expected) < 1e-5


def test_the_loss_is_logged_and_evaluated(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, sign_gated_extrapolation=False, stability_tau=None)
    (step,) = train_recorded(trainer)
    student, teacher = load(folders / "student"), load(folders / "teacher")
    expected = gated_loss(student, [teacher], student, step, gate=False, tau=None)
    (line,) = [line for line in trainer.state.log_history if "loss" in line]
    assert line["loss"] == pytest.approx(expected.item(), rel=1e-4)
    assert line["reverse_kl"] != 0
    metrics = trainer.evaluate(tiny.dataset(4))
    assert metrics["eval_loss"] > 0  # a KL divergence


def passes_of(model, trainer) -> list[int]:
    """Sequences of each forward pass of a model while the trainer trains."""
    sequences = []
    hook = model.register_forward_pre_hook(
        lambda module, args, kwargs: sequences.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    trainer.train()
    hook.remove()
    return sequences


def test_the_reference_runs_once_over_extrapolated_tokens_and_not_for_a_metric_alone(folders, tmp_path):
    settings = dict(sign_gated_extrapolation=False, lambda_base=1.25, max_steps=1)
    trainer = make_trainer(folders, tmp_path, **settings)
    assert passes_of(trainer.reference.model, trainer) == [8]
    (logged,) = [line for line in trainer.state.log_history if "sign/agree" in line]
    assert "sign/flips" not in logged and "reference/saved_share" not in logged and "reverse_kl" in logged
    # Its sampled-token form, and AOPD's policy gradient where a2 > 0, extrapolate the sampled token
    for number, mode in enumerate(("policy_gradient", "forward_kl")):
        other = make_trainer(
            folders, tmp_path / str(number), reverse_kl="sampled_token", negative_advantage_mode=mode, **settings
        )
        assert passes_of(other.reference.model, other) == [8]
        (logged,) = [line for line in other.state.log_history if "sign/agree" in line]
        assert "sign/flips" in logged and logged["reference/saved_share"] == 0


def test_a_reference_that_is_not_finite_is_named(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path)
    with torch.no_grad():
        trainer.reference.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="reference's last hidden states are not finite"):
        trainer.train()


def test_a_token_beyond_the_references_embedding_is_named(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path)
    reference = trainer.reference.model
    reference.set_input_embeddings(torch.nn.Embedding(5, reference.config.hidden_size))
    with pytest.raises(ValueError, match=r"sampled token \d+, but the reference's embedding has 5 rows"):
        trainer.train()


def test_sequences_without_a_token_and_masked_ones(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, mask_truncated_completions=True, max_completion_length=3)
    (step,) = train_recorded(trainer)
    masks = torch.cat([batch["completion_mask"].any(1) for batch in step["batches"]])
    assert not masks.all()
    assert all(torch.isfinite(gradient).all() for gradient in step["gradients"].values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(teacher_server_url=["http://localhost:1"]), "teacher_server_url"),
        (dict(teacher_recorded_path="x"), "teacher_recorded_path"),
        (dict(teacher_record_path="x"), "teacher_record_path"),
        (dict(loss_type="dapo"), "loss_type"),
        (dict(top_entropy_quantile=0.8), "top_entropy_quantile"),
        (dict(off_policy_mask_threshold=0.5), "off_policy_mask_threshold"),
        (dict(use_vllm=True, vllm_importance_sampling_mode="sequence_mask"), "vllm_importance_sampling_mode"),
        (dict(negative_advantage_mode="forward_kl"), "Choose one of them"),
        (dict(reverse_kl="sampled_token", reverse_kl_top_k=4), "reverse_kl_top_k"),
        (dict(reverse_kl="sampled_token", negative_advantage_mode="forward_kl"), "sign_gated_extrapolation"),
    ],
)
def test_what_cannot_be_together_is_refused_early(tmp_path, overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny.make_args(tmp_path, **(dict(reverse_kl="full_vocabulary") | overrides))


def test_a_teacher_that_gives_the_sampled_token_alone_is_refused(folders, tmp_path):
    from plain_teacher import PlainTeacher

    with pytest.raises(ValueError, match="'teacher' is a PlainTeacher"):
        make_trainer(folders, tmp_path, trainer_kwargs={"teacher_model": PlainTeacher(str(folders / "teacher"))})
    with pytest.raises(ValueError, match="served at"):
        served = {"one": dict(model_name_or_path=str(folders / "teacher"), server_url=["http://localhost:1"])}
        make_trainer(folders, tmp_path, teachers=served, trainer_kwargs={"teacher_model": None})
