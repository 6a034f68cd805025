"""Recipes with stages: what each stage is given, what is refused before the first begins, and how a run goes on."""

import json
import os
from fnmatch import fnmatch
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_cli import refused
from transformers import Trainer

from sgopd_trl.cli import main
from sgopd_trl.cli.stages import read_stages
from sgopd_trl.metrics_log import read_metrics


COMMON = {
    "model_name_or_path": "miniature:guess",
    "teacher_model_name_or_path": "miniature:clean",
    "dataset_name": "miniature",
    "max_train_samples": 64,
    "reward_funcs": ["exact_answer_reward"],
    "num_generations": 4,
    "teacher_sampling_ratio": 0.5,
    "max_completion_length": 32,
    "learning_rate": 1.0e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_steps": 1,
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
}
ROLLOUTS = {"name": "rollouts", "command": "teacher-rollouts", "max_steps": 10, "per_device_train_batch_size": 8}
SFT = {"name": "sft", "trainer": "sft", "max_steps": 2, "per_device_train_batch_size": 4}
GATE = {"name": "gate", "teacher_sampling_enable": False, "max_steps": 2, "per_device_train_batch_size": 8}
STAGES = [ROLLOUTS, SFT, GATE]


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", "SGOPD_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe(tmp_path):
    def write(stages=STAGES, **settings) -> str:
        path = tmp_path / "staged.yaml"
        path.write_text(yaml.safe_dump(COMMON | {"output_dir": str(tmp_path / "out"), "stages": stages} | settings))
        return str(path)

    return write


def stages_of(*args: str, stages=STAGES, **settings) -> dict[str, dict]:
    """The recipes of the stages, by name, of a recipe and a command line."""
    found, _ = read_stages(COMMON | {"output_dir": "out", "stages": stages} | settings, "staged.yaml", args)
    return {stage.name: stage.recipe | {"options": stage.options} for stage in found}


# What each stage is given


def test_top_level_keys_go_to_the_stages_that_know_them():
    found = stages_of(lambda_high=1.5, completion_only_loss=True, weight_decay=0.1)
    assert [name for name, recipe in found.items() if "lambda_high" in recipe] == ["gate"]
    assert found["sft"]["completion_only_loss"] is True and "completion_only_loss" not in found["gate"]
    assert all(recipe["weight_decay"] == 0.1 for recipe in found.values())
    assert stages_of(max_steps=7, stages=[SFT, {"name": "gate"}])["gate"]["max_steps"] == 7
    assert stages_of(max_steps=7)["sft"]["max_steps"] == 2  # a stage's own key goes first


def test_folders_and_models_follow_one_another():
    found = stages_of(stages=[ROLLOUTS, SFT, GATE, {"name": "more"}])
    folders = {name: recipe["output_dir"] for name, recipe in found.items()}
    assert folders == {
        "rollouts": "out/_stages/rollouts",
        "sft": "out/_stages/sft",
        "gate": "out/_stages/gate",
        "more": "out",
    }
    models = {name: recipe["model_name_or_path"] for name, recipe in found.items()}
    assert models == {
        "rollouts": "miniature:guess",
        "sft": "miniature:guess",
        "gate": "out/_stages/sft",
        "more": "out/_stages/gate",
    }
    named = stages_of(stages=[SFT, GATE | {"model_name_or_path": "miniature:nine"}])
    assert named["gate"]["model_name_or_path"] == "miniature:nine"
    given = stages_of("--output_dir", "here", "--model_name_or_path=miniature:noisy")
    assert (given["sft"]["output_dir"], given["sft"]["model_name_or_path"]) == ("here/_stages/sft", "miniature:noisy")
    assert (given["gate"]["output_dir"], given["gate"]["model_name_or_path"]) == ("here", "here/_stages/sft")


def test_stages_share_a_bank_that_is_their_own():
    banks = {recipe["teacher_bank"] for recipe in stages_of().values()}
    assert len(banks) == 1 and Path(*banks).parent == Path("out") and Path(*banks).name.startswith("_")
    for others in (("--seed", "1"), ("--rollouts.max_steps", "9")):  # other rollouts: SFT would train on those too
        assert {recipe["teacher_bank"] for recipe in stages_of(*others).values()}.isdisjoint(banks)
    assert {recipe["teacher_bank"] for recipe in stages_of("--gate.lambda_high", "1.5").values()} == banks
    for named in (stages_of(teacher_bank="b"), stages_of("--teacher_bank", "b")):
        assert [recipe["teacher_bank"] for recipe in named.values()] == ["b"] * 3


def test_a_bank_of_all_prompts_is_the_same_for_whatever_is_trained_on_it():
    stages = [ROLLOUTS | {"prompts": "all"}, SFT]

    def bank(*args: str) -> str:
        return stages_of(*args, stages=stages)["sft"]["teacher_bank"]

    training = "--learning_rate 2e-3 --eval_strategy steps --num_generations 2 --use_peft --rollouts.max_steps 9 --rollouts.batch_size 4 --teacher_server_concurrency 9"
    assert bank() == bank(*training.split())
    for other in (
        *("--seed 1", "--max_train_samples 8", "--max_completion_length 16", "--teacher_temperature 0.7"),
        *("--teacher_model_name_or_path miniature:nine", "--reward_funcs numeric", "--system_prompt Think."),
    ):
        assert bank() != bank(*other.split())


def test_options_of_teacher_rollouts():
    (stage, *_), _ = read_stages(COMMON | {"stages": [ROLLOUTS | {"prompts": "all", "batch_size": 8}, SFT]}, "r.yaml")
    assert (
        stage.options == ["--prompts", "all", "--batch_size", "8"]
        and not {"prompts", "batch_size"} & stage.recipe.keys()
    )
    assert stage.argv(Path("f.yaml")) == ["--prompts", "all", "--batch_size", "8", "--config", "f.yaml"]


def test_the_command_line_reaches_all_stages_or_one():
    found = stages_of("--learning-rate", "1e-4", "--no_box_answer", "--lambda_high=1.5", "--sft.max-steps", "5")
    assert [recipe["learning_rate"] for recipe in found.values()] == [1e-4] * 3
    assert [recipe["box_answer"] for recipe in found.values()] == [False] * 3
    assert [name for name, recipe in found.items() if recipe.get("lambda_high") == 1.5] == ["gate"]
    assert [recipe["max_steps"] for recipe in found.values()] == [10, 5, 2]
    found = stages_of(
        "--sft.learning_rate=0.1", "--learning_rate", "0.2", "--rollouts.batch_size", "4"
    )  # its own first
    assert [recipe["learning_rate"] for recipe in found.values()] == [0.2, 0.1, 0.2]
    assert found["rollouts"]["options"] == ["--batch_size", "4"]
    found = stages_of("--gate.trainer", "grpo", "--gate.reward_funcs", "a", "b", "--gate.num_processes=2")
    assert found["gate"]["trainer"] == "grpo" and "teacher_model_name_or_path" not in found["gate"]
    assert (found["gate"]["reward_funcs"], found["gate"]["num_processes"]) == (["a", "b"], "2")


def test_what_the_command_line_states_is_written_with_the_stage(recipe, tmp_path):
    """Values of every kind come back as they were."""
    given = ["--eval_strategy", "steps", "--gate.gate_cell_lambdas", "1", "1.5", "--save_strategy=no", "--use_peft"]
    (stage,), _ = read_stages(COMMON | {"stages": [GATE]}, "staged.yaml", given)
    written = yaml.safe_load(stage.write(tmp_path).read_text())
    assert (written["eval_strategy"], written["save_strategy"], written["use_peft"]) == ("steps", "no", True)
    assert written["gate_cell_lambdas"] == [1.0, 1.5]


def test_only_the_last_stage_s_model_is_pushed(monkeypatch):
    for found in (stages_of(push_to_hub=True), stages_of("--push_to_hub"), stages_of("--push_to_hub", "true")):
        pushed = {name: recipe.get("push_to_hub") for name, recipe in found.items()}
        assert not pushed["rollouts"] and not pushed["sft"] and pushed["gate"]
    assert stages_of(stages=[SFT | {"push_to_hub": True}, GATE])["sft"]["push_to_hub"] is True
    api = MagicMock()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: api)
    Trainer.push_to_hub(MagicMock(hub_model_id="me/model"))
    ignored = api.upload_folder.call_args.kwargs["ignore_patterns"]
    path = str(Path(stages_of()["sft"]["output_dir"], "model.safetensors").relative_to("out"))
    assert any(fnmatch(path, pattern) for pattern in ignored)


def test_a_key_that_means_nothing_to_a_trainer_goes_to_the_other_stages():
    found = stages_of(teacher_rollouts="all")
    assert [name for name, recipe in found.items() if "teacher_rollouts" in recipe] == ["sft"]
    assert [name for name, recipe in found.items() if "max_train_samples" in recipe] == ["rollouts", "gate"]
    found = stages_of("--teacher_rollouts", "all")
    assert [name for name, recipe in found.items() if "teacher_rollouts" in recipe] == ["sft"]
    assert [name for name, recipe in stages_of("--lambda_high", "2").items() if "lambda_high" in recipe] == ["gate"]


def test_an_option_of_the_loss_needs_a_stage_that_has_that_loss(recipe, capsys):
    error, code = refused(capsys, "train", "--config", recipe(stages=[ROLLOUTS, SFT]), "--lambda_high", "1.5")
    assert "Unknown argument '--lambda_high': no stage knows it" in error and code == 2


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lamda_high": 2}, "Unknown key 'lamda_high' in staged.yaml: no stage knows it. Did you mean 'lambda_high'?"),
        (
            {"stages": [SFT | {"max_step": 2}, GATE]},
            "Stage 'sft' of staged.yaml: Unknown key 'max_step' in sft.yaml. Did you mean 'max_steps'?",
        ),
        ({"stages": [SFT | {"lambda_high": 2}, GATE]}, "It is a setting of `trainer: sgopd`, not of `sft`"),
        (
            {"teacher_bank": "b", "stages": [SFT, GATE | {"lambda_high": "much"}]},
            "Stage 'gate' of staged.yaml: gate.yaml: `lambda_high` must be float",
        ),
        (
            {"teacher_bank": "b", "stages": [SFT, GATE | {"lambda_high": 0.5}]},
            "Stage 'gate' of staged.yaml: `lambda_high` must be >= 1, got 0.5",
        ),
        ({"stages": [ROLLOUTS | {"prompts": "some"}]}, "invalid choice: 'some'"),
        (
            {"stages": [SFT | {"trainer": "sftt"}]},
            "`trainer` must be one of sgopd, sft, gkd, grpo, got 'sftt'. Did you mean 'sft'?",
        ),
        ({"stages": [SFT, SFT]}, "two stages have one name"),
        ({"stages": [{"trainer": "sft"}]}, "stage 1 needs a `name` of letters, digits, - and _, got None"),
        ({"stages": [SFT | {"name": "a.b"}]}, "needs a `name`"),
        ({"stages": [SFT | {"name": "checkpoint-5"}]}, "name of a checkpoint's folder"),
        (
            {"stages": [SFT | {"command": "evaluate"}]},
            "`command` of stage 'sft' must be one of train, teacher-rollouts",
        ),
        ({"stages": [SFT | {"output_dir": "x"}]}, "`output_dir` belongs beside `stages`, not in stage 'sft'"),
        ({"stages": []}, "`stages` must be a list of mappings"),
        ({"stages": {"sft": SFT}}, "`stages` must be a list of mappings"),
        ({"stages": [SFT | {"use_peft": True}, GATE]}, "which is an adapter (`use_peft`)"),
        ({"resume_from_checkpoint": "out/checkpoint-2"}, "must be true or false, got 'out/checkpoint-2'"),
        ({"dataset_name": None}, "Stage 'rollouts' of staged.yaml: `dataset_name` is needed"),
        ({"stages": [SFT, GATE]}, "Stage 'sft' of staged.yaml: `teacher_bank` is needed"),
        (
            {"stages": [ROLLOUTS, SFT, GATE | {"early_stopping_patience": 2}]},
            "Stage 'gate' of staged.yaml: `early_stopping_patience` = 2 needs `eval_strategy`",
        ),
        (
            {"stages": [ROLLOUTS, SFT, GATE | {"verifier_settings": {"numeric": {}}}]},
            "Stage 'gate' of staged.yaml: `verifier_settings` are for ['numeric']",
        ),
        (
            {"stages": [ROLLOUTS, SFT | {"max_train_samples": 8}, GATE]},
            "Stage 'sft' of staged.yaml: `max_train_samples` = 8 means nothing to `trainer: sft`",
        ),
        (
            {"stages": [ROLLOUTS, SFT], "lambda_high": 2.0},
            "Unknown key 'lambda_high' in staged.yaml: no stage knows it",
        ),
        ({"prompts": "all"}, "Unknown key 'prompts' in staged.yaml: no stage knows it. It belongs to stage 'rollouts'"),
        ({"stages": [ROLLOUTS | {"gate": "sign"}, SFT]}, "staged.yaml: `gate` means nothing to stage 'rollouts'"),
    ],
)
def test_recipes_refused(settings, message, recipe, capsys, tmp_path):
    error, code = refused(capsys, "train", "--config", recipe(**settings))
    assert message in error and code != 0 and "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--max_steps", "3"],
            "--max_steps would not reach stage 'rollouts', which states `max_steps` itself. Give it as --rollouts.max_steps",
        ),
        (
            ["--model_name_or_path", "miniature:nine"],
            "--model_name_or_path would not reach stage 'gate', which states `model_name_or_path` itself",
        ),
        (["--lamda_high", "3"], "Unknown argument '--lamda_high': no stage knows it. Did you mean '--lambda_high'?"),
        (["--gaet.max_steps", "3"], "there is no stage 'gaet'. Did you mean '--gate'?"),
        (
            ["--gate.max_stepp", "3"],
            "Stage 'gate' of staged.yaml: Unknown argument '--max_stepp'. Did you mean '--max_steps'?",
        ),
        (["--rollouts.reverse_kl", "full_vocabulary"], "`reverse_kl` means nothing to stage 'rollouts'"),
        (["--rollouts.gate=random"], "The command line: `gate` means nothing to stage 'rollouts'"),
        (["--rollouts.lambda-high", "1.5"], "`lambda_high` means nothing to stage 'rollouts'"),
        (["--sft.output_dir", "x"], "The command line: `output_dir` belongs beside `stages`, not in stage 'sft'"),
        (["--sft.resume_from_checkpoint", "true"], "`resume_from_checkpoint` belongs beside `stages`"),
        (["--sft.use_peft", "true"], "stage 'gate' would start from 'sft''s output, which is an adapter"),
        (["--use_peft", "true"], "stage 'gate' would start from 'sft''s output, which is an adapter"),
        (["--rollouts.teacher_bank", "b"], "Stage 'sft' of staged.yaml: `teacher_bank` is needed"),
        (["--sft.config", "x.yaml"], "Stage 'sft' of staged.yaml: Unknown argument '--config'."),
        (["--sft.lambda_high", "2"], "It is a setting of `trainer: sgopd`, not of `sft`"),
        (
            ["--sft.max_steps", "many"],
            "Stage 'sft' of staged.yaml: argument --max_steps/--max-steps: invalid int value",
        ),
        (["--rollouts.prompts", "nope"], "Stage 'rollouts' of staged.yaml: argument --prompts: invalid choice: 'nope'"),
        (["--rollouts.batch_size", "0"], "Stage 'rollouts' of staged.yaml: --batch_size must be >= 1, got 0"),
        (["--prompts", "all"], "It belongs to stage 'rollouts': on the command line --rollouts.prompts."),
        (["--trainer", "sft"], "name the `trainer` in the stage"),
        (["--output_dir"], "Expected one value after --output_dir"),
        (["3"], "Unexpected argument '3'"),
    ],
)
def test_command_lines_refused(args, message, recipe, capsys, tmp_path):
    own = GATE | ({"model_name_or_path": "miniature:clean"} if args[0] == "--model_name_or_path" else {})
    error, code = refused(capsys, "train", "--config", recipe(stages=[ROLLOUTS, SFT, own]), *args)
    assert message in error and code == 2 and not (tmp_path / "out").exists()
    assert "usage:" not in error and "Did you mean '--config'" not in error


def test_a_launcher_around_stages_is_refused(recipe, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    error, _ = refused(capsys, "train", "--config", recipe())
    assert "start it without a launcher, as `sgopd train --config RECIPE --accelerate_config NAME`" in error


def test_each_stage_is_launched(recipe, monkeypatch, tmp_path):
    launched = []
    launch = lambda flags, command, gpus: launched.append((flags, command)) or 0  # noqa: E731
    monkeypatch.setattr("sgopd_trl.cli.train.launch_training", launch)
    assert main(["train", "--config", recipe(), "--accelerate_config", "ddp", "--num_processes", "2"]) == 0
    assert [command[0] for _, command in launched] == ["teacher-rollouts", "train", "train"]
    assert all(flags[-2:] == ["--num_processes", "2"] for flags, _ in launched)
    assert launched[1][1][1:] == ["--config", str(tmp_path / "out" / "_stages" / "sft.yaml")]


def test_ranges_are_checked_for_as_many_processes_as_will_be_launched(recipe, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sgopd_trl.cli.train.launch_training", lambda flags, command, gpus: 0)
    launch = ["--accelerate_config", "ddp"]  # two processes
    half = GATE | {"per_device_train_batch_size": 2}  # with groups of 4
    assert main(["train", "--config", recipe(stages=[ROLLOUTS, SFT, half]), *launch]) == 0
    assert (
        "must be divisible by num_generations"
        in refused(capsys, "train", "--config", recipe(stages=[ROLLOUTS, SFT, half]), *launch, "--num_processes", "1")[
            0
        ]
    )
    stages = [ROLLOUTS, SFT, half | {"lambda_high": 0.5}]
    error, _ = refused(capsys, "train", "--config", recipe(stages=stages), *launch)
    assert "Stage 'gate' of staged.yaml: `lambda_high` must be >= 1, got 0.5" in error


def test_a_stage_that_fails_ends_the_run(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("sgopd_trl.cli.train.launch_training", lambda flags, command, gpus: 3)
    assert main(["train", "--config", recipe(), "--num_processes", "2"]) == 3
    assert not list((tmp_path / "out" / "_stages").glob("*.done"))


def test_teacher_rollouts_of_a_staged_recipe_are_its_stages(recipe, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(
        "sgopd_trl.cli.train.launch_training", lambda flags, command, gpus: launched.append(command) or 0
    )
    assert main(["teacher-rollouts", "--config", recipe(), "--num_processes", "2"]) == 0
    assert [command[0] for command in launched] == ["teacher-rollouts"]
    error, _ = refused(capsys, "teacher-rollouts", "--config", recipe(stages=[SFT, GATE], teacher_bank="b"))
    assert "has no stage with `command: teacher-rollouts`" in error


# In earnest


def test_a_staged_run_and_how_it_goes_on(recipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    before = dict(os.environ)
    assert main(["train", "--config", recipe()]) == 0
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if line.startswith("Stage ")] == [
        "Stage 1 of 3, rollouts: sgopd teacher-rollouts",
        "Stage 2 of 3, sft: sgopd train",
        "Stage 3 of 3, gate: sgopd train",
    ]
    assert dict(os.environ) == before
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl") if "reverse_kl" in row] == [1, 2]
    assert len([row for row in read_metrics(out / "_stages" / "sft" / "metrics.jsonl") if "loss" in row]) == 2
    weights = load_file(out / "model.safetensors")

    # each stage by itself does the same
    assert main(["train", "--config", str(out / "_stages" / "gate.yaml"), "--output_dir", str(tmp_path / "again")]) == 0
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)

    # stopped in the last stage's second step: the others are not run again
    (out / "_stages" / "gate.done").unlink()
    (out / "checkpoint-2" / "trainer_state.json").unlink()
    capsys.readouterr()
    assert main(["train", "--config", recipe(), "--resume_from_checkpoint", "true"]) == 0
    said = capsys.readouterr().out
    assert "Stage 1 of 3, rollouts: finished before." in said and "Stage 2 of 3, sft: finished before." in said
    assert f"Resuming from {out / 'checkpoint-1'}." in said
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)

    # all finished, and changed since
    assert main(["train", "--config", recipe(), "--resume_from_checkpoint", "true"]) == 0
    assert "Stage 3 of 3, gate: finished before." in capsys.readouterr().out
    changed = recipe(stages=[ROLLOUTS, SFT | {"max_steps": 3}, GATE])
    error, _ = refused(capsys, "train", "--config", changed, "--resume_from_checkpoint", "true")
    assert "Stage 'sft' was finished with other settings: `max_steps` was 2 and is 3" in error

    # an earlier run's checkpoints are not taken for the stage's own
    (out / "_stages" / "gate.done").unlink()
    for state in out.glob("checkpoint-*/trainer_state.json"):
        os.utime(state, (0, 0))
    assert main(["train", "--config", recipe(), "--resume_from_checkpoint", "true"]) == 0
    assert "Resuming" not in capsys.readouterr().out


def test_a_new_start_forgets_what_was_finished(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("sgopd_trl.cli.train.launch_training", lambda flags, command, gpus: 0)
    launch = ["--num_processes", "2"]
    assert main(["train", "--config", recipe(), *launch]) == 0
    done = tmp_path / "out" / "_stages" / "gate.done"
    assert json.loads(done.read_text())["recipe"]["max_steps"] == 2
    monkeypatch.setattr("sgopd_trl.cli.train.launch_training", lambda flags, command, gpus: 1)
    assert main(["train", "--config", recipe(), *launch]) == 1
    assert not done.exists()
