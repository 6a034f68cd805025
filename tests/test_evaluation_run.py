"""What an evaluation asks, keeps, judges and goes on from, with an engine that answers at once."""

import inspect
import json

import pytest
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from sgopd_trl.evaluation.benchmarks import BENCHMARKS, INSTRUCTION, Benchmark, Problems, find_benchmarks, load_problems
from sgopd_trl.evaluation.engines import Sample
from sgopd_trl.evaluation.judge import Judge
from sgopd_trl.evaluation.runner import Evaluation
from sgopd_trl.evaluation.settings import EvaluationSettings, differences
from sgopd_trl.evaluation.store import BenchmarkFiles, JsonLines, OutputFolder
from sgopd_trl.evaluation.summary import judge_failures, summarize
from sgopd_trl.miniature import make_dataset, make_tokenizer
from sgopd_trl.rewards import exact_answer_reward
from sgopd_trl.verifiers import Status, Verdict, Verifier, load_verifier


TOKENIZER = make_tokenizer()


class Silent:
    def start(self, done, total):
        self.done, self.total, self.tokens = done, total, 0

    def advance(self, samples, tokens):
        self.done += samples
        self.tokens += tokens


class Engine:
    """Answers the boxed `answer`, as many at a time as `together`, and raises after `stop_after` of them."""

    served = None

    def __init__(self, answer="39", together=4, stop_after=None, finish_reason="stop"):
        self.answer, self.together, self.stop_after, self.finish_reason = answer, together, stop_after, finish_reason
        self.asked, self.settings, self.closed = [], None, False

    def generate(self, requests, settings):
        self.settings = settings
        ids = TOKENIZER(f"\\boxed{{{self.answer}}}")["input_ids"] + [TOKENIZER.eos_token_id]
        for start in range(0, len(requests), self.together):
            if self.stop_after is not None and start >= self.stop_after:
                raise KeyboardInterrupt
            batch = requests[start : start + self.together]
            self.asked += batch
            yield [(request, Sample(ids, self.finish_reason)) for request in batch]

    def close(self):
        self.closed = True


def problems(count=3, name="miniature", seed=0):
    return Problems(name, make_dataset("test", count, seed), None)


def settings(**overrides):
    return EvaluationSettings(**dict(model="miniature:guess", k=2, max_new_tokens=32, verifier="exact") | overrides)


def evaluate(folder, engine, *, judge_with=None, rejudge=False, sets=None, **overrides):
    """Runs an evaluation, and returns its verdicts and progress."""
    output, progress = OutputFolder(folder), Silent()
    try:
        judge = Judge(judge_with or load_verifier("exact"))
        run = Evaluation(settings(**overrides), sets or [problems()], TOKENIZER, judge, output, rejudge)
        run.run(lambda: engine, progress)
        return run.verdicts(), progress
    finally:
        output.close()


def keys(engine):
    return [(request.dataset, request.problem, request.sample) for request in engine.asked]


def test_every_sample_is_asked_once_with_a_seed_of_its_own(tmp_path):
    engine = Engine()
    verdicts, progress = evaluate(tmp_path, engine, sets=[problems(3), problems(2, "other")])
    assert sorted(keys(engine)) == [
        (name, p, s) for name, n in (("miniature", 3), ("other", 2)) for p in range(n) for s in (0, 1)
    ]
    assert {name: [len(row) for row in rows] for name, rows in verdicts.items()} == {
        "miniature": [2] * 3,
        "other": [2] * 2,
    }
    seeds = [request.seed for request in engine.asked if request.dataset == "miniature"]
    assert len(set(seeds)) == 6
    assert engine.closed and engine.settings.top_k == 0 and engine.settings.max_new_tokens == 32
    assert (progress.done, progress.total, progress.tokens) == (10, 10, 10 * 5)
    prompt = TOKENIZER.apply_chat_template(
        make_dataset("test", 1)[0]["prompt"], add_generation_prompt=True, return_dict=True
    )
    assert engine.asked[0].prompt_ids == prompt["input_ids"]
    again = Engine()
    evaluate(tmp_path / "again", again)
    assert [r.seed for r in again.asked] == seeds  # the other benchmark changes nothing
    other = Engine()
    evaluate(tmp_path / "seed", other, seed=1)
    assert not {r.seed for r in other.asked} & set(seeds)


def test_an_interrupted_evaluation_goes_on(tmp_path):
    first = Engine(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, first)
    assert first.closed
    second = Engine()
    verdicts, progress = evaluate(tmp_path, second)
    assert len(first.asked) == 4 and len(second.asked) == 2 and not set(keys(first)) & set(keys(second))
    assert progress.done == 6
    whole, _ = evaluate(tmp_path / "whole", Engine())
    assert verdicts == whole
    evaluate(tmp_path, None)  # no engine is needed, nor opened


def test_samples_that_were_kept_but_not_judged_are_judged_without_being_asked_again(tmp_path):
    whole, _ = evaluate(tmp_path, Engine())
    path = tmp_path / "miniature" / "verdicts.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:20])  # the kill came in the middle of the fourth
    assert evaluate(tmp_path, None)[0] == whole
    assert sorted(path.read_text().splitlines(keepends=True)) == sorted(lines)


def test_of_two_lines_for_one_sample_the_first_counts(tmp_path):
    """As two processes leave them on a file system without locks."""
    whole, _ = evaluate(tmp_path, Engine(answer="39"))
    files = BenchmarkFiles(tmp_path / "miniature")
    other = list(files.samples)[0] | {"completion": "\\boxed{11}", "tokens": 9}
    files.samples.append([other])
    files.forget_verdicts()
    keys, unjudged = files.sampled(besides=set())
    assert len(keys) == len(unjudged) == 6 and other not in unjudged
    assert evaluate(tmp_path, None)[0] == whole
    assert len(list(files.verdicts)) == 6
    files.verdicts.append([list(files.verdicts)[0] | {"verdict": "error"}])
    assert evaluate(tmp_path, None)[0] == whole


def test_a_sample_cut_off_by_a_kill_is_asked_again(tmp_path):
    evaluate(tmp_path, Engine())
    for name in ("samples", "verdicts"):
        path = tmp_path / "miniature" / f"{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:5]) + (lines[5][:-30] if name == "samples" else ""))
    engine = Engine()
    verdicts, _ = evaluate(tmp_path, engine)
    assert keys(engine) == [("miniature", 2, 1)]
    assert verdicts == evaluate(tmp_path / "whole", Engine())[0]


def test_more_samples_and_more_problems_ask_only_for_what_is_new(tmp_path):
    evaluate(tmp_path, Engine())
    more = Engine()
    evaluate(tmp_path, more, k=2, n=3)
    assert keys(more) == [("miniature", p, 2) for p in range(3)]
    further = Engine()
    evaluate(tmp_path, further, sets=[problems(4)], k=2, n=3)
    assert keys(further) == [("miniature", 3, s) for s in range(3)]
    # Fewer again: what is there suffices
    verdicts, progress = evaluate(tmp_path, None, sets=[problems(2)])
    assert [len(row) for row in verdicts["miniature"]] == [2, 2] and (progress.done, progress.total) == (4, 4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"temperature": 0.7}, "`temperature` was 1.0 and is now 0.7"),
        ({"model": "other"}, "`model` was 'miniature:guess' and is now 'other'"),
        ({"weights": "abc"}, "`weights` was None and is now 'abc'"),
        ({"chat_template": "abc"}, "`chat_template` was None and is now 'abc'"),
        ({"seed": 3}, "`seed` was 0 and is now 3"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "`chat_template_kwargs` was {} and is now"),
        ({"vllm_settings": {"quantization": "fp8"}}, "`vllm_settings` was None and is now {'quantization': 'fp8'}"),
    ],
)
def test_other_settings_are_refused(tmp_path, override, said):
    evaluate(tmp_path, Engine())
    with pytest.raises(ValueError, match="holds samples of other settings") as refusal:
        evaluate(tmp_path, Engine(), **override)
    assert said in str(refusal.value)


def test_another_chat_template_is_refused(tmp_path):
    evaluate(tmp_path, Engine(), chat_template="abc")
    with pytest.raises(ValueError, match="`chat_template` was 'abc' and is now 'def'"):
        evaluate(tmp_path, None, chat_template="def")
    path = tmp_path / "settings.json"
    old = json.loads(path.read_text())
    del old["samples"]["chat_template"]  # what the samples were made with is not known
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="`chat_template` was None and is now 'abc'"):
        evaluate(tmp_path, None, chat_template="abc")


def test_other_problems_templates_and_verifiers_are_refused(tmp_path):
    evaluate(tmp_path, Engine())
    with pytest.raises(ValueError, match="samples of other problems: problem 0 was '.*=' and is now '.*='"):
        evaluate(tmp_path, Engine(), sets=[problems(seed=1)])
    with pytest.raises(ValueError, match="prompt_template of miniature.* was None and is now '{question}'"):
        evaluate(tmp_path, Engine(), sets=[Problems("miniature", make_dataset("test", 3), "{question}")])
    with pytest.raises(ValueError, match="other verdicts: `verifier` was 'exact' and is now 'numeric'.*--rejudge"):
        evaluate(tmp_path, Engine(), verifier="numeric")


def test_rejudging_asks_nothing_and_replaces_the_verdicts(tmp_path):
    gold = make_dataset("test", 1)[0]["solution"]
    evaluate(tmp_path, Engine(answer=gold), sets=[problems(1)])
    other = Verifier(lambda completion, gold: False, name="never")
    verdicts, _ = evaluate(tmp_path, None, sets=[problems(1)], judge_with=other, rejudge=True)
    assert [line["verdict"] for line in verdicts["miniature"][0]] == ["wrong", "wrong"]
    lines = list(JsonLines(tmp_path / "miniature" / "verdicts.jsonl"))
    assert len(lines) == 2


def test_rejudging_some_benchmarks_with_another_verifier_leaves_no_verdict_of_the_old_one(tmp_path):
    both = [problems(1), problems(2, "other")]
    evaluate(tmp_path, Engine(), sets=both)
    files = tmp_path / "other" / "verdicts.jsonl"
    before = files.read_text()
    evaluate(tmp_path, None, sets=both[:1], rejudge=True)
    assert files.read_text() == before  # the same settings: those of the others hold
    never = Verifier(lambda completion, gold: False, name="never")
    evaluate(tmp_path, None, sets=both[:1], judge_with=never, rejudge=True, verifier="never")
    assert not files.exists()
    verdicts, _ = evaluate(tmp_path, None, sets=both, judge_with=never, verifier="never")
    assert {line["verdict"] for rows in verdicts.values() for row in rows for line in row} == {"wrong"}


def test_the_progress_says_what_there_is_before_the_engine_is_opened(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, Engine(stop_after=4))
    output, progress = OutputFolder(tmp_path), Silent()
    run = Evaluation(settings(), [problems()], TOKENIZER, Judge(load_verifier("exact")), output)

    def fails():
        raise OSError("no engine")

    with pytest.raises(OSError, match="no engine"):
        run.run(fails, progress)
    assert (progress.done, progress.total) == (4, 6) and not run.sampling
    run.files["miniature"].forget_verdicts()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    run.judge, progress = interrupted, Silent()
    with pytest.raises(KeyboardInterrupt):  # while samples without a verdict are judged
        run.run(fails, progress)
    output.close()
    assert (progress.done, progress.total) == (4, 6)


def test_two_processes_do_not_write_to_one_folder(tmp_path):
    folder = OutputFolder(tmp_path)
    with pytest.raises(ValueError, match="Another `sgopd eval` is writing"):
        OutputFolder(tmp_path)
    folder.close()
    OutputFolder(tmp_path).close()


def test_json_lines(tmp_path):
    lines = JsonLines(tmp_path / "lines.jsonl")
    assert list(lines) == []
    lines.repair()
    lines.append([{"a": 1}, {"a": "ü\n"}])
    with lines.path.open("ab") as file:
        file.write(b'{"a": 3')
    assert [line["a"] for line in lines] == [1, "ü\n"]
    lines.repair()
    lines.append([{"a": 4}])
    assert [line["a"] for line in lines] == [1, "ü\n", 4]
    lines.path.write_bytes(b"{broken}\n" + lines.path.read_bytes())
    with pytest.raises(ValueError, match="lines.jsonl, line 1, cannot be read"):
        list(lines)
    lines.path.write_bytes(b"x" * (2**20 + 5))  # one unfinished line, and nothing before it
    lines.repair()
    assert lines.path.stat().st_size == 0


# Judging


def judged(verifier, texts, golds):
    rows = [{"prompt": [{"role": "user", "content": "p"}], "solution": gold} for gold in golds]
    return Judge(verifier)(rows, texts, [[1]] * len(texts))


def test_a_reward_function_says_right_or_wrong_and_its_failures_are_no_wrong_answers():
    def reward(prompts, completions, completion_ids, solution):
        assert completions[0] == [{"role": "assistant", "content": "a"}] and completion_ids[0] == [1]
        return [1.0, 0.5, 0.6, None, float("nan")]

    found = judged(reward, ["a", "b", "c", "d", "e"], ["1"] * 5)
    assert [v.status for v in found] == [Status.CORRECT, Status.WRONG, Status.CORRECT, Status.ERROR, Status.ERROR]
    assert found[3].detail == "the reward function returned None"
    with pytest.raises(ValueError, match="returned 1 rewards for 2 completions"):
        judged(lambda **kwargs: [1.0], ["a", "b"], ["1", "1"])


def test_a_verifiers_six_verdicts_are_counted_and_truncated_samples_are_wrong(tmp_path):
    statuses = [Status.CORRECT, Status.NO_ANSWER, Status.ERROR, Status.TIMEOUT, Status.REFUSED, Status.CORRECT]
    answers = iter(statuses)
    verifier = Verifier(lambda completion, gold: Verdict(next(answers), answer="x", detail="y"), name="listed")
    verdicts, _ = evaluate(tmp_path, Engine(), judge_with=verifier)
    found = summarize(settings(), verdicts, tells_unparsed=True)
    entry = found["datasets"]["miniature"]
    assert entry["verdicts"] == dict(correct=2, wrong=0, no_answer=1, refused=1, timeout=1, error=1)
    assert (entry["unparsed"], entry["truncated"], entry["samples"], entry["problems"]) == (1, 0, 6, 3)
    assert entry["mean_tokens"] == 5
    assert entry["avg@2"]["mean"] == pytest.approx(2 / 6) and entry["pass@2"]["mean"] == pytest.approx(2 / 3)
    assert found["average"] == {"avg@2": entry["avg@2"], "pass@2": entry["pass@2"]}
    assert judge_failures(found) == {"miniature": 2}
    assert found["settings"]["temperature"] == 1.0 and found["model"] == "miniature:guess"

    gold = make_dataset("test", 1)[0]["solution"]
    cut, _ = evaluate(tmp_path / "cut", Engine(gold, finish_reason="length"), sets=[problems(1)])
    entry = summarize(settings(), cut, tells_unparsed=False)["datasets"]["miniature"]
    assert entry["avg@2"]["mean"] == 0 and entry["verdicts"]["correct"] == 2
    assert (entry["truncated"], entry["truncated_correct"], entry["unparsed"]) == (2, 2, None)


def test_malformed_golds(caplog):
    rows = [{"solution": "1"}, {"solution": "\\frac{sqrt{7}}{2}"}]
    Judge(load_verifier("math")).check("bench", rows)
    assert "bench: 1 of 2 gold answers are malformed: problem 1" in caplog.text
    with pytest.raises(ValueError, match="needs a column 'solution'; bench has none"):
        Judge(load_verifier("exact")).check("bench", [{"gold": "1"}])
    Judge(exact_answer_reward).check("bench", [{}])


# Settings and benchmarks


def test_the_defaults_are_the_papers():
    found = EvaluationSettings("m")
    assert (found.k, found.n, found.temperature, found.top_p, found.max_new_tokens) == (32, 32, 1.0, 1.0, 16384)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"k": 0}, "`k` must be at least 1, got 0"),
        ({"k": 4, "n": 3}, "`n` must be at least `k`.*got 3 < 4"),
        ({"temperature": -1.0}, "`temperature` must be finite and not negative, got -1.0"),
        ({"temperature": float("inf")}, "`temperature` must be finite and not negative, got inf"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "holds 'add_generation_prompt', which"),
        ({"temperature": 0.0}, "2 samples would be the same"),
        ({"top_p": 0.0}, r"`top_p` must be in \(0, 1\], got 0.0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, got 0"),
        ({"engine": "tgi"}, "`engine` must be one of vllm, server, transformers, got 'tgi'"),
        ({"confidence": 95.0}, r"`confidence` must be in \(0, 1\), got 95.0"),
        ({"seed": -1}, "`seed` must not be negative, got -1"),
    ],
)
def test_settings_out_of_range(override, said):
    with pytest.raises(ValueError, match=said):
        settings(**override)
    assert settings(temperature=0.0, k=1).n == 1


def test_only_what_reaches_the_template_may_be_set():
    parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters.keys()
    for name in parameters - {"self", "tools", "documents", "kwargs"}:
        with pytest.raises(ValueError, match=f"holds '{name}', which the evaluation sets itself"):
            settings(chat_template_kwargs={name: None})
    settings(chat_template_kwargs={"enable_thinking": False, "documents": []})


def test_settings_of_a_template_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(TOKENIZER, "chat_template", None)
    with pytest.raises(ValueError, match="the tokenizer of miniature:guess has no chat template"):
        evaluate(tmp_path, Engine(), chat_template_kwargs={"enable_thinking": False})


def test_differences():
    assert (
        differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == "`b` was 2 and is now 3; `c` was None and is now 4"
    )


def test_the_papers_benchmarks(tmp_path, monkeypatch):
    found = find_benchmarks(list(BENCHMARKS))
    assert [benchmark.name for benchmark in found] == ["aime24", "aime25", "hmmt25_feb", "hmmt25_nov"]
    assert all("/" in benchmark.source for benchmark in found)
    assert find_benchmarks(["aime24"], split="other", prompt_column=None)[0].split == "other"
    assert find_benchmarks(["/data/aime24.jsonl", "org/hmmt.2025"])[1].name == "hmmt.2025"
    (tmp_path / "set" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    monkeypatch.chdir(tmp_path / "set" / "inner")
    assert [b.name for b in find_benchmarks([".", "..", str(tmp_path / "link")])] == ["inner", "set", "link"]
    for source in ("/", "", "org/..", "..jsonl"):
        with pytest.raises(ValueError, match="has no name for its results"):
            find_benchmarks([source])
    Dataset.from_list([{"problem": "1?", "answer": "1"}]).save_to_disk(tmp_path / "saved")
    for source in ("miniature-hard", "/data/aime24.jsonl", str(tmp_path / "saved")):
        with pytest.raises(ValueError, match=f"`dataset_config` 'x' would do nothing with {source}"):
            find_benchmarks([source], config="x")
    assert [b.config for b in find_benchmarks(["aime24", "org/set", "."], config="x")] == ["x"] * 3
    with pytest.raises(ValueError, match="names aime24 twice"):
        find_benchmarks(["aime24", "/data/aime24.jsonl"])


def load(tmp_path, rows, **fields):
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_problems(Benchmark(str(path), **fields), True, None, None)


def test_columns_and_prompts(tmp_path):
    # As HuggingFaceH4/aime_2024 has them: `solution` is a worked one
    found = load(tmp_path, [{"problem": "1+1?", "solution": "It is 2.", "answer": 2}])
    assert found.rows[0]["prompt"] == [{"role": "user", "content": "1+1?" + INSTRUCTION.replace("{{}}", "{}")}]
    assert found.rows[0]["prompt"][0]["content"].endswith("put your final answer within \\boxed{}.")
    assert found.rows[0]["solution"] == "\\boxed{2}" and found.template == "{problem}" + INSTRUCTION
    # A prompt is used as it is
    found = load(tmp_path, [{"prompt": "Say 2.", "solution": "2", "answer": "3"}])
    assert (
        found.rows[0]["prompt"] == [{"role": "user", "content": "Say 2."}] and found.rows[0]["solution"] == "\\boxed{2}"
    )
    assert found.template is None
    found = load(
        tmp_path, [{"q": "1?", "a": "x", "answer": "y"}], prompt_column="q", answer_column="a", box_answer=False
    )
    assert found.rows[0]["prompt"][0]["content"].startswith("1?\n\nPlease") and found.rows[0]["solution"] == "x"
    found = load(tmp_path, [{"q": "1?", "answer": "y"}], prompt_template="Q: {q}")
    assert found.rows[0]["prompt"][0]["content"] == "Q: 1?"
    with pytest.raises(ValueError, match="none of prompt, problem, question. Set `prompt_column`"):
        load(tmp_path, [{"q": "1?", "answer": "y"}])
    with pytest.raises(ValueError, match="has the columns problem, a, and none of answer"):
        load(tmp_path, [{"problem": "1?", "a": "y"}])


def test_keys_know_prompt_and_gold():
    rows = [{"prompt": "a", "solution": "1"}, {"prompt": "a", "solution": "2"}, {"prompt": "b", "solution": "1"}]
    assert len(set(Problems("x", Dataset.from_list(rows), None).keys())) == 3
