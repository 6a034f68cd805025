"""The rollout bank: what it keeps, what it refuses, and what a run saves by it."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import tiny
import torch
from datasets import concatenate_datasets, load_dataset
from plain_teacher import PlainTeacher
from test_overlap import logged, make_trainer
from transformers import AutoModelForCausalLM, Qwen3Config

from sgopd_trl import SGOPDTrainer
from sgopd_trl.miniature import make_tokenizer
from sgopd_trl.rollout_bank import (
    BankRollout,
    RolloutBank,
    config_hash,
    identity_hash,
    rollout_key,
    tokenizer_hash,
)
from sgopd_trl.rollout_plan import all_prompts, fill_bank, prompts_of_run
from sgopd_trl.teacher_sampling import prompt_key
from sgopd_trl.teachers import TeacherError


IDENTITY = {
    "teachers": {"teacher": {"model": "org/t", "revision": None, "config_hash": "c", "tokenizer_hash": "k"}},
    "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 8},
    "verifier": {"reward_funcs": ["a.b"], "reward_weights": [1.0]},
}
ROLLOUT = BankRollout("2+2?", [4, 5], 0, "teacher", "four", [6, 7, 1], True, 1.0, False, "4", 2**62)


KEY = rollout_key([4, 5], 0, "teacher")


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
    assert bank.get(KEY) is None
    assert bank.add([ROLLOUT, replace(ROLLOUT, number=1, correct=False)])[0] == ROLLOUT
    again = RolloutBank(tmp_path / "bank", IDENTITY)
    assert again.get(KEY) == ROLLOUT
    assert again.get(rollout_key([4, 5], 1, "teacher")).correct is False
    assert again.get(rollout_key([4, 5], 0, "other")) is None and again.get(rollout_key([4], 0, "teacher")) is None
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
    assert bank.get(KEY) == ROLLOUT


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


def test_a_verdict_on_another_answer_is_kept_and_not_replaced(tmp_path):
    bank = RolloutBank(tmp_path, IDENTITY)
    bank.add([ROLLOUT])
    other = replace(ROLLOUT, answer="5", correct=False)
    assert bank.add([other]) == [other]
    assert bank.get(KEY) == ROLLOUT and len(bank) == 1


def test_a_bank_can_be_read_by_whoever_may_read_its_folder(tmp_path):
    bank = RolloutBank(tmp_path, IDENTITY)
    bank.add([ROLLOUT])
    (tmp_path / "plain").touch()
    expected = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in tmp_path.rglob("*.*") if path.is_file() and path.name != ".lock"} == {
        expected
    }


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
    (folder,) = (tmp_path / "own" / "run").glob("_teacher_rollouts-*")
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
    with pytest.raises(
        ValueError, match="teachers.teacher.model: the bank has 'teacher', this run 'student'.*weights_hash"
    ):
        make_trainer(folders, tmp_path / "b", str(folders / "student"), teacher_bank=bank)


def plain(folders, tmp_path, name, **settings):
    """A run with a greedy teacher elsewhere, and that teacher."""
    keys = ("fail_on", "fail_on_rollout")
    teacher = PlainTeacher(folders / "teacher", **{key: settings.pop(key) for key in keys if key in settings})
    return make_trainer(folders, tmp_path / name, teacher, **settings), teacher


def test_rollouts_that_were_finished_before_a_failure_are_not_asked_for_again(folders, tmp_path):
    bank = {"teacher_bank": str(tmp_path / "bank")}
    trainer, teacher = plain(folders, tmp_path, "first", fail_on_rollout=5, **bank)
    every = all_prompts(trainer)
    with pytest.raises(TeacherError):
        fill_bank(trainer, every, batch_size=len(every))
    assert len(teacher.finished) == 5 and len(trainer.teacher_sampling.rollouts.bank) == 0
    trainer, rest = plain(folders, tmp_path, "second", **bank)
    verified, generated = fill_bank(trainer, every, batch_size=16)
    assert generated == len(rest.asked) == len(every) - 5 and 0 < verified < len(every)
    assert sorted(teacher.finished + rest.asked) == sorted(
        trainer._tokenize_prompts([p.row["prompt"] for p in every])[0]
    )
    trainer, _ = plain(folders, tmp_path, "whole", teacher_bank=str(tmp_path / "other"))
    fill_bank(trainer, every, batch_size=16)
    kept, whole = (
        RolloutBank(tmp_path / name, trainer.teacher_sampling.rollouts.identity()) for name in ("bank", "other")
    )
    assert sorted(kept.store, key=str) == sorted(whole.store, key=str)
    assert not list((tmp_path / "bank" / ".unverified").iterdir())


def test_a_run_that_fails_to_score_keeps_the_rollouts_of_its_step(folders, tmp_path):
    failing, teacher = plain(folders, tmp_path, "run", max_steps=4, fail_on=3)
    with pytest.raises(TeacherError):
        failing.train()
    pending = failing.teacher_sampling._pending[0]
    pending.call.own_result()
    assert len(pending.missing) == pending.asked > 0
    resumed, rest = plain(folders, tmp_path, "run", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "run" / "checkpoint-2"))
    assert rest.asked and not {tuple(ids) for ids in rest.asked} & {tuple(ids) for ids in teacher.finished}
    assert logged(resumed, "teacher_sampling/asked")[2] == 0 < logged(resumed, "teacher_sampling/from_bank")[2]


def gold_reward(completions, solution, **kwargs) -> list[float]:
    """Right where the gold says so, or where it is the completion."""
    texts = [completion[0]["content"] for completion in completions]
    return [float(gold == "right" or text == gold) for text, gold in zip(texts, solution, strict=True)]


def test_a_verdict_is_of_the_answer_that_the_row_has(folders, tmp_path):
    """The dataset has a prompt with two answers, or another answer than the bank was filled with."""

    def run(name, golds):
        data = tiny.dataset(24).remove_columns("solution").add_column("solution", golds)
        teacher = PlainTeacher(folders / "teacher")
        trainer = SGOPDTrainer(
            model=str(folders / "student"),
            reward_funcs=gold_reward,
            args=tiny.make_args(
                tmp_path / name, teacher_bank=str(tmp_path / "bank"), answer_column="solution", max_steps=4
            ),
            train_dataset=data,
            teacher_model=teacher,
        )
        check_verdicts(trainer)
        trainer.train()
        return trainer, teacher

    def check_verdicts(trainer):
        collect = trainer.teacher_sampling.rollouts.collect

        def checked(pending):
            rollouts = collect(pending)
            for prompt, rollout in zip(pending.prompts, rollouts, strict=True):
                assert (
                    rollout.correct == (prompt.row["solution"] == "right") and rollout.answer == prompt.row["solution"]
                )
            return rollouts

        trainer.teacher_sampling.rollouts.collect = checked

    _, teacher = run("first", ["right"] * 24)
    assert teacher.asked
    again, teacher_again = run("second", ["right", "wrong"] * 12)
    assert teacher_again.asked == [] and 0 < sum(logged(again, "teacher_sampling/verified")) < sum(
        logged(again, "teacher_sampling/from_bank")
    )


def test_a_prompt_in_two_rows_is_asked_for_once_each_teacher(folders, tmp_path):
    data = concatenate_datasets([tiny.dataset(16)] * 2).add_column("teacher", ["x"] * 16 + ["y"] * 16)

    def build(name):
        return SGOPDTrainer(
            model=str(folders / "student"),
            reward_funcs=tiny.even_digits_reward,
            args=tiny.make_args(tmp_path / name, max_steps=12, per_device_train_batch_size=4, teacher_temperature=0.0),
            train_dataset=data,
            teacher_model={name: PlainTeacher(folders / "teacher", name) for name in "xy"},
        )

    planned = build("plan")
    prompts = prompts_of_run(planned)
    assert len(all_prompts(planned)) == 32
    run = build("run")
    run.train()
    expected = {(prompt_key(prompt.row["prompt"]), prompt.row["teacher"]) for prompt in prompts}
    stored = {(row["prompt"], row["teacher"]) for row in run.teacher_sampling.rollouts.bank.store}
    assert expected == stored and len({prompt for prompt, _ in stored}) < len(stored)


def test_a_teacher_is_known_by_its_weights_and_a_student_by_where_it_stops(folders, tmp_path):
    shutil.copytree(folders / "teacher", tmp_path / "moved" / "teacher")
    tiny.make_model(tmp_path / "other" / "teacher", seed=9)
    bank = {"teacher_bank": str(tmp_path / "bank")}
    make_trainer(folders, tmp_path / "a", str(folders / "teacher"), **bank)
    make_trainer(folders, tmp_path / "b", str(tmp_path / "moved" / "teacher"), **bank)
    with pytest.raises(ValueError, match="teachers.teacher.weights_hash: the bank has"):
        make_trainer(folders, tmp_path / "c", str(tmp_path / "other" / "teacher"), **bank)
    # A loaded model
    model = AutoModelForCausalLM.from_pretrained(folders / "teacher")
    bank = {"teacher_bank": str(tmp_path / "loaded")}
    make_trainer(folders, tmp_path / "d", model, **bank)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="teachers.teacher.parameters_hash: the bank has"):
        make_trainer(folders, tmp_path / "e", model, **bank)
    # The student's end-of-sequence tokens end the teacher's rollouts too
    shutil.copytree(folders / "student", tmp_path / "student")
    config = json.loads((tmp_path / "student" / "generation_config.json").read_text())
    (tmp_path / "student" / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [1, 5]}))
    with pytest.raises(ValueError, match=r"student_eos_token_ids: the bank has \[1\], this run \[1, 5\]"):
        SGOPDTrainer(
            model=str(tmp_path / "student"),
            reward_funcs=tiny.even_digits_reward,
            args=tiny.make_args(tmp_path / "f", teacher_temperature=0.0, **bank),
            train_dataset=tiny.dataset(),
            teacher_model=AutoModelForCausalLM.from_pretrained(folders / "teacher"),
        )


def test_a_hub_models_revision_is_its_commit(folders, tmp_path):
    """As a Hub id is found in the cache."""
    repository, commit = tmp_path / "hub" / "models--org--teacher", "0123456789" * 4
    shutil.copytree(folders / "teacher", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = (
        "from transformers import AutoModelForCausalLM as M;"
        "from sgopd_trl.teachers.in_process import InProcessTeacher as T;"
        "print(T(M.from_pretrained('org/teacher'), model_name='org/teacher').identity()['teacher']['revision'])"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip().endswith(commit)
