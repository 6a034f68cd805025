"""Studies that are refused before anything starts, and the folders of those that are not."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from sgopd_trl.cli.errors import UsageError
from sgopd_trl.cli.teacher_rollouts import make_parser
from sgopd_trl.miniature import checkpoint_path
from sgopd_trl.study import evaluation
from sgopd_trl.study.plan import make_plan, task_folder
from sgopd_trl.study.recipes import hash_weights, merge, resolve_recipes
from sgopd_trl.study.run import run_study
from sgopd_trl.study.spec import PROMPTS, read_study


RECIPES = Path(__file__).parents[1] / "recipes" / "miniature"
STUDIES = sorted(RECIPES.glob("study_*.yaml"))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Writes a study of two small recipes, with keys in the place of its own, and reads it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    for name in ("opd", "sgopd"):
        (tmp_path / "studies" / f"{name}.yaml").write_text((RECIPES / name / "config.yaml").read_text())

    def write(without: str | None = None, **keys):
        given = {
            "runs_dir": "runs",
            "output_dir": "table",
            "baseline": "OPD",
            "seeds": [0, 1],
            "overrides": {"max_steps": 2},
            "evaluation": {"dataset": "miniature", "k": 2},
            "rows": {"OPD": {"recipe": "opd.yaml"}, "SG-OPD": {"recipe": "sgopd.yaml"}},
        } | keys
        given.pop(without, None)
        path = tmp_path / "studies" / "study.yaml"
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        return read_study(path)

    return write


def refused(study, message, **keys):
    with pytest.raises(UsageError) as error:
        study(**keys)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base_line": "OPD"}, "Unknown key 'base_line' in study.yaml. Did you mean 'baseline'?"),
        ({"without": "seeds"}, "study.yaml lacks `seeds`."),
        ({"baseline": "ODP"}, "`baseline` must be one of the rows with a recipe, got 'ODP'. Did you mean 'OPD'?"),
        ({"seeds": [0, 1, 1]}, "`seeds` holds [1] more than once."),
        ({"seeds": []}, "`seeds` must hold at least one."),
        ({"seeds": [0, "1"]}, "`seeds` must be whole numbers >= 0, got '1'."),
        ({"seeds": [True]}, "`seeds` must be whole numbers >= 0, got True."),
        ({"seeds": 3}, "`seeds` must be a list, got 3."),
        ({"rows": {"OPD": {"recipe": "odp.yaml"}}}, "odp.yaml of row 'OPD' of study.yaml does not exist"),
        (
            {"rows": {"OPD": {"recpie": "opd.yaml"}}},
            "Unknown key 'recpie' in row 'OPD' of study.yaml. Did you mean 'recipe'?",
        ),
        ({"rows": {"OPD": {}}}, "row 'OPD' of study.yaml: give either `recipe` or `model`."),
        ({"rows": {"OPD": {"model": "m", "recipe": "opd.yaml"}}}, "give either `recipe` or `model`"),
        ({"rows": {"OPD": {"model": "m"}}}, "`baseline` must be one of the rows with a recipe, got 'OPD'."),
        ({"rows": {"OPD": {"model": "m", "overrides": {}}}}, "`overrides` are of a recipe"),
        (
            {"rows": {"OPD": {"recipe": "opd.yaml", "paper": {"avg@32": "27"}}}},
            "'avg@32' must be a number in percent, got '27'",
        ),
        ({"overrides": {"seed": 3}}, "`overrides` must not hold `seed`, which the study sets"),
        ({"prepare": [{"command": "train", "config": "opd.yaml"}]}, "`command` must be teacher-rollouts, got 'train'."),
        ({"prepare": [{"command": "teacher-rollouts"}]}, "`prepare` of study.yaml lacks `config`"),
        (
            {"prepare": [{"command": "teacher-rollouts", "config": "opd.yaml", "prompts": 4}]},
            "`prepare` of study.yaml: `prompts` must be run or all, got 4.",
        ),
        (
            {"prepare": [{"command": "teacher-rollouts", "config": "opd.yaml", "batch_size": 0}]},
            "`batch_size` in `prepare` of study.yaml must be >= 1, got 0.",
        ),
        ({"keep_models": "no"}, "`keep_models` must be true or false, got 'no'."),
        ({"gpus_per_run": 0}, "`gpus_per_run` must be >= 1, got 0."),
        ({"dynamics": ["SGOPD"]}, "`dynamics` must be rows with a recipe, got 'SGOPD'. Did you mean 'SG-OPD'?"),
    ],
)
def test_studies_refused(keys, message, study):
    refused(study, message, **keys)


def test_two_rows_of_one_name_are_refused(study, tmp_path):
    study()
    path = tmp_path / "studies" / "study.yaml"
    path.write_text(path.read_text().replace("SG-OPD:", "OPD:"))
    with pytest.raises(UsageError, match="'OPD' is there twice"):
        read_study(path)


def test_a_key_that_is_a_list_is_refused(study, tmp_path):
    study()
    path = tmp_path / "studies" / "study.yaml"
    path.write_text(path.read_text() + "? [a]\n: 1\n")
    with pytest.raises(UsageError, match="(?s)study.yaml is not valid YAML: .*found unhashable key"):
        read_study(path)


def test_prompts_are_those_of_the_command():
    (action,) = (action for action in make_parser()._actions if action.dest == "prompts")
    assert tuple(action.choices) == PROMPTS


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"overrides": {"max_stesp": 2}}, "`overrides`: no recipe knows 'max_stesp'. Did you mean 'max_steps'?"),
        (
            {"overrides": {"max_steps": "many"}},
            "row 'OPD': opd.yaml: `max_steps` must be int, got 'many'.",
        ),
        ({"overrides": {1: 2}}, "`overrides`: no recipe knows 1. There are: "),
        ({"overrides": {"stability_tau": -1.0}}, "row 'OPD': `stability_tau` must be None or > 0, got -1.0."),
        (
            {"rows": {"OPD": {"recipe": "opd.yaml", "overrides": {"lamda_base": 2}}}},
            "row 'OPD': studies/opd.yaml does not know the override 'lamda_base'. Did you mean 'lambda_base'?",
        ),
    ],
)
def test_recipes_refused(keys, message, study, monkeypatch, tmp_path):
    wrong = study(**keys)
    with pytest.raises(UsageError) as error:
        resolve_recipes(wrong)
    assert message in str(error.value).replace(f"{tmp_path}/", "")


def test_a_rows_overrides_come_last(study):
    rows = {"OPD": {"recipe": "opd.yaml", "overrides": {"max_steps": 7, "stability_tau": None}}}
    recipes, _ = resolve_recipes(study(rows=rows, overrides={"max_steps": 2, "learning_rate": 0.5}))
    assert (recipes["OPD"]["max_steps"], recipes["OPD"]["learning_rate"]) == (7, 0.5)
    assert recipes["OPD"]["stability_tau"] is None


STAGED = {
    "learning_rate": 0.1,
    "stages": [{"name": "sft", "trainer": "sft", "max_steps": 4}, {"name": "gate", "max_steps": 6}],
}


def test_overrides_of_stages():
    assert merge(STAGED, {"learning_rate": 0.2}) == STAGED | {"learning_rate": 0.2}
    merged = merge(STAGED, {"max_steps": 9, "stages": {"sft": {"max_steps": 3}, "gate": {"max_steps": 5}}})
    assert [stage["max_steps"] for stage in merged["stages"]] == [3, 5]
    assert [stage["max_steps"] for stage in STAGED["stages"]] == [4, 6]


def test_overrides_that_a_stage_would_not_see_are_refused():
    with pytest.raises(UsageError, match="no stage 'gaet', only sft, gate"):
        merge(STAGED, {"stages": {"gaet": {}}})
    for value in (None, 5):
        with pytest.raises(UsageError, match=f"override of stage 'sft' must be a mapping of its keys, got {value}"):
            merge(STAGED, {"stages": {"sft": value}})
    with pytest.raises(UsageError, match="`max_steps` would not reach stage 'gate', which states it itself"):
        merge(STAGED, {"max_steps": 9, "stages": {"sft": {"max_steps": 3}}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": "miniature", "max_problem": 3},
            "Unknown key 'max_problem' in `evaluation`. Did you mean 'max_problems'?",
        ),
        ({"dataset": "miniature", "model": "m"}, "Unknown key 'model' in `evaluation`."),
        ({"dataset": "miniature", "k": "many"}, "`evaluation`: argument --k: invalid int value: 'many'."),
        ({"k": 3}, "`evaluation` lacks `dataset`."),
        ({"dataset": "miniature", "trust_remote_code": False}, "`evaluation`: leave 'trust_remote_code' out"),
        ({"dataset": "miniature", "k": 0}, "`evaluation`: `k` must be at least 1, got 0."),
        ({"dataset": "miniature", "top_p": 1.5}, "`evaluation`: `top_p` must be in (0, 1], got 1.5."),
        ({"dataset": "miniature", "seed": None}, "`evaluation`: `seed` must be a whole number, got None."),
        ({"dataset": "miniature", "seed": "3"}, "`evaluation`: `seed` must be a whole number, got '3'."),
        (
            {"dataset": "miniature", "engine": "server", "server_url": "http://localhost:8000"},
            "`evaluation`: with `engine: server` every run would be given the figures of the model that the server has.",
        ),
        ({"dataset": "miniature", "batch_size": 8}, "`evaluation`: --batch_size is of --engine transformers"),
    ],
)
def test_evaluations_refused(settings, message):
    with pytest.raises(UsageError) as error:
        evaluation.check(settings)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verifier": "mth"}, "`evaluation`: Unknown reward function 'mth'. Did you mean 'math'?"),
        ({"dataset": "no.jsonl"}, "`evaluation`: The dataset file no.jsonl does not exist"),
        ({"max_problems": 0}, "`evaluation`: miniature: `max_problems` must be at least 1, got 0."),
        ({"verifier": "code", "max_problems": 4}, "`evaluation`: miniature: 4 of 4 gold answers are malformed"),
    ],
)
def test_data_and_verifiers_refused(settings, message):
    settings = {"dataset": "miniature", "engine": "transformers"} | settings
    evaluation.check(settings)
    with pytest.raises(UsageError) as error:
        evaluation.check_data(settings)
    assert message in str(error.value)


def test_data_that_are_there():
    settings = {"dataset": "miniature", "verifier": "exact_answer_reward", "max_problems": 4}
    evaluation.check_data(settings | {"engine": "transformers"})


@pytest.mark.parametrize("stated", [{}, {"engine": "vllm"}])
def test_an_engine_that_is_not_installed_is_refused(stated, monkeypatch, tmp_path):
    settings = {"dataset": "miniature", "verifier": "exact_answer_reward", "max_problems": 4} | stated
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match="needs vLLM, which is not installed.* or state `engine: transformers`"):
        evaluation.check_data(settings)
    monkeypatch.delitem(sys.modules, "vllm")
    (tmp_path / "vllm.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    evaluation.check_data(settings)


@pytest.fixture
def in_process(monkeypatch):
    monkeypatch.setattr("sgopd_trl.study.processes.start_server", lambda: None)
    monkeypatch.setattr("sgopd_trl.study.processes.call", lambda function, *args: function(*args))


def test_the_data_are_looked_at_before_the_first_run(study, in_process, monkeypatch):
    monkeypatch.setattr("sgopd_trl.study.run._run", lambda *args: pytest.fail("a run was started"))
    with pytest.raises(UsageError, match="no.jsonl does not exist"):
        run_study(study(evaluation={"dataset": "no.jsonl"}))


def test_runs_begin_seed_by_seed(study, in_process, monkeypatch):
    """Models first, then all rows of the first seed, in the order that is asked for; folders are there for these only."""
    begun = []
    monkeypatch.setattr("sgopd_trl.study.run._run", lambda study, prepare, tasks, *_: begun.extend(tasks) or 0)
    rows = {"OPD": {"recipe": "opd.yaml"}, "SG-OPD": {"recipe": "sgopd.yaml"}, "Teacher": {"model": "miniature:nine"}}
    evaluated = {"dataset": "miniature", "engine": "transformers", "verifier": "exact_answer_reward"}
    given = study(rows=rows, evaluation=evaluated)
    assert run_study(given, rows=["OPD"]) == 0
    assert [task.name for task in begun] == ["OPD, seed 0", "OPD, seed 1"]
    assert {path.name.rpartition("-")[0] for path in given.runs_dir.glob("*-*")} == {"opd"}
    begun.clear()
    run_study(given, seeds=[3, 1])
    assert [task.name for task in begun] == [
        "Teacher", "OPD, seed 3", "SG-OPD, seed 3", "OPD, seed 1", "SG-OPD, seed 1",
    ]  # fmt: skip


def test_a_report_makes_no_folders_of_runs(study, in_process):
    given = study()
    assert run_study(given, report_only=True) == 0
    assert not given.runs_dir.exists() and (given.output_dir / "table.md").is_file()


def test_evaluation_is_a_command_line():
    settings = {
        "dataset": ["a", "b"],
        "k": 4,
        "trust_remote_code": True,
        "box_answer": False,
        "verifier_settings": {"x": 1},
    }
    evaluation.check(settings)
    assert evaluation.command("m", settings, Path("out")) == [
        *("eval", "--model", "m", "--output_dir", "out", "--dataset", "a", "b", "--k", "4"),
        *("--trust_remote_code", "--box_answer", "false", "--verifier_settings", '{"x": 1}'),
    ]


def plan_of(study):
    return make_plan(study, *resolve_recipes(study), hash_weights(study))


def test_runs_are_evaluated_with_random_numbers_of_their_own(study):
    """Of one seed all rows have the same, as their differences are paired by seed. The folder's hash knows nothing of it."""
    stated = {"dataset": "miniature", "k": 2, "seed": 10}
    given = study(evaluation=stated)
    recipes, _ = resolve_recipes(given)
    tasks = make_plan(given, recipes, [], {}).runs
    assert {key: task.evaluation["seed"] for key, task in tasks.items()} == {
        ("OPD", 0): 10, ("OPD", 1): 11, ("SG-OPD", 0): 10, ("SG-OPD", 1): 11,
    }  # fmt: skip
    for name in ("OPD", "SG-OPD"):
        folder = task_folder(given.runs_dir, name, {"recipe": recipes[name], "evaluation": stated}, {})
        assert tasks[name, 0].folder.parent == tasks[name, 1].folder.parent == folder


def test_rollouts_that_no_row_would_find_are_refused(study):
    step = {"command": "teacher-rollouts", "config": "sgopd.yaml"}
    with pytest.raises(UsageError, match="sgopd.yaml names no `teacher_bank`.* the same in those of the rows"):
        resolve_recipes(study(prepare=[step]))
    bank = {"teacher_bank": "bank"}
    _, (own,) = resolve_recipes(study(prepare=[step | {"overrides": bank}]))
    _, (common,) = resolve_recipes(study(prepare=[step], overrides=bank))
    assert own["teacher_bank"] == common["teacher_bank"] == "bank"


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([{"name": "gate"}], {}, "has no stage with `command: teacher-rollouts`"),
        (
            [{"name": "rollouts", "command": "teacher-rollouts"}, {"name": "gate"}],
            {"prompts": "all"},
            "Unknown argument '--prompts': no stage knows it.",
        ),
    ],
)
def test_what_prepare_would_refuse_of_a_recipe_in_stages(stages, options, message, study, tmp_path):
    """Its options are the stage's own."""
    study()
    recipe = yaml.safe_load((tmp_path / "studies" / "sgopd.yaml").read_text())
    (tmp_path / "studies" / "staged.yaml").write_text(yaml.safe_dump(recipe | {"stages": stages}))
    step = {"command": "teacher-rollouts", "config": "staged.yaml"} | options
    with pytest.raises(UsageError) as error:
        resolve_recipes(study(prepare=[step], overrides={"teacher_bank": "bank"}))
    assert str(error.value).startswith("`prepare`: ") and message in str(error.value)


def test_one_folder_for_what_is_stated(study, tmp_path):
    """Another name, another seed and another study share a run; another value, or evaluation, does not."""
    first = plan_of(study()).runs
    assert first["OPD", 0].folder.parent == first["OPD", 1].folder.parent
    assert [first["OPD", seed].folder.name for seed in (0, 1)] == ["seed-0", "seed-1"]
    assert first["OPD", 0].folder.parent.name.startswith("opd-")

    twins = plan_of(study(rows={name: {"recipe": "opd.yaml"} for name in ("OPD", "Again")})).runs
    assert twins["Again", 0].folder == first["OPD", 0].folder

    first["OPD", 0].folder.mkdir(parents=True)
    renamed = plan_of(study(baseline="plain", output_dir="other", rows={"plain": {"recipe": "opd.yaml"}})).runs
    assert renamed["plain", 0].folder == first["OPD", 0].folder

    others = [
        study(overrides={"max_steps": 3}),
        study(evaluation={"dataset": "miniature", "k": 4}),
        study(rows={"OPD": {"recipe": "opd.yaml", "overrides": {"lambda_base": 1.25}}}),
    ]
    folders = {first["OPD", 0].folder, *(plan_of(other).runs["OPD", 0].folder for other in others)}
    assert len(folders) == 4


def test_a_model_whose_weights_are_others_is_another(study, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(checkpoint_path("nine"), model)
    rows = {"OPD": {"recipe": "opd.yaml"}, "Model": {"model": "model"}, "Hub": {"model": "some/model"}}
    first, same = plan_of(study(rows=rows)).runs, plan_of(study(rows=rows)).runs
    shutil.copy(checkpoint_path("guess") / "model.safetensors", model)
    overwritten = plan_of(study(rows=rows)).runs
    assert first["Model", None].folder == same["Model", None].folder != overwritten["Model", None].folder
    assert first["Hub", None].folder == overwritten["Hub", None].folder


def test_a_model_that_there_is_not(study):
    with pytest.raises(UsageError, match="row 'Model': unknown miniature checkpoint 'ten'"):
        hash_weights(study(rows={"OPD": {"recipe": "opd.yaml"}, "Model": {"model": "miniature:ten"}}))


def test_rows_on_rollouts_of_another_prepare_are_others(study):
    """Only those that read its bank, whether it is named with or without a slash."""
    step = {"command": "teacher-rollouts", "config": "sgopd.yaml", "overrides": {"teacher_bank": "bank"}}
    reads = {"recipe": "sgopd.yaml", "overrides": {"teacher_bank": "bank/"}}
    rows = {"OPD": {"recipe": "opd.yaml"}, "SG-OPD": reads}

    def folders(**options):
        runs = plan_of(study(rows=rows, prepare=[step | options])).runs
        return {row: runs[row, 0].folder for row in rows}

    drawn, all_prompts = folders(), folders(prompts="all")
    assert drawn["OPD"] == all_prompts["OPD"] and drawn["SG-OPD"] != all_prompts["SG-OPD"]
    assert folders() == drawn


def test_the_recipe_of_a_run_says_everything(study):
    task = plan_of(study()).runs["SG-OPD", 1]
    assert (task.recipe["seed"], task.recipe["max_steps"], task.recipe["lambda_high"]) == (1, 2, 1.8)
    assert task.recipe["output_dir"] == task.model == str(task.folder / "train")
    assert task.stated["overrides"] == {"max_steps": 2}


def test_the_seed_and_the_output_folder_of_a_recipe_say_nothing(tmp_path):
    one = task_folder(tmp_path, "A row: 1.8/β", {"recipe": {"seed": 0, "output_dir": "a", "x": 1.0}}, {})
    assert one.name.rpartition("-")[0] == "a-row-1.8"
    one.mkdir()
    assert task_folder(tmp_path, "b", {"recipe": {"x": 1.0, "output_dir": "b", "seed": 5}}, {}) == one


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = read_study(path)
    plan = plan_of(study)
    trained = [row for row in study.rows if row.recipe is not None]
    evaluation.check(study.evaluation)
    assert len(study.seeds) >= 8
    assert len({plan.runs[row.name, 0].folder for row in trained}) == len(trained), "two rows are the same run"
    if path.stem.startswith("study_table"):
        assert study.baseline == "OPD" and {"random", "positive"} <= {
            task.recipe.get("gate") for task in plan.runs.values() if task.recipe
        }


def test_there_are_shipped_studies():
    assert STUDIES
