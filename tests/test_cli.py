"""The command line: what is refused and how, what is launched, and a run from a recipe to its last line."""

import json
import subprocess
import sys
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from datasets import Dataset
from transformers import TrainerState

from sgopd_trl.baselines.config import SFTBaselineConfig
from sgopd_trl.cli import env, main
from sgopd_trl.cli.arguments import TRAINERS, Parser, SGOPDScriptArguments, dataclasses, trainer_name
from sgopd_trl.cli.errors import UsageError, reported
from sgopd_trl.cli.launch import (
    RECIPES,
    launch_flags,
    launch_training,
    needs_launch,
    recipe_launch_args,
    resolve_accelerate_config,
    split_launch_args,
)
from sgopd_trl.cli.resume import find_checkpoint
from sgopd_trl.cli.train import check, parse, read_command_line
from sgopd_trl.miniature import make_dataset
from sgopd_trl.rewards import exact_answer_reward
from sgopd_trl.verifiers import load_verifier


RECIPE = RECIPES.parent / "miniature" / "sgopd" / "config.yaml"
NEEDED = {
    "model_name_or_path": "miniature:guess",
    "teacher_model_name_or_path": "miniature:clean",
    "dataset_name": "miniature",
    "reward_funcs": ["exact_answer_reward"],
    "use_cpu": True,
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "ACCELERATE_MIXED_PRECISION", "SGOPD_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the recipe sets it too: keep that out of the other tests


@pytest.fixture
def recipe(tmp_path):
    def write(**settings):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(NEEDED | settings))
        return str(path)

    return write


def refused(capsys, *argv):
    """The message and the exit code of a command line that is refused."""
    with pytest.raises(SystemExit) as exit_info:
        main(list(argv))
    return capsys.readouterr().err, exit_info.value.code


# Recipes and command lines that cannot be understood


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lamda_high": 2}, "Unknown key 'lamda_high' in recipe.yaml. Did you mean 'lambda_high'?"),
        ({"learning-rate": 1.0}, "Unknown key 'learning-rate' in recipe.yaml. Did you mean 'learning_rate'?"),
        ({"num_proceses": 2}, "Unknown key 'num_proceses' in recipe.yaml. Did you mean 'num_processes'?"),
        ({"zzzzqqqq": 2}, "Unknown key 'zzzzqqqq' in recipe.yaml."),
        ({"lambda_high": "much"}, "`lambda_high` must be float, got 'much'"),
        ({"lambda_high": [1.5]}, "`lambda_high` must be float, got [1.5]"),
        ({"max_steps": 1.5}, "`max_steps` must be int, got 1.5"),
        ({"use_peft": "perhaps"}, "`use_peft` must be true or false, got 'perhaps'"),
        ({"gate": "sgin"}, "`gate` must be one of sign, positive, random, two_level, never, got 'sgin'"),
        ({"save_strategy": False}, "`save_strategy` must be one of no, steps, epoch, best, got False; quote it"),
        ({"gate_cell_lambdas": ["a"]}, "`gate_cell_lambdas` must be float, got 'a'"),
        ({"env": ["A=1"]}, "`env` must be a mapping"),
    ],
)
def test_recipes_refused(settings, message, recipe, capsys):
    error, code = refused(capsys, "train", "--config", recipe(**settings))
    assert message in error and code == 2
    assert error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lamda_high", "2"], "Unknown argument '--lamda_high'. Did you mean '--lambda_high'?"),
        (["--lambda_hig", "2"], "Unknown argument '--lambda_hig'. Did you mean '--lambda_high'?"),  # no abbreviations
        (["--lamda-high=2"], "Unknown argument '--lamda-high'. Did you mean '--lambda_high'?"),
        (["--num_proceses", "2"], "Unknown argument '--num_proceses'. Did you mean '--num_processes'?"),
        (["--max_steps", "many"], "invalid int value: 'many'"),
        (["--max_steps"], "expected one argument"),
        (["other.yaml"], "Unexpected argument 'other.yaml'. Did you mean '--config other.yaml'?"),
        (["--num_processes"], "Expected a value after --num_processes."),
        (["--accelerate_config"], "Expected a value after --accelerate_config."),
        (["--model_name_or_path", ""], "`model_name_or_path` is needed"),
        (["--completion_only_loss", "true"], "It is a setting of `trainer: sft`, not of `sgopd`."),
    ],
)
def test_command_lines_refused(args, message, recipe, capsys):
    error, code = refused(capsys, "train", "--config", recipe(), *args)
    assert message in error and code == 2
    assert error.count("\n") == 1 and "Traceback" not in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("a: [", "is not valid YAML"),
        ("- a", "must hold a YAML mapping"),
        ("", "YAML mapping"),
    ],
)
def test_files_that_are_no_recipe(text, message, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    error, code = refused(capsys, "train", "--config", str(path))
    assert message in error and "recipe.yaml" in error and code == 2


def test_what_is_missing_is_named(capsys):
    assert "`model_name_or_path` is needed" in refused(capsys, "train")[0]
    assert "Expected the path of a recipe" in refused(capsys, "train", "--config")[0]


def test_a_recipe_may_name_everything_trl_recipes_do(recipe):
    path = recipe(
        lora_target_modules="all-linear",
        learning_rate="1e-4",
        stability_tau=None,
        gate="two_level",
        gate_cell_lambdas=[2, 1, 1, 2],
        teacher_model_init_kwargs={"dtype": "bfloat16"},
        resume_from_checkpoint=True,
        save_strategy="no",
        report_to=["none"],
        reward_funcs="exact_answer_reward",
        bf16=False,
        env={"SGOPD_TEST": 1},
    )
    _, training, values = read_command_line(
        [f"--config={path}", "--lambda_high", "1.5", "--no_box_answer", "--conversational=true"]
    )
    script, args, model = Parser().parse_args_and_config(training, fail_with_unknown_args=False)
    assert (args.learning_rate, args.stability_tau, args.lambda_high) == (1e-4, None, 1.5)
    assert args.teacher_model_init_kwargs == {"dtype": "bfloat16"} and model.lora_target_modules == "all-linear"
    assert script.reward_funcs == ["exact_answer_reward"] and script.conversational is True
    assert script.box_answer is False and values.use_cpu is True


def test_env_is_set_before_anything_is_imported(recipe, capsys, monkeypatch):
    monkeypatch.setenv("SGOPD_TEST", "")
    import os

    refused(capsys, "train", "--config", recipe(env={"SGOPD_TEST": 7}, lamda_high=1))
    assert os.environ["SGOPD_TEST"] == "7"


# Mistakes of the user's, and the others


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_high": 0.5}, "`lambda_high` must be >= 1, got 0.5"),
        ({"reward_funcs": "acuracy_reward"}, "Did you mean 'accuracy_reward'?"),
        ({"model_name_or_path": "miniature:gess"}, "'gess': use one of clean, nine, guess, noisy"),
        ({"dataset_name": "absent.jsonl"}, "absent.jsonl does not exist"),
        ({"resume_from_checkpoint": True}, "holds no whole checkpoint"),
        ({"model_name_or_path": "./no/such/model"}, "The student ./no/such/model cannot be loaded"),
    ],
)
def test_mistakes_are_one_message(settings, message, recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = recipe(bf16=False, output_dir="out", max_steps=1, **settings)
    error, code = refused(capsys, "train", "--config", path)
    assert message in error and code == 1
    assert "Traceback" not in error and "SGOPD_DEBUG=1" in error


def test_debug_keeps_the_traceback(recipe, monkeypatch):
    monkeypatch.setenv("SGOPD_DEBUG", "1")
    with pytest.raises(UsageError, match="lamda_high"):
        main(["train", "--config", recipe(lamda_high=2)])


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), reported("sgopd"):
        raise ZeroDivisionError


def test_other_processes_say_who_they_are(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(SystemExit), reported("sgopd train"):
        raise ValueError("no")
    assert capsys.readouterr().err.startswith("[rank 3] sgopd train: error: no\n")


# Launching


def test_launch_flags_are_separated():
    flags = launch_flags()
    launch, training = split_launch_args(
        ["--seed", "2", "--num_processes", "2", "--multi_gpu", "--bf16", "false", "--main-process-port=0", "--a", "2"],
        flags,
    )
    assert launch == ["--num_processes", "2", "--multi_gpu", "--main-process-port=0"]
    assert training == ["--seed", "2", "--bf16", "false", "--a", "2"]
    assert not {"env", "help", "seed", "bf16"} & set(flags)


def test_launch_keys_of_a_recipe(recipe):
    path = recipe(num_processes=2, multi_gpu=True, use_fsdp=False, accelerate_config="ddp")
    launch, training, _ = read_command_line(["--config", path, "--num_processes", "4"])
    assert launch[-2:] == ["--num_processes", "4"]  # accelerate takes the last
    assert "--multi_gpu" in launch and "--use_fsdp" not in launch and "True" not in launch
    assert training == ["--config", path]
    assert recipe_launch_args({"seed": 1}, launch_flags()) == []


@pytest.mark.parametrize(
    ("launch", "environ", "gpus", "expected"),
    [
        ([], {}, 0, False),
        ([], {}, 1, False),
        ([], {}, 2, True),
        (["--num_processes", "2"], {}, 0, True),
        (["--accelerate_config", "ddp"], {"LOCAL_RANK": "0"}, 2, False),
        ([], {"ACCELERATE_MIXED_PRECISION": "no"}, 8, False),
        ([], {"RANK": "0"}, 8, False),
    ],
)
def test_launch_decision(launch, environ, gpus, expected):
    assert needs_launch(launch, environ, gpus) is expected


def test_a_run_on_the_cpu_is_not_launched_for_the_gpus(recipe, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("sgopd_trl.cli.train.launch_training", lambda *args: 77)
    arguments = {"dataset_name": "absent.jsonl", "bf16": False}
    error, code = refused(capsys, "train", "--config", recipe(**arguments))
    assert "absent.jsonl does not exist" in error and code == 1
    assert main(["train", "--config", recipe(**arguments | {"use_cpu": False})]) == 77


def test_accelerate_config_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    file.write_text("distributed_type: 'NO'\n")
    assert resolve_accelerate_config(["--num_processes", "2"]) == ["--num_processes", "2"]
    ours = resolve_accelerate_config(["--accelerate_config", "zero2", "--num_processes", "2"])
    assert ours == ["--config_file", str(RECIPES / "zero2.yaml"), "--num_processes", "2"]
    trls = resolve_accelerate_config(["--accelerate_config", "fsdp2"])
    assert trls[0] == "--config_file" and trls[1].endswith("trl/accelerate_configs/fsdp2.yaml")
    assert Path(trls[1]).is_file()
    for given in (["--accelerate_config", str(file)], [f"--accelerate-config={file}"]):
        assert resolve_accelerate_config(given) == ["--config_file", str(file)]
    both = resolve_accelerate_config(["--accelerate_config", "zero2", "--accelerate_config", "zero3"])
    assert both == ["--config_file", str(RECIPES / "zero3.yaml")]
    (tmp_path / "ddp").write_text("distributed_type: 'NO'\n")
    assert resolve_accelerate_config(["--accelerate_config", "ddp"]) == ["--config_file", "ddp"]  # a file comes first
    with pytest.raises(UsageError, match="'zero9' is neither.*ddp, zero2, zero3.*fsdp2"):
        resolve_accelerate_config(["--accelerate_config", "zero9"])


def test_the_launched_command(monkeypatch):
    seen = []
    monkeypatch.setattr("accelerate.commands.launch.launch_command", seen.append)
    config = ["--config_file", str(RECIPES / "ddp.yaml"), "--num_processes", "3"]
    assert launch_training(config, ["train", "--config", "r.yaml", "--seed", "3"], gpu_count=0) == 0
    (args,) = seen
    assert args.module and args.training_script == "sgopd_trl.cli" and args.num_processes == 3
    assert args.training_script_args == ["train", "--config", "r.yaml", "--seed", "3"]


def test_a_failed_process_is_an_exit_code(monkeypatch, capsys):
    def fail(args):
        raise subprocess.CalledProcessError(returncode=3, cmd=["python"])

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    assert launch_training(["--config_file", str(RECIPES / "ddp.yaml")], ["train"], gpu_count=0) == 3
    monkeypatch.setenv("SGOPD_DEBUG", "1")
    with pytest.raises(subprocess.CalledProcessError):
        launch_training(["--config_file", str(RECIPES / "ddp.yaml")], ["train"], gpu_count=0)


def test_several_processes_without_gpus_are_not_silently_one(monkeypatch):
    monkeypatch.setattr("accelerate.commands.launch.default_config_file", "/absent")
    with pytest.raises(UsageError, match="--accelerate_config ddp"):
        launch_training(["--num_processes", "2"], ["train"], gpu_count=0)


def test_launch_flags_under_a_launcher_are_refused(monkeypatch, recipe):
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="Already started by a launcher"):
        read_command_line(["--config", recipe(), "--num_processes", "2"])
    launch, *_ = read_command_line(["--config", recipe(num_processes=2)])  # the launcher has read the recipe
    assert not needs_launch(launch, {"LOCAL_RANK": "0"}, 2)


# Parts of `sgopd train`


def test_reward_functions(tmp_path, monkeypatch):
    from trl.rewards import accuracy_reward

    assert load_verifier("accuracy_reward") is accuracy_reward
    assert load_verifier("exact_answer_reward") is exact_answer_reward
    (tmp_path / "my_rewards_of_a_test.py").write_text("def half(completions, **kwargs): return [0.5]\nlimit = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_verifier("my_rewards_of_a_test.half")([]) == [0.5]
    for name, message in (
        ("my_rewards_of_a_test.third", "has no attribute 'third'"),
        ("my_rewards_of_a_test.limit", "must be callable"),
        ("absent_module.fn", "No module named 'absent_module'"),
        ("exact_reward", "Use one of math, exact, numeric"),
    ):
        with pytest.raises(ValueError, match=message):
            load_verifier(name)


def test_checkpoints(tmp_path):
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-11").mkdir()  # was being written
    last = str(tmp_path / "checkpoint-10")
    for wanted, expected in ((True, last), ("true", last), ("True", last), (last, last), (None, None), (False, None)):
        args = SimpleNamespace(output_dir=str(tmp_path), resume_from_checkpoint=wanted)
        assert find_checkpoint(args) == expected
    for wanted, folder, message in (
        (True, "absent", "no whole checkpoint"),
        (str(tmp_path), ".", "no trainer_state.json"),
    ):
        with pytest.raises(ValueError, match=message):
            find_checkpoint(SimpleNamespace(output_dir=folder, resume_from_checkpoint=wanted))


@pytest.mark.parametrize(
    ("dataset", "on_card"), [("zwhe99/DeepMath-103K", "zwhe99/DeepMath-103K"), ("miniature", None), (__file__, None)]
)
def test_what_is_saved_and_pushed(dataset, on_card, tmp_path, capsys):
    from sgopd_trl.cli.train import finish

    calls = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path), push_to_hub=True),
        accelerator=SimpleNamespace(print=print, end_training=lambda: calls.append("end"), num_processes=1),
        state=SimpleNamespace(global_step=5),
        hub_model_id="me/student",
        save_model=lambda folder: calls.append(("save", folder)),
        create_model_card=lambda **kwargs: calls.append(("card", kwargs)),
        push_to_hub=lambda **kwargs: calls.append(("push", kwargs)),
    )
    finish(trainer, SGOPDScriptArguments(dataset_name=dataset))
    card = ("card", {"model_name": tmp_path.name, "dataset_name": on_card})
    assert calls == [("save", str(tmp_path)), card, ("push", {"dataset_name": on_card}), "end"]
    assert "https://huggingface.co/me/student" in capsys.readouterr().out
    calls.clear()
    trainer.args.push_to_hub = False
    finish(trainer, SGOPDScriptArguments())  # `trainer: sft` needs no dataset
    assert not [call for call in calls if call[0] == "push"] and calls[1][1]["dataset_name"] is None


@pytest.mark.parametrize("trainer", TRAINERS)
def test_script_arguments_do_not_shadow_the_trainers(trainer):
    ours, *others = dataclasses(trainer)
    names = [name for cls in others for name in cls.__dataclass_fields__]
    assert not set(ours.__dataclass_fields__) & set(names) and len(set(names)) == len(names)


# Which trainer


@pytest.mark.parametrize(
    ("trainer", "settings", "message"),
    [
        ("sftt", {}, "`trainer` must be one of sgopd, sft, gkd, grpo, got 'sftt'. Did you mean 'sft'?"),
        ("grpo", {}, "Unknown key 'teacher_model_name_or_path' in recipe.yaml. It is a setting of `trainer: sgopd`"),
        ("sft", {"teacher_model_name_or_path": None}, "It is a setting of `trainer: sgopd`, `gkd`, not of `sft`."),
        (
            "gkd",
            {"lambda_high": 1.8},
            "Unknown key 'lambda_high' in recipe.yaml. It is a setting of `trainer: sgopd`, not",
        ),
        ("gkd", {"lmbd": 0.5}, "Unknown key 'lmbd' in recipe.yaml. Did you mean 'lmbda'?"),
        ("gkd", {"teacher_model_name_or_path": None}, "`teacher_model_name_or_path` is needed"),
        ("gkd", {"beta": "half"}, "`beta` must be float, got 'half'"),
        (
            "sgopd",
            {"teacher_rollouts": "all"},
            "means nothing to `trainer: sgopd`: `teacher_sampling_filter_correct` says",
        ),
        ("sgopd", {"teacher_rollouts": "some"}, "`teacher_rollouts` must be one of verified, all, got 'some'"),
    ],
)
def test_keys_are_those_of_the_trainer(trainer, settings, message, recipe, capsys):
    error, code = refused(capsys, "train", "--config", recipe(trainer=trainer, **settings))
    assert message in error and code == 2 and error.count("\n") == 1


@pytest.mark.parametrize("trainer", ["sgopd", "gkd", "grpo"])
@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (None, "no loss: .* got 'loss', to avg@4 or pass@4"),
        ("eval_loss", "got 'eval_loss', to avg@4 or pass@4"),
        ("avg8", "`metric_for_best_model` is avg8, but with 4 samples a problem .* are avg@4 and pass@4"),
        ("eval_pass@8", "is pass@8, but with 4 samples"),
        ("avg@4", None),
        ("eval_pass@4", None),
        ("completions/mean_length", None),
    ],
)
@pytest.mark.parametrize("stops", [{}, {"early_stopping_patience": 2}])
def test_the_metric_of_the_best_model(stops, metric, message, trainer, tmp_path):
    evaluates = {"eval_strategy": "steps", "eval_steps": 50, "save_steps": 50, "num_generations_eval": 4}
    settings = NEEDED | stops | evaluates | {"load_best_model_at_end": True, "trainer": trainer, "bf16": False}
    if metric is not None:
        settings["metric_for_best_model"] = metric
    if trainer == "grpo":
        del settings["teacher_model_name_or_path"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    if stops and message and "loss" in message:
        message = "= 2 needs `metric_for_best_model`, got '(eval_)?loss': set for example avg@8"
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        check(["--config", str(tmp_path / "recipe.yaml")])


def test_sft_needs_a_bank_and_neither_teacher_nor_data(tmp_path, capsys):
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump({"trainer": "sft", "model_name_or_path": "miniature:guess", "bf16": False}))
    assert "`teacher_bank` is needed" in refused(capsys, "train", "--config", str(path))[0]
    _, training, _ = read_command_line(["--config", str(path), "--teacher_bank", "bank"])
    script, args, _ = parse(training)
    assert isinstance(args, SFTBaselineConfig) and (script.trainer, args.teacher_bank) == ("sft", "bank")


def test_the_command_line_names_the_trainer_too(recipe):
    path = recipe(trainer="gkd")
    assert trainer_name(["--config", path], {"trainer": "gkd"}) == "gkd"
    assert trainer_name(["--trainer", "grpo"], {"trainer": "gkd"}) == trainer_name(["--trainer=grpo"], {}) == "grpo"
    assert trainer_name([], {}) == "sgopd"


@pytest.mark.parametrize(
    ("trainer", "known", "unknown"),
    [("sft", "--completion_only_loss", "--lambda_high"), ("gkd", "--lmbda", "--gate"), ("grpo", "--epsilon", "--gate")],
)
def test_help_of_each_trainer(trainer, known, unknown, capsys):
    assert main(["train", "--trainer", trainer, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"{known} " in out and f"{unknown} " not in out and "A recipe may have stages" in out


def test_teacher_rollouts_needs_a_recipe_with_a_teachers_settings(recipe, capsys):
    error, code = refused(capsys, "teacher-rollouts", "--config", recipe(trainer="gkd", bf16=False))
    assert "`trainer: gkd` knows no settings of a teacher that generates" in error and code == 1


# The other subcommands


def test_help_does_not_wait_for_torch():
    code = (
        "import sys; from sgopd_trl.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'trl', 'transformers', 'datasets') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for command in ("train", "demo", "miniature", "env"):
        assert f"\n    {command}" in out


def test_help_of_train_names_every_setting(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ("--lambda_high", "--dataset_filter", "--lora_r", "--num_iterations", "--accelerate_config"):
        assert name in out


def test_no_command_prints_help(capsys):
    assert main([]) == 0 and "usage: sgopd" in capsys.readouterr().out


def test_demo(monkeypatch, tmp_path, capsys):
    seen = {}
    monkeypatch.setattr("sgopd_trl.demo.run_demo", lambda **kwargs: seen.update(kwargs))
    assert main(["demo", "--output_dir", str(tmp_path / "d"), "--max_steps", "5", "--seed", "2"]) == 0
    assert seen == {"output_dir": tmp_path / "d", "max_steps": 5, "seed": 2}
    main(["demo"])
    assert seen == {"output_dir": Path("sgopd-demo"), "max_steps": 100, "seed": 0}
    assert refused(capsys, "demo", "--max_steps", "101")[1] == 2
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(capsys, "demo", "--output_dir", str(tmp_path / "file"))[0]


def test_miniature_build(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr("sgopd_trl.miniature.build.build", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr("sgopd_trl.miniature.build.write_data", lambda *a, **k: calls.append((a, k)))
    out = tmp_path / "a" / "b"
    argv = ["miniature", "build", "--output_dir", str(out), "--names", "clean", "guess", "--seed", "3"]
    assert main(argv) == 0
    assert calls == [((out,), {"names": ["clean", "guess"], "seed": 3})] and out.is_dir()
    assert main([*argv, "--data"]) == 0
    assert calls[2] == ((out,), {"seed": 3})
    error, code = refused(capsys, "miniature", "build", "--output_dir", str(out), "--names", "bogus")
    assert "invalid choice: 'bogus'" in error and code == 2


def test_env(capsys, monkeypatch):
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    for line in ("- TRL version: ", "- sgopd-trl version: ", "- math-verify version: ", "- CPU count: "):
        assert line in out
    needs = ["trl>=1.16,<1.17", "torch>=99", "accelerate", "vllm>=1; extra == 'vllm'", "absent>=1"]
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    report = "\n".join(env.version_report())
    assert f"{metadata.version('trl')}, ok" in report
    assert "torch >=99: " in report and "NOT SUPPORTED" in report
    assert "absent >=1: not installed" in report and "accelerate" not in report


# From a recipe to the last line


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_train_from_a_recipe_with_own_data(suffix, tmp_path):
    rows = make_dataset("train", 24)
    rows = Dataset.from_dict(
        {
            "question": [row["prompt"][0]["content"] for row in rows],
            "gold": list(rows["solution"]),
            "level": [number % 3 for number in range(24)],
        }
    )
    data = tmp_path / f"rows.{suffix}"
    rows.to_parquet(data) if suffix == "parquet" else rows.to_json(data)
    out = tmp_path / "out"
    argv = (
        f"train --config {RECIPE} --dataset_name {data} --dataset_prompt_column question --dataset_answer_column gold"
    )
    argv += " --dataset_filter level>=1 --max_train_samples 12 --max_steps 2 --per_device_train_batch_size 8"
    argv += f" --num_generations 4 --save_steps 1 --output_dir {out}"
    command = [sys.executable, "-m", "sgopd_trl.cli", *argv.split()]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    for name in ("model.safetensors", "tokenizer.json", "README.md", "metrics.jsonl", "checkpoint-2"):
        assert (out / name).exists(), name
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics if "reverse_kl" in row] == [1, 2]
    assert "Trained for 2 steps." in result.stdout and str(out / "metrics.jsonl") in result.stdout
    card = (out / "README.md").read_text()
    assert "### Method" in card and "| optimizer steps | 2 |" in card
    assert "huggingface.co/datasets" not in card  # a file is no dataset of the Hub

    if suffix == "jsonl":  # from the last checkpoint on
        command += ["--max_steps", "3", "--resume_from_checkpoint", "true"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert result.returncode == 0, result.stderr[-3000:]
        assert f"Resuming from {out / 'checkpoint-2'}" in result.stdout
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").open()]
        assert [row["step"] for row in metrics if "reverse_kl" in row] == [1, 2, 3]


SMALL = "--max_steps 1 --per_device_train_batch_size 4 --num_generations 4"


@pytest.mark.distributed
def test_two_processes_from_one_command(tmp_path):
    argv = f"train --config {RECIPE} --accelerate_config ddp {SMALL} --output_dir {tmp_path / 'out'}"
    command = [sys.executable, "-m", "sgopd_trl.cli", *argv.split()]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("Trained for 1 steps.") == 1
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").open()]
    assert [row["step"] for row in metrics if "reverse_kl" in row] == [1]
    state = TrainerState.load_from_json(str(tmp_path / "out" / "checkpoint-1" / "trainer_state.json"))
    assert state.num_input_tokens_seen > 4 * (24 + 32)  # more than the longest rollouts of one process


@pytest.mark.distributed
def test_a_process_that_fails_fails_the_command(tmp_path):
    (tmp_path / "failing.py").write_text(
        "import os\n"
        "from sgopd_trl.rewards import exact_answer_reward\n"
        "def reward(completions, solution, trainer_state=None, **kwargs):\n"
        "    if trainer_state.max_steps > 0 and os.environ['RANK'] == '1':  # not when the golds are checked\n"
        "        raise RuntimeError('boom')\n"
        "    return exact_answer_reward(completions, solution)\n"
    )
    argv = f"train --config {RECIPE} {SMALL} --reward_funcs failing.reward --output_dir {tmp_path / 'out'}"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "ddp.yaml")]
    command = [*launcher, "-m", "sgopd_trl.cli", *argv.split()]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode != 0 and "RuntimeError: boom" in result.stderr
    assert not (tmp_path / "out" / "model.safetensors").exists()
