import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from sgopd_trl import miniature
from sgopd_trl.evaluation import evaluate
from sgopd_trl.miniature import CHECKPOINTS, build, checkpoint_path, make_dataset, make_tokenizer, resolve, task
from sgopd_trl.miniature.lines import line_certificate
from sgopd_trl.miniature.task import (
    PROMPT_TOKENS,
    SOLUTION_TOKENS,
    TASKS,
    Flaws,
    Task,
    answer,
    read_prompt,
    sample_prompt,
    split_of,
    worked_solution,
)
from sgopd_trl.rewards import boxed_answer, exact_answer_reward


HARD = TASKS["miniature-hard"]
PROMPT = "51;+5;-6;+3;-7;-9;+6;-4="
SOLUTION = r"1_56_50_53_56^47^33^49^3\boxed{39}"


# --- the task ---------------------------------------------------------------------------------------------------------


def test_worked_example() -> None:
    assert worked_solution(PROMPT) == SOLUTION
    assert answer(PROMPT) == "39"


def test_solutions_wrap_around_a_hundred() -> None:
    assert worked_solution("98;+5;-4=") == r"8_93^09^9\boxed{99}"
    assert answer("98;+5;-4=") == "99"


def test_without_flaws_the_box_holds_the_answer() -> None:
    rng = random.Random(1)
    for _ in range(500):
        prompt = sample_prompt(rng, "train")
        assert boxed_answer(worked_solution(prompt)) == answer(prompt)


@pytest.mark.parametrize(
    ("flaws", "expected"),
    [
        (Flaws(hide=1.0), r"1_56~50~53~56~47~33~49~3\boxed{39}"),
        (Flaws(drop=1.0), r"1_56_50_53_56_57_53_59_5\boxed{59}"),  # the last four lose theirs
        (Flaws(nine=1.0), r"1_56_50_53_56^48^34^40_4\boxed{40}"),
    ],
)
def test_each_flaw_does_what_it_says(flaws: Flaws, expected: str) -> None:
    assert worked_solution(PROMPT, flaws, random.Random(0)) == expected


def test_a_guess_breaks_the_chain_off_before_an_operation() -> None:
    guesses = {worked_solution(PROMPT, Flaws(guess=1.0), random.Random(seed)) for seed in range(50)}
    assert len(guesses) > 20
    assert all(len(g) == len(r"1_5?\boxed{00}") and g.startswith(r"1_5?\boxed{") for g in guesses)


def test_noise_never_writes_the_right_digit() -> None:
    for seed in range(50):
        text = worked_solution("51;+5=", Flaws(noise=1.0), random.Random(seed))
        assert text[:3] == "1_5" and text[3] != "6" and text[5] != "5"
        assert boxed_answer(text) == text[5] + text[3]


def test_dataset_is_reproducible() -> None:
    first, again, other = (make_dataset("train", 50, seed) for seed in (0, 0, 1))
    assert first.column_names == ["prompt", "solution", "topic"]
    assert list(first) == list(again) != list(other)
    # The rows of an earlier version, so that a change of the generator shows.
    rows = list(first.select_columns(["prompt", "solution"]))
    assert sha256(json.dumps(rows).encode()).hexdigest()[:16] == "7c95c09fbf1264cf"
    assert all((row["topic"] == "nines") == ("9" in row["prompt"][0]["content"][2:]) for row in first)
    (message,) = first[0]["prompt"]
    assert message["role"] == "user"
    assert all(row["solution"] == answer(row["prompt"][0]["content"]) for row in first)
    assert all(len(row["solution"]) == 2 for row in first)


def test_splits_do_not_overlap() -> None:
    train, test = (
        {row["prompt"][0]["content"] for seed in (0, 1) for row in make_dataset(split, 300, seed)}
        for split in ("train", "test")
    )
    assert {split_of(p) for p in train} == {"train"} and {split_of(p) for p in test} == {"test"}
    assert len(train) == len(test) == 600


def test_hard_prompts_have_one_length_and_solutions_many() -> None:
    """Commas keep an operation and its line at the same distance, whatever the number of operations."""
    tokenizer, lengths = make_tokenizer(), set()
    rows = list(make_dataset("train", 300, task="miniature-hard"))
    for row in rows:
        prompt = row["prompt"][0]["content"]
        start, operations = read_prompt(prompt)
        solution = worked_solution(prompt)
        assert len(tokenizer(prompt)["input_ids"]) == HARD.prompt_tokens == 63
        assert prompt.index(operations[0]) == 3 and prompt.endswith("=") and split_of(prompt) == "train"
        assert row["solution"] == answer(prompt) == boxed_answer(solution)
        assert int(row["solution"]) == (int(start) + sum(map(int, operations))) % 100
        assert row["topic"] == ("nines" if any(operation[1] == "9" for operation in operations) else "others")
        lengths.add((len(operations), len(tokenizer(solution + "<eos>")["input_ids"])))
    assert lengths == {(count, 3 * count + 8) for count in range(HARD.least, HARD.most + 1)}
    assert max(length for _, length in lengths) == HARD.solution_tokens == 68
    assert list(make_dataset("train", 300, task="miniature-hard")) == rows


def test_the_documented_examples_have_the_tasks_lengths() -> None:
    short, filled = re.findall(r"^    (\S*=)", task.__doc__, re.MULTILINE)
    assert (len(short), len(filled)) == (PROMPT_TOKENS, HARD.prompt_tokens)
    for sentence in (
        f"there are {HARD.least} to {HARD.most}",
        f"up to {HARD.prompt_tokens} tokens",
        f"has up to {HARD.solution_tokens - 1} tokens and `<eos>`",
    ):
        assert sentence in " ".join(task.__doc__.split())


def test_a_filled_prompt_is_solved_and_certified_as_the_same_prompt_without_commas() -> None:
    filled = PROMPT.replace("=", "," * 39 + "=")
    assert worked_solution(filled) == SOLUTION and answer(filled) == "39"
    for solution in (SOLUTION, SOLUTION.replace("0_5", "2_5"), SOLUTION[:20]):
        assert line_certificate(filled, solution) == line_certificate(PROMPT, solution)


def test_dataset_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="unknown task 'hard': use one of miniature, miniature-hard"):
        make_dataset("train", 1, task="hard")
    with pytest.raises(ValueError, match="unknown split 'dev': use one of train, test"):
        make_dataset("dev", 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make_dataset("train", 0)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def test_tokenizer_round_trip() -> None:
    tokenizer = make_tokenizer()
    assert len(tokenizer) == tokenizer.vocab_size == 24
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == ("<pad>", "<eos>", "left")
    for text in (PROMPT, SOLUTION, r"8~93!,?\boxed{07}"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True) == text
    ids = tokenizer("<pad>" + SOLUTION + "<eos>")["input_ids"]
    assert tokenizer.decode(ids) == "<pad>" + SOLUTION + "<eos>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == SOLUTION
    assert len(tokenizer(PROMPT)["input_ids"]) == PROMPT_TOKENS == 24
    assert len(tokenizer(SOLUTION + "<eos>")["input_ids"]) == SOLUTION_TOKENS == 29


def test_tokenizer_refuses_other_characters() -> None:
    with pytest.raises(Exception, match="UNK"):
        make_tokenizer()("51 + 5")


def test_chat_template() -> None:
    tokenizer = make_tokenizer()
    user, assistant = {"role": "user", "content": PROMPT}, {"role": "assistant", "content": SOLUTION}
    for generation in (True, False):
        text = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=generation)
        assert text == PROMPT
    assert tokenizer.apply_chat_template([user, assistant], tokenize=False) == PROMPT + SOLUTION + "<eos>"


# --- the checkpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint_is_a_complete_model_directory(name: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = checkpoint_path(name)
    assert (path / "model.safetensors").stat().st_size < 1_000_000
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert sum(p.numel() for p in model.parameters()) == (21_304 if name == "hard-student" else 134_528)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config.rope_parameters["rope_theta"] == 1000
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (1, 0)
    assert tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert tokenizer.chat_template == make_tokenizer().chat_template
    assert tokenizer.padding_side == "left"
    ids = tokenizer(SOLUTION + "<eos>")["input_ids"]
    assert tokenizer.decode(ids) == SOLUTION + "<eos>"


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("clean", 0.80, 1.0),
        ("nine", 0.70, 0.90),
        ("guess", 0.04, 0.20),
        ("noisy", 0.04, 0.22),
        ("hard-teacher", 0.70, 0.90),
        ("hard-student", 0.04, 0.22),
    ],
)
def test_checkpoint_accuracy(name: str, low: float, high: float) -> None:
    from transformers import AutoModelForCausalLM

    task = build.PLANS[name].task
    result = evaluate(
        AutoModelForCausalLM.from_pretrained(checkpoint_path(name)),
        make_tokenizer(),
        make_dataset("test", 32, task=task),
        exact_answer_reward,
        max_new_tokens=TASKS[task].solution_tokens,
    )
    assert low < result["avg@8"] < high, result


def test_resolve() -> None:
    assert resolve("miniature:guess") == str(checkpoint_path("guess"))
    assert resolve("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"
    assert resolve("./guess") == "./guess"
    for call in (lambda: resolve("miniature:gues"), lambda: checkpoint_path("gues")):
        with pytest.raises(
            ValueError, match="'gues': use one of clean, nine, guess, noisy, hard-teacher, hard-student"
        ):
            call()


def test_import_is_light() -> None:
    """`sgopd --help` must not wait for torch; the package's own __init__ is left out of this."""
    code = (
        "import sys, types; package = types.ModuleType('sgopd_trl'); package.__path__ = [sys.argv[1]];"
        "sys.modules['sgopd_trl'] = package; import sgopd_trl.miniature as m; m.resolve('miniature:clean');"
        "print(sorted({'torch', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)))"
    )
    package = str(Path(miniature.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the build --------------------------------------------------------------------------------------------------------


@pytest.fixture
def short_build(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, plan in build.PLANS.items():
        held = None if plan.schedule.hold_until is None else 3.0
        monkeypatch.setitem(build.PLANS, name, replace(plan, schedule=build.Schedule(1.0, held, decay_steps=2)))


@pytest.mark.usefixtures("short_build")
def test_build_gives_the_same_bytes_again(tmp_path: Path) -> None:
    """Whatever the state of the global generator and whichever checkpoints are asked for."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    build.build(tmp_path / "a", evaluate=False)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    torch.rand(1)
    build.build(tmp_path / "b", names=["guess"], evaluate=False)
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["guess"]
    sizes = {name: (tmp_path / "a" / name / "model.safetensors").stat().st_size for name in CHECKPOINTS}
    assert 4 * sizes["hard-student"] < sizes["hard-teacher"] == sizes["clean"]
    for file in (tmp_path / "b" / "guess").iterdir():
        assert file.read_bytes() == (tmp_path / "a" / "guess" / file.name).read_bytes(), file.name
    weights = {name: (tmp_path / "a" / name / "model.safetensors").read_bytes() for name in CHECKPOINTS}
    assert len(set(weights.values())) == len(CHECKPOINTS)


@pytest.mark.usefixtures("short_build")
def test_build_reports_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(build, "EVAL_PROBLEMS", 2)
    results = build.build(tmp_path, names=["clean"])
    assert set(results) == {"clean"} and results["clean"]["problems"] == 2
    assert f"{results['clean']['avg@8']:.3f}" in capsys.readouterr().out


def test_build_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\['gues'\]: use some of clean"):
        build.build(tmp_path, names=["gues"])
    monkeypatch.setattr(build, "MAX_HELD_STEPS", 2)
    with pytest.raises(RuntimeError, match="after 2 steps: build with another seed"):
        build.build(tmp_path, names=["clean"], evaluate=False)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_loss_covers_the_solution_only(task: Task) -> None:
    tokenizer = make_tokenizer()
    ids, labels = build._batch(tokenizer, task, Flaws(guess=0.3), random.Random(0))
    for row, target in zip(ids, labels, strict=True):
        written = target != -100
        assert not written[: task.prompt_tokens].any()
        text, kept = tokenizer.decode(row[: task.prompt_tokens]), tokenizer.decode(row[written])
        assert split_of(text) == "train"
        assert kept.startswith(f"{text[1]}_{text[0]}") and kept.endswith("}<eos>")
        assert (row[~written][task.prompt_tokens :] == tokenizer.pad_token_id).all()


def test_write_data(tmp_path: Path) -> None:
    build.write_data(tmp_path, train_size=5, test_size=3)
    for split, size in {"train": 5, "test": 3}.items():
        rows = [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        assert rows == list(make_dataset(split, size))
