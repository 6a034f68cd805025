"""A teacher that is gone for good: nothing that was trained is lost, and the run goes on where it stood."""

import pytest
import tiny
import torch
from plain_teacher import PlainTeacher
from test_overlap import make_trainer

from sgopd_trl.failure import RandomState
from sgopd_trl.teachers import TeacherError


def train(trainer, **kwargs):
    trainer.train(**kwargs)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}], ids=["plain", "two iterations"])
def test_a_run_goes_on_where_its_teacher_failed(folders, tmp_path, settings):
    """To the bit, although the failing step had sampled its rollouts, and no checkpoint was due."""
    settings = dict(max_steps=6, temperature=1.0, gate="random", **settings)
    whole = train(make_trainer(folders, tmp_path / "whole", PlainTeacher(folders / "teacher"), **settings))
    calls = 3 if "num_iterations" not in settings else 2
    failing = make_trainer(folders, tmp_path / "part", PlainTeacher(folders / "teacher", fail_on=calls), **settings)
    with pytest.raises(TeacherError, match="http://nowhere") as raised:
        failing.train()
    checkpoint = tmp_path / "part" / "run" / "checkpoint-2"
    assert str(checkpoint) in raised.value.__notes__[0]
    resumed = make_trainer(folders, tmp_path / "part", PlainTeacher(folders / "teacher"), **settings)
    weights = train(resumed, resume_from_checkpoint=str(checkpoint))
    for name, value in whole.items():
        assert torch.equal(weights[name], value), name


def test_before_the_first_step_there_is_nothing_to_save(folders, tmp_path):
    trainer = make_trainer(folders, tmp_path, PlainTeacher(folders / "teacher", fail_on=1))
    with pytest.raises(TeacherError) as raised:
        trainer.train()
    assert "nothing to resume" in raised.value.__notes__[0]
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_checkpoint_that_is_there_is_kept(folders, tmp_path):
    trainer = make_trainer(
        folders, tmp_path, PlainTeacher(folders / "teacher", fail_on=2), save_strategy="steps", save_steps=1
    )
    with pytest.raises(TeacherError) as raised:
        trainer.train()
    assert "Step 1 is saved" in raised.value.__notes__[0]
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").exists()


def test_a_checkpoint_of_another_run_is_not_taken_for_ours(folders, tmp_path):
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    trainer = make_trainer(folders, tmp_path, PlainTeacher(folders / "teacher", fail_on=2))
    with pytest.raises(TeacherError) as raised:
        trainer.train()
    assert "Step 1 is saved" in raised.value.__notes__[0]
    assert (tmp_path / "run" / "checkpoint-1" / "trainer_state.json").exists()


def test_evaluation_changes_nothing_and_may_fail(folders, tmp_path):
    """A run with evaluations trains as one without; one whose evaluation fails goes on as if it had not."""
    settings = dict(max_steps=4, temperature=1.0, gate="random")
    evaluated = dict(settings, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8)
    whole = train(make_trainer(folders, tmp_path / "whole", PlainTeacher(folders / "teacher"), **settings))

    def build(fail_on):
        teacher = PlainTeacher(folders / "teacher", fail_on=fail_on)
        return make_trainer(folders, tmp_path / "run", teacher, eval_dataset=tiny.dataset(8), **evaluated)

    failing = build(fail_on=9)  # a training batch and four of an evaluation are one step: the second evaluation's third
    with pytest.raises(TeacherError) as raised:
        failing.train()
    assert failing.state.global_step == 2 and "Step 2 is saved" in raised.value.__notes__[0]
    weights = train(build(None), resume_from_checkpoint=str(tmp_path / "run" / "run" / "checkpoint-2"))
    for name, value in whole.items():
        assert torch.equal(weights[name], value), name


def test_the_command_shows_one_message_and_fails(folders, tmp_path, monkeypatch, capsys):
    from sgopd_trl.cli import train as command

    def build(*arguments):
        return make_trainer(folders, tmp_path, PlainTeacher(folders / "teacher", fail_on=2))

    monkeypatch.setattr(command, "build_trainer", build)
    argv = [
        *("--model_name_or_path", "miniature:guess", "--teacher_model_name_or_path", "miniature:clean"),
        *("--dataset_name", "miniature", "--reward_funcs", "exact_answer_reward", "--use_cpu", "--bf16", "false"),
        *("--output_dir", str(tmp_path / "run")),
    ]
    with pytest.raises(SystemExit) as stopped:
        command.main(argv)
    printed = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "http://nowhere" in printed and f"{tmp_path / 'run' / 'checkpoint-1'}; go on with" in printed
    assert "Traceback" not in printed


def test_random_states_are_restored():
    state = RandomState.now()
    expected = torch.rand(3)
    state.restore()
    assert torch.equal(torch.rand(3), expected)
