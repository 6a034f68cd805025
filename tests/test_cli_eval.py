"""`sgopd eval`: the miniature with transformers, the paper's benchmarks through a server, a kill in the middle, comparisons."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from fake_server import FakeServer
from test_cli import no_launcher, refused  # noqa: F401
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sgopd_trl.cli import main
from sgopd_trl.evaluation import evaluate
from sgopd_trl.evaluation.metrics import pass_at_k
from sgopd_trl.miniature import resolve
from sgopd_trl.seeded_sampling import rollout_seed


BENCHMARKS = ("aime24", "aime25", "hmmt25_feb", "hmmt25_nov")
ANSWERS = ("70", "\\frac{1}{576}", "1-\\frac{2}{\\pi}", "\\frac{-1+\\sqrt{17}}{2}, \\frac{-1-\\sqrt{17}}{2}", "3")
MINIATURE = [
    *("eval", "--model", "miniature:guess", "--dataset", "miniature", "--k", "4", "--engine", "transformers"),
    *("--verifier", "exact_answer_reward", "--max_new_tokens", "32"),
]


def run(capsys, *arguments) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


def read_lines(path):
    return [json.loads(line) for line in Path(path).open()]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


# transformers


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """An evaluation of the miniature, 64 problems x 4."""
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    assert main([*MINIATURE, "--max_problems", "64", "--output_dir", str(folder)]) == 0
    return folder


def test_the_miniature(miniature):
    found = summary_of(miniature)
    assert found["model"] == "miniature:guess" and list(found["datasets"]) == ["miniature"]
    entry = found["datasets"]["miniature"]
    assert (entry["problems"], entry["samples"], entry["unparsed"]) == (64, 256, None)
    assert entry["verdicts"]["correct"] + entry["verdicts"]["wrong"] == 256
    for name in ("avg@4", "pass@4"):
        assert 0 < entry[name]["low"] < entry[name]["mean"] < entry[name]["high"] < 1
    samples = read_lines(miniature / "miniature" / "samples.jsonl")
    assert Counter((line["problem"], line["sample"]) for line in samples) == {
        (p, s): 1 for p in range(64) for s in range(4)
    }
    golds = [line["solution"] for line in read_lines(miniature / "miniature" / "problems.jsonl")]
    verdicts = {(v["problem"], v["sample"]): v for v in read_lines(miniature / "miniature" / "verdicts.jsonl")}
    for line in samples:
        boxes = re.findall(r"\\boxed\{\d\d\}", line["completion"])
        right = boxes[-1:] == [golds[line["problem"]]] and line["finish_reason"] == "stop"
        verdict = verdicts[line["problem"], line["sample"]]
        assert verdict["correct"] == right
        assert (len(line["completion_ids"]), line["seed"]) == (verdict["tokens"], verdict["seed"])
        assert line["finish_reason"] == ("stop" if line["completion_ids"][-1] == 1 else "length")
    assert sum(v["correct"] for v in verdicts.values()) == round(256 * entry["avg@4"]["mean"])


def test_a_sample_depends_on_neither_its_batch_nor_what_was_done_before(miniature, tmp_path, capsys):
    code, _ = run(capsys, *MINIATURE, "--max_problems", "8", "--batch_size", "3", "--output_dir", tmp_path)
    assert code == 0
    ids = {(s["problem"], s["sample"]): s["completion_ids"] for s in read_lines(miniature / "miniature/samples.jsonl")}
    for line in read_lines(tmp_path / "miniature" / "samples.jsonl"):
        assert line["completion_ids"] == ids[line["problem"], line["sample"]]


def test_it_agrees_with_the_evaluation_in_memory(miniature):
    """Other random numbers, the same model: within the interval of the difference, four standard errors."""
    from transformers import AutoModelForCausalLM

    from sgopd_trl.miniature import checkpoint_path, make_dataset, make_tokenizer
    from sgopd_trl.rewards import exact_answer_reward

    model = AutoModelForCausalLM.from_pretrained(checkpoint_path("guess"))
    data = make_dataset("test", 256).select(range(64))
    other = evaluate(model, make_tokenizer(), data, exact_answer_reward, k=4, max_new_tokens=32, seed=5)
    entry = summary_of(miniature)["datasets"]["miniature"]
    assert other["avg@4"] == pytest.approx(entry["avg@4"]["mean"], abs=4 * (0.1 * 0.9 * 2 / 256) ** 0.5)


def test_the_models_own_sampling_settings_do_not_leak_in(tmp_path, capsys):
    """Qwen3 ships top_k=20 and a top_p; with top_k=1 leaking in, all samples of a prompt would be the same."""
    from transformers import AutoModelForCausalLM

    from sgopd_trl.miniature import checkpoint_path, make_tokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint_path("guess"))
    model.generation_config.update(do_sample=True, top_k=1, temperature=0.01, repetition_penalty=3.0)
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    arguments = [*MINIATURE, "--max_problems", "8", "--output_dir"]
    run(capsys, *arguments, tmp_path / "own", "--model", tmp_path / "model")
    run(capsys, *arguments, tmp_path / "plain")
    own, plain = (read_lines(tmp_path / name / "miniature" / "samples.jsonl") for name in ("own", "plain"))
    assert [line["completion_ids"] for line in own] == [line["completion_ids"] for line in plain]


def test_a_branch_of_the_hub_that_has_moved_is_refused(tmp_path, capsys, monkeypatch):
    """As a Hub id is found in the cache: what `main` stands for is remembered. So is the template that made the prompts."""
    repository, commits = tmp_path / "hub" / "models--org--guess", ("0123456789" * 4, "9876543210" * 4)
    for commit in commits:
        shutil.copytree(resolve("miniature:guess"), repository / "snapshots" / commit)
    reference = repository / "refs" / "main"
    reference.parent.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments = [*MINIATURE, "--model", "org/guess", "--max_problems", "2", "--output_dir", str(tmp_path / "out")]

    reference.write_text(commits[0])
    assert main(arguments) == 0
    assert summary_of(tmp_path / "out")["settings"]["weights"] == commits[0]
    reference.write_text(commits[1])
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"`weights` was '{commits[0]}' and is now '{commits[1]}'" in capsys.readouterr().err
    reference.write_text(commits[0])
    template = repository / "snapshots" / commits[0] / "chat_template.jinja"
    template.write_text(template.read_text() + "{# another #}")
    with pytest.raises(SystemExit):
        main(arguments)
    assert "holds samples of other settings: `chat_template` was" in capsys.readouterr().err


def test_finished_evaluations_load_no_model(miniature, capsys, monkeypatch):
    monkeypatch.setattr("sgopd_trl.cli.eval._open_engine", lambda *arguments: pytest.fail("an engine was opened"))
    before = summary_of(miniature)
    code, printed = run(capsys, *MINIATURE, "--max_problems", "64", "--output_dir", miniature)
    assert code == 0 and summary_of(miniature) == before
    assert "avg@4" in printed and f"Summary in {miniature / 'summary.json'}" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["eval"], 2, "--model is needed (or --compare RUN_A RUN_B)"),
        ([*MINIATURE, "--server_url", "http://x", "--output_dir", "{tmp}"], 2, "--server_url belong together"),
        ([*MINIATURE, "--engine", "server", "--output_dir", "{tmp}"], 2, "--engine server and --server_url"),
        ([*MINIATURE, "--k", "0", "--output_dir", "{tmp}"], 1, "`k` must be at least 1, got 0"),
        ([*MINIATURE, "--max_problems", "0", "--output_dir", "{tmp}"], 1, "`max_problems` must be at least 1, got 0"),
        (
            [*MINIATURE, "--prompt_column", "qestion", "--output_dir", "{tmp}"],
            1,
            "miniature: `prompt_column` names the column 'qestion'",
        ),
        (
            [*MINIATURE, "--answer_column", "anwser", "--output_dir", "{tmp}"],
            1,
            "miniature: `answer_column` names the column 'anwser'",
        ),
        (
            [*MINIATURE, "--vllm_settings", "{{}}", "--output_dir", "{tmp}"],
            2,
            "--vllm_settings is of --engine vllm, and would do nothing with --engine transformers",
        ),
        (
            [*MINIATURE, "--engine", "vllm", "--batch_size", "256", "--output_dir", "{tmp}"],
            2,
            "--batch_size is of --engine transformers, and would do nothing with --engine vllm",
        ),
        (
            [*MINIATURE, "--engine", "server", "--server_url", "x", "--dtype", "float32", "--output_dir", "{tmp}"],
            2,
            "--dtype is of --engine vllm or transformers, and would do nothing with --engine server",
        ),
        (
            [*MINIATURE, "--engine", "vllm", "--vllm_settings", '{{"dtype": "half"}}', "--output_dir", "{tmp}"],
            2,
            "--vllm_settings holds 'dtype', which --dtype sets",
        ),
        (
            [*MINIATURE, "--max_new_tokens", "512", "--output_dir", "{tmp}"],
            1,
            "has positions for 512 tokens (`max_position_embeddings`), but the longest prompt (24) and `max_new_tokens` (512)",
        ),
        (
            [*MINIATURE, "--dataset_config", "x", "--output_dir", "{tmp}"],
            1,
            "`dataset_config` 'x' would do nothing with miniature",
        ),
        (
            [*MINIATURE, "--chat_template_kwargs", '{{"tokenize": false}}', "--output_dir", "{tmp}"],
            1,
            "`chat_template_kwargs` holds 'tokenize', which the evaluation sets itself",
        ),
        ([*MINIATURE, "--temperature", "nan", "--output_dir", "{tmp}"], 1, "`temperature` must be finite"),
        ([*MINIATURE, "--verifier", "mth", "--output_dir", "{tmp}"], 1, "Did you mean 'math'?"),
        ([*MINIATURE, "--dataset", "no.jsonl", "--output_dir", "{tmp}"], 1, "no.jsonl does not exist"),
        (
            [*MINIATURE, "--model", "./nowhere", "--output_dir", "{tmp}"],
            1,
            "The tokenizer of ./nowhere cannot be loaded",
        ),
        ([*MINIATURE, "--batch_size", "0", "--output_dir", "{tmp}"], 1, "`batch_size` must be at least 1, got 0"),
        ([*MINIATURE, "--chat_template_kwargs", "[1]", "--output_dir", "{tmp}"], 2, "'[1]' is no JSON object"),
        (["eval", "--compare", "{tmp}", "{tmp}"], 1, "it has no summary.json"),
        (["eval", "--compare", "a", "b", "--confidence", "-0.5"], 1, "`confidence` must be in (0, 1), got -0.5"),
        (
            ["eval", "--compare", "a", "b", "--bootstrap_samples", "0"],
            1,
            "`bootstrap_samples` must be at least 1, got 0",
        ),
        (["eval", "--compare", "a", "b", "--bootstrap_seed", "-1"], 1, "`bootstrap_seed` must not be negative, got -1"),
        (
            ["eval", "--compare", "a", "b", "--k", "7", "--dataset", "zzz"],
            2,
            "--dataset, --k would do nothing with --compare, which takes --output_dir, --confidence",
        ),
    ],
)
def test_what_is_refused(tmp_path, capsys, arguments, code, said):
    with pytest.raises(SystemExit) as exit:
        main([argument.format(tmp=tmp_path) for argument in arguments])
    assert exit.value.code == code
    assert said in capsys.readouterr().err


def test_vllm_where_it_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(SystemExit) as exit:
        main([*MINIATURE, "--engine", "vllm", "--output_dir", str(tmp_path)])
    printed = capsys.readouterr()
    said = printed.err
    assert "the same command goes on" not in printed.out
    assert exit.value.code == 1 and "needs vLLM" in said and "--engine server or --engine transformers" in said


# Comparisons


def rewrite_verdicts(source, target, change):
    """A copy of a run whose verdicts are changed."""
    (target / "miniature").mkdir(parents=True)
    for path in ("summary.json", "settings.json", "miniature/problems.jsonl"):
        (target / path).write_text((source / path).read_text())
    lines = read_lines(source / "miniature" / "verdicts.jsonl")
    for line in lines:
        change(line)
    (target / "miniature" / "verdicts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_compare_by_hand(miniature, tmp_path, capsys):
    def first(line):  # problems 0 to 31 right once, the others never
        line["correct"] = line["problem"] < 32 and line["sample"] == 0

    def second(line):  # problems 0 to 7 never any more, 8 to 23 as before, 24 to 31 right twice, 32 to 35 once
        problem, sample = line["problem"], line["sample"]
        line["correct"] = (8 <= problem < 36 and sample == 0) or (24 <= problem < 32 and sample == 1)

    rewrite_verdicts(miniature, tmp_path / "a", first)
    rewrite_verdicts(miniature, tmp_path / "b", second)
    code, printed = run(capsys, "eval", "--compare", tmp_path / "a", tmp_path / "b", "--output_dir", tmp_path)
    assert code == 0
    found = json.loads((tmp_path / "comparison.json").read_text())
    entry = found["datasets"]["miniature"]
    counts = dict(problems=64, up=12, down=8, equal=44, solved_by_a_only=8, solved_by_b_only=4)
    assert {name: entry[name] for name in counts} == counts
    assert entry["avg@4"]["mean"] == pytest.approx((12 - 8) * 0.25 / 64)
    assert entry["pass@4"]["mean"] == pytest.approx((4 - 8) / 64)
    assert entry["avg@4"]["low"] < 0 < entry["avg@4"]["high"]
    # Standard error of the mean of 12 times +1/4, 8 times -1/4, 44 times 0
    width = entry["avg@4"]["high"] - entry["avg@4"]["low"]
    assert width == pytest.approx(2 * 1.96 * 0.25 * ((20 - 4**2 / 64) / 64 / 64) ** 0.5, rel=0.1)
    assert found["average"]["avg@4"] == entry["avg@4"] and found["warnings"] == []
    assert "+1.56 [" in printed and "-6.25 [" in printed


def test_compare_refuses_what_cannot_be_paired(miniature, tmp_path, capsys):
    def edit(name, path, old, new):
        target = tmp_path / name
        rewrite_verdicts(miniature, target, lambda line: None)
        text = (target / path).read_text()
        assert old in text
        (target / path).write_text(text.replace(old, new, 1))
        return target

    key = read_lines(miniature / "miniature" / "problems.jsonl")[5]["key"]
    renamed = edit("benchmark", "summary.json", '"miniature": {', '"other": {')
    (renamed / "miniature").rename(renamed / "other")
    for target, said in (
        (edit("problems", "miniature/problems.jsonl", key, "other"), "problem 5 is"),
        (edit("k", "summary.json", '"k": 4', '"k": 2'), "at k = 4 and"),
        (renamed, "has no results on miniature"),
    ):
        with pytest.raises(SystemExit):
            main(["eval", "--compare", str(miniature), str(target)])
        assert said in capsys.readouterr().err
    warmer = edit("warmer", "summary.json", '"temperature": 1.0', '"temperature": 0.6')
    _, printed = run(capsys, "eval", "--compare", miniature, warmer)
    assert "Not only the models differ: `temperature` is 1.0 in A and 0.6 in B." in printed
    for name, old, new in (
        ("top_p", "1.0", "0.95"),
        ("max_new_tokens", "32", "64"),
        ("verifier", '"exact_answer_reward"', '"exact"'),
        ("verifier_settings", "{}", '{"workers": 2}'),
        ("system_prompt", "null", '"Think."'),
        ("chat_template_kwargs", "{}", '{"enable_thinking": false}'),
        ("engine", '"transformers"', '"vllm"'),
        ("dtype", "null", '"float32"'),
        ("vllm_settings", "null", '{"quantization": "fp8"}'),
    ):
        other = edit(name, "summary.json", f'"{name}": {old}', f'"{name}": {new}')
        _, printed = run(capsys, "eval", "--compare", miniature, other)
        assert f"Not only the models differ: `{name}` is" in printed


def test_the_confidence_is_not_rounded(miniature, capsys):
    _, printed = run(capsys, "eval", "--compare", miniature, miniature, "--confidence", "0.999")
    assert "with 99.9% intervals" in printed
    more = ["--max_problems", "64", "--output_dir", miniature]
    assert "with 99.5% intervals" in run(capsys, *MINIATURE, *more, "--confidence", "0.995")[1]
    assert "with 95% intervals" in run(capsys, *MINIATURE, *more)[1]


def test_compare_does_not_wait_for_torch(miniature):
    code = "import sys; from sgopd_trl.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "eval", "--compare", miniature, miniature], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


# A server, and the paper's benchmarks


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A tokenizer for any text, byte by byte, with a template that knows `enable_thinking`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({"<|end|>": 0} | {c: i for i, c in enumerate(alphabet, 1)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
        "{% if enable_thinking is defined and not enable_thinking %} <no thinking>{% endif %}"
    )
    folder = tmp_path_factory.mktemp("bytes")
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four files in the shape of the paper's benchmarks: 30 problems each, golds as text and as numbers."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for number, name in enumerate(BENCHMARKS):
        rows = [
            {
                "id": i,
                "problem": f"{name} problem {i:02d}: compute $x$.",
                "answer": ANSWERS[(i + number) % len(ANSWERS)],
            }
            for i in range(30)
        ]
        if name == "aime25":
            rows = [row | {"answer": i} for i, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class Student(FakeServer):
    """Answers a third of its seeds right, a third wrong, and the rest without an answer; every 16th is cut off. The first `failing` fail."""

    failing = 0

    def __init__(self, tokenizer_folder, files, **settings):
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
        self.golds = {row["problem"]: str(row["answer"]) for path in files.glob("*.jsonl") for row in read_lines(path)}
        super().__init__(
            **dict(max_model_len=32768, detokenize=lambda ids: self.tokenizer.decode(ids, skip_special_tokens=False))
            | settings
        )

    def complete(self, body):
        if not body.get("return_token_ids"):
            return super().complete(body)
        if self.failing > 0:
            self.failing -= 1
            raise OSError("overloaded")  # HTTP 500
        text = self.tokenizer.decode(body["prompt"][0])
        (gold,) = (gold for problem, gold in self.golds.items() if problem in text)
        seed = body["seed"]
        text = (f"It is \\boxed{{{gold}}}.", "It is \\boxed{-12345}.", "I do not know.")[seed % 3]
        cut = seed % 16 == 0
        ids = self.tokenizer(text)["input_ids"] + ([] if cut else [0])
        choice = {"index": 0, "text": text, "finish_reason": "length" if cut else "stop", "token_ids": ids}
        return {"model": self.model, "choices": [choice]}

    def asked(self):
        return [body for body in self.requests if body.get("return_token_ids")]


@pytest.fixture
def student(model_dir, files):
    server = Student(model_dir, files)
    yield server
    server.stop()


def command(model_dir, files, server, output_dir, *more) -> list[str]:
    return [
        *("eval", "--model", str(model_dir), "--dataset", *(str(files / f"{name}.jsonl") for name in BENCHMARKS)),
        *("--engine", "server", "--server_url", server.url, "--output_dir", str(output_dir), *map(str, more)),
    ]


def test_the_papers_benchmarks_through_a_server(model_dir, files, student, tmp_path, capsys):
    """Four files of 30 problems, with the paper's budget: every figure is known from the seeds."""
    student.failing = 3  # such failures pass
    more = (
        "--k",
        4,
        "--n",
        6,
        "--chat_template_kwargs",
        '{"enable_thinking": false}',
        "--verifier_settings",
        '{"workers": 2}',
    )
    code, printed = run(capsys, *command(model_dir, files, student, tmp_path, *more))
    assert code == 0
    found = summary_of(tmp_path)
    assert list(found["datasets"]) == list(BENCHMARKS)
    for name, entry in found["datasets"].items():
        seeds = [[rollout_seed("evaluation", 0, name, p, s) for s in range(6)] for p in range(30)]
        right = [[seed % 3 == 0 and seed % 16 != 0 for seed in row] for row in seeds]
        flat = sum(seeds, [])
        assert entry["avg@4"]["mean"] == pytest.approx(sum(map(sum, right)) / 180)
        assert entry["pass@4"]["mean"] == pytest.approx(pass_at_k(right, 4))
        assert (entry["problems"], entry["samples"]) == (30, 180)
        assert entry["truncated"] == sum(seed % 16 == 0 for seed in flat)
        assert entry["truncated_correct"] == sum(seed % 48 == 0 for seed in flat)
        assert entry["unparsed"] == entry["verdicts"]["no_answer"] == sum(seed % 3 == 2 for seed in flat)
        assert entry["verdicts"]["correct"] == sum(seed % 3 == 0 for seed in flat)
        assert entry["verdicts"]["error"] == entry["verdicts"]["timeout"] == 0
    averages = [entry["avg@4"] for entry in found["datasets"].values()]
    assert found["average"]["avg@4"]["mean"] == pytest.approx(sum(value["mean"] for value in averages) / 4)
    # Four benchmarks, resampled apart: about half the width of one
    width, *widths = (value["high"] - value["low"] for value in (found["average"]["avg@4"], *averages))
    assert width == pytest.approx(sum(w**2 for w in widths) ** 0.5 / 4, rel=0.1)
    assert "average" in printed

    bodies = student.asked()
    done = Counter((tuple(body["prompt"][0]), body["seed"]) for body in bodies)
    assert len(done) == 720 and sum(done.values()) == 723
    body = bodies[0]
    assert (body["temperature"], body["top_p"], body["top_k"], body["max_tokens"]) == (1.0, 1.0, 0, 16384)
    prompt = student.tokenizer.decode(bodies[0]["prompt"][0])
    assert prompt.startswith("user: ") and prompt.endswith(
        "compute $x$.\n\nPlease reason step by step, and put your final answer within \\boxed{}.\nassistant: <no thinking>"
    )


def test_killed_in_the_middle_it_goes_on_and_asks_nothing_twice(model_dir, files, student, tmp_path):
    student.delay = 0.02
    arguments = command(model_dir, files, student, tmp_path, "--k", 2, "--concurrency", 4, "--verifier", "exact")
    process = subprocess.Popen([sys.executable, "-m", "sgopd_trl.cli", *arguments])
    samples = [tmp_path / name / "samples.jsonl" for name in BENCHMARKS]
    end = time.monotonic() + 120
    while sum(path.read_text().count("\n") for path in samples if path.exists()) < 60:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    student.delay = 0.0
    time.sleep(0.2)
    kept = {
        (path.parent.name, line["problem"], line["sample"])
        for path in samples
        if path.exists()
        for line in read_lines(path)
    }
    assert 60 <= len(kept) < 240 and not (tmp_path / "summary.json").exists()
    before = len(student.asked())
    assert before <= len(kept) + 8  # what was under way, and what the reading thread had not written yet
    assert main(arguments) == 0
    assert len(student.asked()) - before == 240 - len(kept)
    assert all(entry["samples"] == 60 for entry in summary_of(tmp_path)["datasets"].values())
    for path in samples:
        assert len(read_lines(path)) == len(read_lines(path.with_name("verdicts.jsonl"))) == 60


def test_another_served_model_is_refused_before_anything_is_asked(model_dir, files, student, tmp_path, capsys):
    """`--model` only gives the tokenizer: it is the server that says which model it is."""
    more = ["--verifier", "exact", "--max_problems", 1, "--k"]
    assert main(command(model_dir, files, student, tmp_path / "a", *more, 1)) == 0
    assert summary_of(tmp_path / "a")["served"] == {"id": "teacher", "root": student.root}
    for settings, said in (
        ({"model": "other"}, "`id` was 'teacher' and is now 'other'. Serve that one, or choose another `output_dir`"),
        ({"root": "/checkpoint-2"}, f"`root` was {student.root!r} and is now '/checkpoint-2'"),
    ):
        other = Student(model_dir, files, **settings)
        try:
            capsys.readouterr()
            with pytest.raises(SystemExit):
                main(command(model_dir, files, other, tmp_path / "a", *more, 2))
            assert said in capsys.readouterr().err and not other.asked()
        finally:
            other.stop()
    # Without anything to ask no server is asked, and the name stays; the same server goes on
    assert main(command(model_dir, files, student, tmp_path / "a", *more, 2)) == 0
    assert len(student.asked()) == 8
    assert main(command(model_dir, files, student, tmp_path / "a", *more, 2)) == 0
    assert summary_of(tmp_path / "a")["served"]["id"] == "teacher"
    _, printed = run(capsys, "eval", "--compare", tmp_path / "a", tmp_path / "a")
    assert f"A: {tmp_path / 'a'} ({model_dir}, served as teacher from {student.root})" in printed


def test_ctrl_c_says_how_to_go_on(model_dir, files, student, tmp_path):
    student.delay = 0.05
    arguments = command(model_dir, files, student, tmp_path, "--k", 4, "--concurrency", 2, "--verifier", "exact")
    process = subprocess.Popen(
        [sys.executable, "-m", "sgopd_trl.cli", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while len(student.asked()) < 10:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in errors
    assert re.search(r"\d+ of 480 samples are kept in .*; the same command goes on from there\.", printed)


def test_what_a_server_may_refuse(model_dir, files, tmp_path, capsys):
    server = Student(model_dir, files, max_model_len=1000)
    try:
        for more, said in (
            ([], "The model's server {url}: its context has 1000 tokens, but the longest prompt"),
            (["--server_model", "qwen"], "'qwen' is not served: it serves 'teacher'"),
        ):
            with pytest.raises(SystemExit):
                main(command(model_dir, files, server, tmp_path, *more))
            printed = capsys.readouterr()
            assert (
                said.format(url=server.url) in printed.err
                and "--max_new_tokens" in printed.err
                or "is not served" in printed.err
            )
            # The same command would be refused again
            assert "teacher_" not in printed.err and "the same command goes on" not in printed.out
    finally:
        server.stop()
    with pytest.raises(SystemExit):
        main(command(model_dir, files, server, tmp_path))
    printed = capsys.readouterr().err
    assert f"The model's server {server.url} cannot be reached" in printed and "correct --server_url" in printed


def test_a_server_that_stays_away(model_dir, files, student, tmp_path, capsys):
    student.failing = 10**6
    with pytest.raises(SystemExit):
        main(command(model_dir, files, student, tmp_path, "--k", 1, "--retry_timeout", 1))
    printed = capsys.readouterr()
    assert re.search(
        r"The model has not answered for \d+ s \(--retry_timeout is 1 s\).*HTTP 500: overloaded", printed.err
    )
    assert "0 of 120 samples are kept in" in printed.out and "the same command goes on from there" in printed.out
