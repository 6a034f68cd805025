"""Several teachers, offloading, and the settings that say which teacher a run has."""

import pytest
import tiny
import torch
from plain_teacher import PlainTeacher
from reference import StepRecorder, sequence_logps, unpad, unpad_teacher
from transformers import AutoModelForCausalLM

from sgopd_trl import SGOPDTrainer
from sgopd_trl.offload import HostCopy
from sgopd_trl.teachers import SamplingSettings
from sgopd_trl.teachers.build import TeacherSpec, teacher_specs
from sgopd_trl.teachers.routed import RoutedTeacher


NAMES = ("first", "second")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    tiny.make_model(root / "student", seed=0)
    for seed, name in enumerate(NAMES, start=1):
        tiny.make_model(root / name, seed=seed, hidden=16 * seed, scale=0.3)
    return root


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def named_dataset(size: int = 64):
    data = tiny.dataset(size)
    return data.add_column("teacher", [NAMES[row % 2] for row in range(len(data))])


def make_trainer(models, tmp_path, teacher_model=None, data=None, **overrides) -> SGOPDTrainer:
    return SGOPDTrainer(
        model=str(models / "student"),
        reward_funcs=tiny.even_digits_reward,
        args=tiny.make_args(tmp_path / "run", **overrides),
        train_dataset=named_dataset() if data is None else data,
        teacher_model=teacher_model,
    )


@pytest.mark.parametrize("kind", ["in process", "elsewhere", "mixed"])
def test_every_row_has_its_own_teacher(models, tmp_path, kind):
    """Log-probabilities, and with them gate and reference term, and the teacher's rollouts."""
    passed = {name: str(models / name) for name in NAMES}
    if kind == "elsewhere":
        passed = {name: PlainTeacher(models / name, name) for name in NAMES}
    elif kind == "mixed":
        passed["first"] = PlainTeacher(models / "first", "first")
    trainer = make_trainer(models, tmp_path, passed, max_steps=3, num_generations=2, teacher_temperature=0.0)
    assert trainer.teacher.runs_elsewhere == (kind == "elsewhere")
    recorder = StepRecorder().watch(trainer)
    trainer.train()
    prompt_ids = trainer._tokenize_prompts(list(trainer.train_dataset["prompt"]))[0]
    teacher_of = dict(zip(map(tuple, prompt_ids), trainer.train_dataset["teacher"], strict=True))
    loaded = {name: load(models / name) for name in NAMES}
    seen = set()
    for step in recorder.steps:
        for batch in step["batches"]:
            for row in range(len(batch["prompt_ids"])):
                prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
                completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()
                name = teacher_of[tuple(prompt)]
                seen.add(name)
                with torch.no_grad():
                    expected = sequence_logps(loaded[name], prompt, completion)
                actual = batch["teacher_logps"][row][: len(completion)]
                torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert seen == set(NAMES)
    rollouts = [pair for step in recorder.steps for pair in unpad_teacher(step["batches"])]
    assert rollouts and {teacher_of[tuple(prompt)] for prompt, _ in rollouts} <= set(NAMES)
    for prompt, completion in rollouts:
        model = loaded[teacher_of[tuple(prompt)]]
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)
        assert completion == output[0, len(prompt) :].tolist()
    assert unpad(recorder.steps[0]["batches"])


def test_names_are_checked_before_training(models, tmp_path):
    passed = {name: str(models / name) for name in NAMES}
    with pytest.raises(ValueError, match="needs a column `teacher`"):
        make_trainer(models, tmp_path, passed, data=tiny.dataset())
    wrong = tiny.dataset().add_column("teacher", ["first"] * 60 + ["third"] * 4)
    with pytest.raises(ValueError, match=r"names \['third'\] \(first in row 60\).*\['first', 'second'\]"):
        make_trainer(models, tmp_path, passed, data=wrong)
    with pytest.raises(ValueError, match="names \\['third'\\]"):
        RoutedTeacher({"first": PlainTeacher(models / "first")}).score([[5]], [[6]], temperature=1.0, names=["third"])


def test_a_column_called_teacher_means_nothing_to_a_single_teacher(models, tmp_path):
    data = tiny.dataset().add_column("teacher", ["Mrs. Smith"] * 64)
    trainer = make_trainer(models, tmp_path, str(models / "first"), data=data, max_steps=1)
    trainer.train()
    assert trainer.teacher_names == ["teacher"] * 8


def test_names_may_be_numbers(models, tmp_path):
    """As a `ClassLabel` column has them."""
    passed = {str(number): PlainTeacher(models / name, name) for number, name in enumerate(NAMES)}
    data = tiny.dataset().add_column("teacher", [0, 1] * 32)
    trainer = make_trainer(models, tmp_path, passed, data=data, max_steps=1)
    trainer.train()
    assert trainer.teacher_names and set(trainer.teacher_names) <= {"0", "1"}
    # Each under the name the rows have, also where the teachers themselves have one
    assert list(trainer.teacher.identity()) == ["0", "1"]


def test_settings_name_the_teachers(models, tmp_path):
    settings = {"first": {"model_name_or_path": str(models / "first")}, "second": {"server_url": "http://b:1"}}
    args = tiny.make_args(tmp_path, teachers=settings)
    specs = teacher_specs(None, args)
    assert specs["first"] == TeacherSpec(str(models / "first"))
    assert specs["second"] == TeacherSpec(server_url=["http://b:1"])
    args = tiny.make_args(
        tmp_path, teacher_model_name_or_path="x", teacher_model_revision="r", teacher_server_url="http://a:1"
    )
    assert teacher_specs(None, args) == {"teacher": TeacherSpec("x", "r", server_url=["http://a:1"])}
    assert list(teacher_specs(str(models / "first"), args)) == ["teacher"]  # what is passed goes first


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_server_url": "host:8000"}, "`teacher_server_url` must be one or more http"),
        ({"teacher_server_url": ["http://a:1"], "temperature": 0.7}, "`temperature` = 1.*got 0.7"),
        ({"teachers": {"a": {"server_url": "http://a:1"}}, "temperature": 0.7}, "got 0.7"),
        (
            {"teacher_server_url": ["http://a:1"], "teacher_temperature": 2.5},
            "up to 2, got `teacher_temperature` = 2.5",
        ),
        ({"teachers": {"a": {"modle": "x"}}}, r"'a' has unknown settings \['modle'\]"),
        ({"teachers": {"a": {}}}, "'a' needs `model_name_or_path` or `server_url`"),
        ({"teachers": ["a"]}, "must be a mapping of names to settings"),
        ({"teachers": {"a": {"model_name_or_path": "x"}}, "teacher_model_name_or_path": "y"}, "both name a teacher"),
        ({"teacher_recorded_path": "a", "teacher_record_path": "b"}, "got 'a' and 'b'"),
        ({"teacher_server_concurrency": 0}, "`teacher_server_concurrency` must be >= 1, got 0"),
        ({"teacher_rollouts_per_prompt": 0}, "`teacher_rollouts_per_prompt` must be >= 1, got 0"),
    ],
)
def test_settings_are_refused_with_their_values(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny.make_args(tmp_path, **settings)


def test_an_offloaded_teacher_trains_the_same_student(models, tmp_path, monkeypatch):
    weights, inside = [], []
    monkeypatch.setattr(HostCopy, "__enter__", lambda self, enter=HostCopy.__enter__: inside.append(1) or enter(self))
    monkeypatch.setattr(HostCopy, "__exit__", lambda self, *e, leave=HostCopy.__exit__: inside.clear() or leave(self))
    for offload in (False, True):
        trainer = make_trainer(
            models, tmp_path / str(offload), str(models / "first"), data=tiny.dataset(), teacher_offload=offload
        )
        model, passes = trainer.teacher.frozen.model, []
        model.register_forward_pre_hook(lambda *_, passes=passes: passes.append(bool(inside)))
        trainer.train()
        assert passes and set(passes) == {offload}  # every pass is made with the weights on the device
        weights.append(trainer.model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value)


def test_a_quantized_teacher(tmp_path):
    """Dtype and quantization are the teacher's own; what it scores is what the quantized model says."""
    for seed, name in enumerate(("student", "teacher")):
        tiny.make_model(tmp_path / name, seed=seed, hidden=64, scale=0.3)
    kwargs = {
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }
    passed = dict(models=tmp_path, tmp_path=tmp_path, teacher_model=str(tmp_path / "teacher"), data=tiny.dataset())
    trainer = make_trainer(**passed, max_steps=1, teacher_model_init_kwargs=kwargs)
    model = trainer.teacher.frozen.model
    assert model.is_loaded_in_4bit and trainer.model.dtype == torch.float32
    scores = trainer.teacher.score([[5, 6]], [[4, 7, 1]], temperature=1.0)[0]
    with torch.no_grad():
        ours = sequence_logps(model, [5, 6], [4, 7, 1]).float()
        plain = sequence_logps(load(tmp_path / "teacher"), [5, 6], [4, 7, 1])
    torch.testing.assert_close(scores, ours, atol=0.05, rtol=0.0)  # bfloat16
    assert (scores - plain).abs().max() < 1.0 and not torch.allclose(scores, plain, atol=1e-3)
    trainer.train()
    with pytest.raises(ValueError, match="cannot move the quantized weights"):
        make_trainer(**passed, teacher_model_init_kwargs=kwargs, teacher_offload=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: a CPU is its own host")
def test_offloaded_weights_are_on_the_device_only_inside():
    model = tiny.make_model(None, seed=0)
    copy = HostCopy(model.cuda(), torch.device("cuda"))
    assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"cpu"}
    with copy:
        assert {p.device.type for p in [*model.parameters(), *model.buffers()]} == {"cuda"}


def test_an_in_process_teacher_scores_and_samples(models, tmp_path):
    trainer = make_trainer(models, tmp_path, str(models / "first"), data=tiny.dataset())
    teacher, model = trainer.teacher, load(models / "first")
    prompts, completions = [[5, 6], [7], [8, 9, 5]], [[4, 1], [], [6]]
    scores = teacher.score(prompts, completions, temperature=1.0)
    assert [len(values) for values in scores] == [2, 0, 1]
    with torch.no_grad():
        torch.testing.assert_close(scores[0], sequence_logps(model, prompts[0], completions[0]), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="temperature 1.0, got 0.5"):
        teacher.score(prompts, completions, temperature=0.5)
    with pytest.raises(ValueError, match="token 30 .*position 1.*24 rows"):
        teacher.score([[5]], [[6, 30]], temperature=1.0)
    settings = SamplingSettings(max_new_tokens=6)
    both = teacher.generate([[5, 6], [7]], [1, 2], settings)
    assert teacher.generate([[7]], [2], settings) == both[1:] and teacher.generate([], [], settings) == []
    assert teacher.identity()["teacher"]["model"] == "first"
