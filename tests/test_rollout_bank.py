"""The rollout bank: what it keeps, what it refuses, and what a run saves by it."""

import copy
import json
from dataclasses import replace

import pytest
import tiny
import torch
from datasets import load_dataset
from plain_teacher import PlainTeacher
from test_overlap import logged, make_trainer
from transformers import Qwen3Config

from sgopd_trl.miniature import make_tokenizer
from sgopd_trl.rollout_bank import BankRollout, RolloutBank, config_hash, identity_hash, tokenizer_hash
from sgopd_trl.rollout_plan import all_prompts, fill_bank, prompts_of_run


IDENTITY = {
    "teachers": {"teacher": {"model": "org/t", "revision": None, "config_hash": "c", "tokenizer_hash": "k"}},
    "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8},
    "verifier": {"reward_funcs": ["a.b"], "reward_weights": [1.0]},
}
ROLLOUT = BankRollout("2+2?", [4, 5], 0, "teacher", "four", [6, 7, 1], True, 1.0, False, "4", 2**62)


def changed(path: str, value) -> dict:
    identity = copy.deepcopy(IDENTITY)
    *parents, last = path.split("/")
    entry = identity
    for parent in parents:
        entry = entry[parent]
    entry[last] = value
    return identity


def test_a_rollout_comes_back_and_datasets_reads_it(tmp_path):
    bank = RolloutBank(tmp_path / "bank", IDENTITY)
    assert bank.get([4, 5], 0, "teacher", "4") is None
    assert bank.add([ROLLOUT, replace(ROLLOUT, number=1, correct=False)])[0] == ROLLOUT
    again = RolloutBank(tmp_path / "bank", IDENTITY)
    assert again.get([4, 5], 0, "teacher", "4") == ROLLOUT
    assert again.get([4, 5], 1, "teacher", "4").correct is False
    assert again.get([4, 5], 0, "other", "4") is None and again.get([4], 0, "teacher", "4") is None
    dataset = load_dataset(str(tmp_path / "bank"), split="train")
    assert dataset["completion"] == ["four", "four"] and dataset["correct"] == [True, False]
    assert dataset["completion_ids"][0] == [6, 7, 1]
    again.add([replace(ROLLOUT, number=2)])
    assert load_dataset(str(tmp_path / "bank"), split="train").num_rows == 3  # not what `datasets` has in its cache


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("teachers/teacher/model", "org/u", "teachers.teacher.model: the bank has 'org/t', this run 'org/u'"),
        ("teachers/teacher/config_hash", "d", "config_hash: the bank has 'c', this run 'd'"),
        ("teachers/teacher/tokenizer_hash", "l", "tokenizer_hash: the bank has 'k', this run 'l'"),
        ("sampling/temperature", 0.7, "sampling.temperature: the bank has 1.0, this run 0.7"),
        ("verifier/reward_funcs", ["a.c"], r"reward_funcs: the bank has \['a.b'\], this run \['a.c'\]"),
    ],
)
def test_another_identity_is_refused_with_both_values(tmp_path, path, value, message):
    RolloutBank(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match=message):
        RolloutBank(tmp_path, changed(path, value))
    assert json.loads((tmp_path / "bank.json").read_text()) == IDENTITY


def test_what_another_run_has_added_is_found(tmp_path):
    bank, other = RolloutBank(tmp_path / "bank", IDENTITY), RolloutBank(tmp_path / "bank", IDENTITY)
    other.add([ROLLOUT])
    bank.refresh()
    assert bank.get([4, 5], 0, "teacher", "4") == ROLLOUT


def test_what_was_not_known_is_filled_in_and_further_teachers_are_added(tmp_path):
    RolloutBank(tmp_path, changed("teachers/teacher/config_hash", None))
    RolloutBank(tmp_path, changed("teachers/teacher/revision", "main"))
    entry = {"model": "org/v", "revision": None, "config_hash": "e", "tokenizer_hash": "k"}
    RolloutBank(tmp_path, changed("teachers", {"second": entry}))
    teachers = json.loads((tmp_path / "bank.json").read_text())["teachers"]
    assert teachers["teacher"] == IDENTITY["teachers"]["teacher"] | {"revision": "main"}
    assert teachers["second"] == entry
    with pytest.raises(ValueError, match="revision: the bank has 'main', this run 'v2'"):
        RolloutBank(tmp_path, changed("teachers/teacher/revision", "v2"))


def test_a_verdict_on_another_answer_is_refused(tmp_path):
    bank = RolloutBank(tmp_path, IDENTITY)
    bank.add([ROLLOUT])
    with pytest.raises(ValueError, match=r"the answer '4', but the dataset now has '5' for the prompt '2\+2\?'"):
        bank.get([4, 5], 0, "teacher", "5")


def test_another_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a bank"):
        RolloutBank(tmp_path, IDENTITY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_hashes():
    config = Qwen3Config(hidden_size=16)
    other = Qwen3Config(hidden_size=16, dtype="bfloat16", use_cache=False)
    other._name_or_path = "elsewhere"
    assert config_hash(config) == config_hash(other) != config_hash(Qwen3Config(hidden_size=32))
    tokenizer, larger = make_tokenizer(), make_tokenizer()
    larger.add_tokens(["new"])
    assert tokenizer_hash(tokenizer) == tokenizer_hash(make_tokenizer()) != tokenizer_hash(larger)
    assert len(identity_hash(IDENTITY)) == 8 and identity_hash(IDENTITY) != identity_hash(changed("sampling/top_k", 1))


# In a trainer


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_equal(ours, theirs):
    for name, value in ours.items():
        assert torch.equal(theirs[name], value), name


@pytest.mark.parametrize("where", ["in process", "elsewhere"])
def test_a_later_run_and_a_resumed_one_ask_for_nothing_twice(folders, tmp_path, where):
    settings = dict(teacher_temperature=1.0 if where == "in process" else 0.0, max_steps=3)

    def run(name, resume=None, **more):
        teacher = str(folders / "teacher") if where == "in process" else PlainTeacher(folders / "teacher")
        trainer = make_trainer(folders, tmp_path / name, teacher, **(settings | more))
        trainer.train(resume_from_checkpoint=resume)
        return trainer, (teacher.asked if where == "elsewhere" else None)

    bank = {"teacher_bank": str(tmp_path / "bank")}
    first, asked = run("first", save_strategy="steps", save_steps=2, **bank)
    assert logged(first, "teacher_sampling/from_bank") == [0, 0, 0] and any(logged(first, "teacher_sampling/loss"))
    second, asked_again = run("second", **bank)
    assert sum(logged(second, "teacher_sampling/asked")) == 0
    assert logged(second, "teacher_sampling/from_bank") == logged(first, "teacher_sampling/asked")
    assert_equal(weights(first), weights(second))
    resumed, asked_then = run("first", str(tmp_path / "first/run/checkpoint-2"), **bank)
    assert logged(resumed, "teacher_sampling/asked")[-1] == 0
    assert_equal(weights(first), weights(resumed))
    if where == "elsewhere":
        assert asked and asked_again == [] and asked_then == []
    # Without a bank of its own a run keeps one in its output folder
    own, _ = run("own")
    (folder,) = (tmp_path / "own" / "run").glob("teacher_rollouts-*")
    assert len(load_dataset(str(folder), split="train")) == sum(logged(own, "teacher_sampling/asked"))
    assert_equal(weights(first), weights(own))


def test_a_run_with_another_seed_uses_what_is_there(folders, tmp_path):
    settings = dict(teacher_temperature=1.0)  # not greedy: the seeds decide
    bank = str(tmp_path / "bank")
    trainer = make_trainer(folders, tmp_path, str(folders / "teacher"), teacher_bank=bank, **settings)
    every = all_prompts(trainer)
    assert len(every) == len({json.dumps(row["prompt"]) for row in tiny.dataset()})
    fill_bank(trainer, every, batch_size=16)
    other = make_trainer(folders, tmp_path / "other", str(folders / "teacher"), teacher_bank=bank, seed=7, **settings)
    other.train()
    assert sum(logged(other, "teacher_sampling/asked")) == 0 < sum(logged(other, "teacher_sampling/from_bank"))
    without = make_trainer(folders, tmp_path / "without", str(folders / "teacher"), seed=7, **settings)
    without.train()
    assert_equal(weights(other), weights(without))
    # The rollouts do not depend on the run that first asked for them
    kept, made = (t.teacher_sampling.rollouts.bank.store for t in (trainer, without))
    assert len(made) and all(kept.get(row["key"])["completion_ids"] == row["completion_ids"] for row in made)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_steps": 40, "teacher_sampling_phase1_end_frac": 0.5, "teacher_sampling_phase2_end_frac": 0.9},
        {"num_iterations": 2, "max_steps": 5},
        {"steps_per_generation": 2, "max_steps": 5, "teacher_rollouts_per_prompt": 3},
        {"max_steps": -1, "num_train_epochs": 2},
    ],
    ids=["plain", "second epoch", "iterations", "windows", "epochs"],
)
def test_the_plan_is_what_the_run_asks_for(folders, tmp_path, settings):
    settings = dict(teacher_temperature=0.0, num_generations=2, max_completion_length=4) | settings
    planned = make_trainer(folders, tmp_path / "plan", PlainTeacher(folders / "teacher"), **settings)
    prompts = prompts_of_run(planned)
    ids = planned._tokenize_prompts([prompt.row["prompt"] for prompt in prompts])[0]
    expected = [(tuple(prompt_ids), prompt.number) for prompt_ids, prompt in zip(ids, prompts, strict=True)]
    teacher = PlainTeacher(folders / "teacher")
    run = make_trainer(folders, tmp_path / "run", teacher, **settings)
    run.train()
    stored = run.teacher_sampling.rollouts.bank.store
    assert sorted(expected) == sorted((tuple(row["prompt_ids"]), row["number"]) for row in stored)


def test_a_bank_of_another_verifier_or_sampling_is_refused_by_the_trainer(folders, tmp_path):
    bank = str(tmp_path / "bank")
    make_trainer(folders, tmp_path / "a", str(folders / "teacher"), teacher_bank=bank)
    with pytest.raises(ValueError, match="sampling.temperature: the bank has 0.0, this run 0.5"):
        make_trainer(folders, tmp_path / "b", str(folders / "teacher"), teacher_bank=bank, teacher_temperature=0.5)
    with pytest.raises(ValueError, match="correct_reward_threshold: the bank has 0.5, this run 0.9"):
        make_trainer(folders, tmp_path / "b", str(folders / "teacher"), teacher_bank=bank, correct_reward_threshold=0.9)
    with pytest.raises(ValueError, match="teachers.teacher.model: the bank has 'teacher', this run 'student'"):
        make_trainer(folders, tmp_path / "b", str(folders / "student"), teacher_bank=bank)
