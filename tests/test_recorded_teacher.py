"""A recording answers what was asked when it was made, to the bit, and nothing else."""

import pytest
import tiny
import torch
from plain_teacher import PlainTeacher
from test_overlap import make_trainer

from sgopd_trl import SGOPDTrainer
from sgopd_trl.teachers import SamplingSettings, TeacherError
from sgopd_trl.teachers.recorded import RecordedTeacher, RecordingTeacher


@pytest.fixture
def recorded(folders, tmp_path):
    teacher = RecordingTeacher(PlainTeacher(folders / "teacher"), tmp_path / "recording")
    trainer = make_trainer(folders, tmp_path, teacher)  # `prepare` writes down whose answers these are
    assert trainer.teacher is teacher and teacher.runs_elsewhere
    return teacher


SETTINGS = SamplingSettings(temperature=0.0, max_new_tokens=5)


def test_answers_come_back_as_they_were(recorded, tmp_path):
    prompts, completions = [[5, 6], [7]], [[8, 9, 1], []]
    scores = recorded.score(prompts, completions, temperature=1.0)
    rollouts = recorded.generate(prompts, [3, 4], SETTINGS)
    teacher = RecordedTeacher(tmp_path / "recording")
    again = teacher.score(prompts[::-1], completions[::-1], temperature=1.0, names=["teacher"] * 2)
    assert torch.equal(again[1], scores[0]) and len(again[0]) == 0 and again[1].dtype == torch.float32
    assert teacher.generate(prompts, [3, 4], SETTINGS) == rollouts
    assert teacher.identity() == recorded.identity() and teacher.eos_token_ids == recorded.eos_token_ids


def test_what_was_not_recorded_is_an_error(recorded, tmp_path):
    recorded.score([[5, 6]], [[7]], temperature=1.0)
    recorded.generate([[5, 6]], [3], SETTINGS)
    teacher = RecordedTeacher(tmp_path / "recording")
    missing = pytest.raises(TeacherError, match=r"scores has no entry .*begins with the ids 5, 6")
    with missing:
        teacher.score([[5, 6]], [[8]], temperature=1.0)
    with missing:
        teacher.score([[5, 6]], [[7]], temperature=0.9)
    with missing:
        teacher.score([[5, 6]], [[7]], temperature=1.0, names=["other"])
    with pytest.raises(TeacherError, match="rollouts has no entry"):
        teacher.generate([[5, 6]], [4], SETTINGS)
    with pytest.raises(TeacherError, match="rollouts has no entry"):
        teacher.generate([[5, 6]], [3], SamplingSettings(temperature=0.5, max_new_tokens=5))
    with pytest.raises(ValueError, match="holds no recorded teacher"):
        RecordedTeacher(tmp_path / "nothing")


@pytest.mark.parametrize("where", ["in process", "elsewhere"])
def test_a_run_is_repeated_from_its_recording_without_the_teacher(folders, tmp_path, where):
    """By the settings of a recipe."""

    def run(name, teacher, **settings):
        trainer = SGOPDTrainer(
            model=str(folders / "student"),
            reward_funcs=tiny.even_digits_reward,
            args=tiny.make_args(tmp_path / name, max_steps=3, **settings),
            train_dataset=tiny.dataset(),
            teacher_model=teacher,
        )
        trainer.train()
        return trainer.model.state_dict()

    folder = str(tmp_path / "recording")
    teacher = str(folders / "teacher") if where == "in process" else PlainTeacher(folders / "teacher")
    expected = run("first", teacher, teacher_record_path=folder)
    again = run("second", None, teacher_recorded_path=folder)
    for name, value in expected.items():
        assert torch.equal(again[name], value)
    with pytest.raises(TeacherError, match="has no entry"):
        run("third", None, teacher_recorded_path=folder, seed=5)


def test_a_recording_of_another_teacher_is_not_added_to(recorded, folders, tmp_path):
    again = RecordingTeacher(PlainTeacher(folders / "teacher"), tmp_path / "recording")
    make_trainer(folders, tmp_path, again)
    other = PlainTeacher(folders / "student")
    other.identity = lambda: {"teacher": {"model": "other"}}
    with pytest.raises(ValueError, match="holds a recording of another teacher.*'plain'.*'other'"):
        make_trainer(folders, tmp_path, RecordingTeacher(other, tmp_path / "recording"))


def test_what_is_answered_is_what_is_recorded(recorded, monkeypatch):
    """A server may answer otherwise in its last bits; a run that was stopped goes on with what it had."""
    first = recorded.score([[5, 6]], [[7]], temperature=1.0)
    rollout = recorded.generate([[5, 6]], [3], SETTINGS)
    monkeypatch.setattr(recorded.teacher, "score", lambda *args, **kwargs: [torch.tensor([-9.0])])
    monkeypatch.setattr(recorded.teacher, "generate", lambda *args, **kwargs: [[9]])
    assert torch.equal(recorded.score([[5, 6]], [[7]], temperature=1.0)[0], first[0])
    assert recorded.generate([[5, 6]], [3], SETTINGS) == rollout


def test_a_run_of_two_teachers_is_repeated(folders, tmp_path):
    data = tiny.dataset().add_column("teacher", ["one", "two"] * 32)

    def run(name, teacher, **settings):
        trainer = SGOPDTrainer(
            model=str(folders / "student"),
            reward_funcs=tiny.even_digits_reward,
            args=tiny.make_args(tmp_path / name, max_steps=3, **settings),
            train_dataset=data,
            teacher_model=teacher,
        )
        trainer.train()
        return trainer.model.state_dict()

    folder = str(tmp_path / "recording")
    teachers = {"one": str(folders / "teacher"), "two": PlainTeacher(folders / "student")}
    expected = run("first", teachers, teacher_record_path=folder)
    again = run("second", None, teacher_recorded_path=folder)
    for name, value in expected.items():
        assert torch.equal(again[name], value)
