"""The baselines that TRL trains: their data, their losses against hand-made ones, what they log, what they refuse."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from baseline_bank import PROMPTS, QUIET_ON_CPU, fill, rollouts_of
from transformers import AutoModelForCausalLM

from sgopd_trl.baselines.rollouts import RolloutsOfPrompts, load_bank_data
from sgopd_trl.cli.train import build_trainer, parse, read_command_line
from sgopd_trl.miniature import checkpoint_path, make_dataset, make_tokenizer
from sgopd_trl.rollout_bank import rollout_key
from sgopd_trl.verifiers import Verifier, VerifierFailure


@pytest.fixture
def bank(tmp_path, folders) -> Path:
    return fill(tmp_path / "bank", folders / "teacher")


@pytest.fixture
def build(tmp_path, folders):
    """A trainer from a recipe with these settings, as `sgopd train` builds it."""

    def trainer(kind: str, **settings):
        common = {
            "trainer": kind,
            "model_name_or_path": str(folders / "student"),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "max_steps": 2,
            "save_strategy": "no",
            **QUIET_ON_CPU,
            "output_dir": str(tmp_path / "out"),
        }
        if kind == "sft":
            common |= {"teacher_bank": str(tmp_path / "bank")}
        else:
            common |= {"dataset_name": "miniature", "max_train_samples": PROMPTS, "max_completion_length": 12}
        if kind == "gkd":
            common |= {"teacher_model_name_or_path": str(folders / "teacher")}
        if kind == "grpo":
            common |= {"num_generations": 4, "reward_funcs": "exact_answer_reward"}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(common | settings))
        _, training, _ = read_command_line(["--config", str(path)])
        return build_trainer(*parse(training))

    return trainer


def logged(trainer, name: str) -> list:
    return [line[name] for line in trainer.state.log_history if name in line]


def sorted_by_key(rollouts):
    return sorted(rollouts, key=lambda r: rollout_key(r.prompt_ids, r.number, r.teacher))


def completion_logits(folder, rollout) -> torch.Tensor:
    """(l, V) logits of the completion's tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([rollout.prompt_ids + rollout.completion_ids])).logits[0]
    return logits[len(rollout.prompt_ids) - 1 : -1]


# SFT and SeqKD


@pytest.mark.parametrize("which", ["verified", "all"])
def test_sft_trains_on_exactly_the_rollouts_of_the_bank(which, bank, build, capsys):
    trainer = build("sft", teacher_rollouts=which)
    expected = [r for r in sorted_by_key(rollouts_of(bank)) if which == "all" or r.correct]
    assert trainer.train_dataset["input_ids"][:] == [r.prompt_ids + r.completion_ids for r in expected]
    assert trainer.train_dataset["labels"][:] == [[-100] * len(r.prompt_ids) + r.completion_ids for r in expected]
    assert type(trainer).__name__ == {"verified": "SFTOnRollouts", "all": "SeqKDTrainer"}[which]
    verified = sum(r.correct for r in rollouts_of(bank))
    assert 0 < verified < len(rollouts_of(bank))
    said = f"{len(expected)} of the {2 * PROMPTS} teacher rollouts in {bank}: {PROMPTS} prompts, {verified / PROMPTS / 2:.1%}"
    assert said in capsys.readouterr().out


def test_sft_takes_the_verified_ones_by_default(bank, build):
    assert len(build("sft").train_dataset) == sum(r.correct for r in rollouts_of(bank))


def test_the_loss_of_sft_is_the_cross_entropy_of_the_completion(bank, build, folders):
    rollouts = [r for r in rollouts_of(bank) if r.correct]
    trainer = build("sft", per_device_train_batch_size=len(rollouts), max_steps=1)
    trainer.train()
    total = tokens = 0
    for rollout in rollouts:
        logps = completion_logits(folders / "student", rollout).log_softmax(-1)
        total -= logps.gather(1, torch.tensor(rollout.completion_ids)[:, None]).sum().item()
        tokens += len(rollout.completion_ids)
    assert logged(trainer, "loss")[0] == pytest.approx(total / tokens, rel=1e-5)


def test_a_rollout_is_cut_only_where_that_is_asked_for(bank, build):
    assert build("sft").args.max_length is None
    longest = max(len(r.prompt_ids + r.completion_ids) for r in rollouts_of(bank))
    cut = build("sft", max_length=longest - 2)
    assert max(map(len, cut.train_dataset["input_ids"][:])) == longest - 2


def test_a_bank_with_rows_twice_gives_each_once(bank, build):
    data = bank / "data"
    first = next(data.glob("*.parquet"))
    (data / "again.parquet").write_bytes(first.read_bytes())
    assert len(build("sft", teacher_rollouts="all").train_dataset) == 2 * PROMPTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("absent", "holds no teacher rollouts.*sgopd teacher-rollouts --config RECIPE --prompts all --teacher_bank"),
        ("unverified", "none of the 32 rollouts in .* verified"),
        ("tokenizer", "token ids of another tokenizer"),
    ],
)
def test_banks_that_sft_refuses(change, message, tmp_path, folders, build):
    if change != "absent":
        fill(tmp_path / "bank", folders / "teacher", correct=lambda n: change != "unverified")
    if change == "tokenizer":
        manifest = json.loads((tmp_path / "bank" / "bank.json").read_text())
        manifest["teachers"]["teacher"]["tokenizer_hash"] = "0123"
        (tmp_path / "bank" / "bank.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=message):
        build("sft")


# GKD


def test_gkd_without_the_student_trains_on_the_banks_rollouts(bank, build, folders):
    """lambda = 0: the first step's loss is the forward KL on the teacher's rollouts, over the whole vocabulary."""
    trainer = build("gkd", lmbda=0.0, teacher_bank=str(bank), per_device_train_batch_size=PROMPTS, max_steps=1)
    seen = []
    loss = trainer._compute_loss
    trainer._compute_loss = lambda student, inputs, items: (seen.append(inputs), loss(student, inputs, items))[1]
    trainer.train()
    (inputs,) = seen
    ours = {
        (tuple(p[m.bool()].tolist()), tuple(c[n.bool()].tolist()))
        for p, m, c, n in zip(*(inputs[k] for k in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")))
    }
    by_pair = {(tuple(r.prompt_ids), tuple(r.completion_ids)): r for r in rollouts_of(bank)}
    assert len(ours) == PROMPTS and ours <= by_pair.keys()
    total = tokens = 0
    for pair in ours:
        teacher, student = (
            completion_logits(folders / role, by_pair[pair]).log_softmax(-1) for role in ("teacher", "student")
        )
        total += (teacher.exp() * (teacher - student)).sum().item()
        tokens += len(pair[1])
    assert logged(trainer, "loss")[0] == pytest.approx(total / tokens, rel=1e-4)
    assert logged(trainer, "gkd/on_policy") == [0.0]
    assert not logged(trainer, "completions/mean_length") and not logged(trainer, "entropy")
    assert len(logged(trainer, "off_policy/completions/mean_length")) == len(logged(trainer, "off_policy/entropy")) == 1


def test_gkd_on_policy_needs_no_bank_and_logs_what_sgopd_does(build):
    trainer = build("gkd", reward_funcs="exact_answer_reward")
    assert (trainer.args.lmbda, trainer.args.beta, trainer.temperature) == (1.0, 0.0, 1.0)  # Figure 1 of the GKD paper
    trainer.train()
    for name in ("reward", "completions/mean_length", "entropy", "loss"):
        assert len(logged(trainer, name)) == 2, name
    assert logged(trainer, "gkd/on_policy") == [1.0, 1.0]


def test_the_mixture_of_gkd_depends_on_the_seed_and_the_step_alone(bank, build):
    def draws(**settings):
        trainer = build("gkd", lmbda=0.4, teacher_bank=str(bank), **settings)
        trainer.model.train()
        found = []
        for step in range(400):
            trainer.state.global_step = step
            found.append(trainer.on_policy)
        return found

    first = draws()
    assert first == draws() and first != draws(seed=1)
    assert 0.3 < sum(first) / 400 < 0.5  # 0.4 and four standard errors


def test_gkd_takes_one_of_the_prompts_rollouts_in_turn(bank):
    picker = RolloutsOfPrompts(load_bank_data(str(bank), make_tokenizer(), "all"))
    rollout = rollouts_of(bank)[0]
    both = [r.completion_ids for r in sorted_by_key(rollouts_of(bank)) if r.prompt_ids == rollout.prompt_ids]
    assert [picker.pick(rollout.prompt_ids, number) for number in range(4)] == both + both
    assert [0] not in picker


def test_gkd_on_verified_rollouts_leaves_the_other_prompts_out(bank, build, capsys):
    trainer = build("gkd", lmbda=0.5, teacher_bank=str(bank), teacher_rollouts="verified")
    solved = {tuple(r.prompt_ids) for r in rollouts_of(bank) if r.correct}
    assert 0 < len(trainer.train_dataset) == len(solved) < PROMPTS
    assert f"{PROMPTS - len(solved)} of {PROMPTS} prompts without a verified rollout" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lmbda": 0.5}, "name their folder as `teacher_bank`"),
        ({"lmbda": 1.5}, r"`lmbda` must be in \[0, 1\], got 1.5"),
        (
            {"max_train_samples": PROMPTS + 3, "teacher_bank": "bank", "lmbda": 0},
            "no rollout of 3 of the 19 training prompts",
        ),
        (
            {"teacher_model_name_or_path": "miniature:clean", "teacher_bank": "bank", "lmbda": 0},
            "are another teacher's. model: ",
        ),
        ({"teacher_model_name_or_path": None}, "`teacher_model_name_or_path` is needed"),
    ],
)
def test_what_gkd_refuses(settings, message, bank, build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        build("gkd", **settings)


# GRPO


def test_grpo_is_trls_and_logs_what_sgopd_does(build):
    trainer = build(
        "grpo",
        bf16=False,
        eval_strategy="steps",
        eval_steps=2,
        per_device_eval_batch_size=64,
        dataset_test_split="test",
    )
    trainer.train()
    for name in ("reward", "completions/mean_length", "entropy", "loss"):
        assert len(logged(trainer, name)) == 2, name
    assert len(logged(trainer, "eval_avg@4")) == len(logged(trainer, "eval_pass@4")) == 1


@pytest.mark.parametrize("kind", ["grpo", "gkd"])
def test_a_failing_verifier_stops_the_baseline(kind, build):
    trainer = build(kind, reward_funcs="baseline_bank.broken", max_steps=20, per_device_train_batch_size=16)
    (verifier,) = trainer.verifiers
    assert isinstance(verifier, Verifier)
    with pytest.raises(VerifierFailure):
        trainer.train()


# All


@pytest.mark.parametrize(
    ("kind", "setting", "message"),
    [
        ("grpo", {"teacher_rollouts": "all"}, "`teacher_rollouts` = all means nothing to `trainer: grpo`"),
        ("sft", {"max_train_samples": 8}, "`max_train_samples` = 8 means nothing to `trainer: sft`: .* give it to"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(kind, setting, message, bank, build):
    with pytest.raises(ValueError, match=message):
        build(kind, **setting)


def test_gkds_teacher_must_have_the_students_tokenizer(build, tmp_path):
    shutil.copytree(checkpoint_path("clean"), tmp_path / "teacher")
    tokenizer = json.loads((tmp_path / "teacher" / "tokenizer.json").read_text())
    ids = tokenizer["model"]["vocab"]
    ids["1"], ids["2"] = ids["2"], ids["1"]
    (tmp_path / "teacher" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="must share one tokenizer, .* 2 tokens differ: '1'"):
        build("gkd", teacher_model_name_or_path=str(tmp_path / "teacher"))


@pytest.mark.parametrize("kind", ["gkd", "grpo"])
def test_long_prompts_are_left_out(kind, build, tmp_path, capsys):
    rows = [row | {"prompt": row["prompt"][0]["content"]} for row in make_dataset("train", PROMPTS)]
    rows[3]["prompt"] += "+1" * 20
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dataset_name": str(tmp_path / "data.jsonl")}
    assert len(build(kind, **data).train_dataset) == PROMPTS
    trainer = build(kind, **data, max_prompt_length=40)
    kept = [prompt[-1]["content"] for prompt in trainer.train_dataset["prompt"]]
    assert kept == [row["prompt"] for n, row in enumerate(rows) if n != 3]
    assert "Dropped 1 prompts longer than 40 tokens; 15 are left." in capsys.readouterr().out
    with pytest.raises(ValueError, match="`max_prompt_length` must be >= 1, got 0"):
        build(kind, **data, max_prompt_length=0)


@pytest.mark.parametrize("kind", ["sft", "gkd", "grpo"])
def test_lora_and_the_model_card(kind, bank, build, tmp_path):
    trainer = build(kind, use_peft=True, lora_target_modules=["q_proj", "v_proj"], lora_r=4)
    trainer.train()
    assert all("lora" in name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad)
    trainer.create_model_card(model_name="out")
    assert {"sft": "SFT", "gkd": "GKD", "grpo": "GRPO"}[kind] in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["sft", "gkd", "grpo"])
def test_a_resumed_run_ends_where_one_that_never_stopped_does(kind, bank, build, tmp_path):
    settings = {
        "max_steps": 9,
        "save_strategy": "steps",
        "save_steps": 5,
    }  # in the third epoch
    settings |= {} if kind == "grpo" else {"teacher_bank": str(bank)}
    own = {
        "gkd": {"lmbda": 0.5},
        "sft": {"per_device_train_batch_size": 8},
        "grpo": {"num_iterations": 2, "per_device_train_batch_size": 32},
    }
    settings |= own[kind]  # GRPO: between the two steps on one batch
    straight, resumed = build(kind, **settings), build(kind, **settings)
    if kind == "grpo":  # the small student is never right
        straight.reward_funcs = resumed.reward_funcs = [
            lambda completion_ids, **columns: [float(sum(ids) % 2) for ids in completion_ids]
        ]
    straight.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-5"))
    assert len(set(logged(straight, "gkd/on_policy"))) == (2 if kind == "gkd" else 0)
    for (name, ours), theirs in zip(resumed.model.named_parameters(), straight.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=name)
