"""A real vLLM server as the teacher: what it scores and samples, whole runs, and its death in the middle of them."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
import torch
from reference import sequence_logps
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_server import VLLMServer, installed

from sgopd_trl import SGOPDTrainer
from sgopd_trl.miniature import make_dataset, resolve
from sgopd_trl.miniature.export import export
from sgopd_trl.rewards import exact_answer_reward
from sgopd_trl.teachers import SamplingSettings, TeacherError
from sgopd_trl.teachers.server import ServerTeacher


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not installed(), reason="vLLM is not installed: python tests/vllm_server.py install"),
]

CONTEXT = 64  # tokens


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "clean"
    export("miniature:clean", folder)
    return folder


@pytest.fixture(scope="module")
def server(model_dir):
    server = VLLMServer(model_dir, max_model_len=CONTEXT).start()
    try:
        yield server.wait_ready()
    finally:
        server.kill()


@pytest.fixture(scope="module")
def tokenizer(model_dir):
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="module")
def model(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)


def connect(server, tokenizer, **settings) -> ServerTeacher:
    teacher = ServerTeacher([server.url], eos_token_ids=[tokenizer.eos_token_id], **settings)
    teacher.check_start(tokenizer, longest_prompt=20, max_completion_length=32)
    return teacher


def prompt_ids(tokenizer, count: int) -> list[list[int]]:
    rows = make_dataset("test", count)
    return [
        tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        for row in rows
    ]


def test_log_probabilities_are_those_of_transformers(server, tokenizer, model):
    """Ragged, with an end of sequence, one token alone, none, and a sequence at the limit of the context."""
    generator = torch.Generator().manual_seed(0)
    eos = tokenizer.eos_token_id
    prompts = prompt_ids(tokenizer, 12)
    completions = [
        torch.randint(2, 24, (length,), generator=generator).tolist() for length in (1, 2, 5, 9, 17, 30, 33, 8, 3, 1)
    ]
    completions += [[*torch.randint(2, 24, (11,), generator=generator).tolist(), eos], []]
    prompts.append([5] * 31)
    completions.append(torch.randint(2, 24, (CONTEXT - 32,), generator=generator).tolist())
    assert len(prompts[-1]) + len(completions[-1]) == CONTEXT - 1
    teacher = connect(server, tokenizer, tokens_per_request=100)
    scores = teacher.score(prompts, completions, temperature=1.0)
    for prompt, completion, values in zip(prompts, completions, scores, strict=True):
        with torch.no_grad():
            expected = sequence_logps(model, prompt, completion)
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)


def test_rollouts(server, tokenizer, model):
    teacher, prompts = connect(server, tokenizer), prompt_ids(tokenizer, 8)
    greedy = teacher.generate(prompts, range(8), SamplingSettings(temperature=0.0, max_new_tokens=40))
    for prompt, ids in zip(prompts, greedy, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40)[0, len(prompt) :]
        assert ids == expected.tolist() and ids[-1] == tokenizer.eos_token_id
    warm = SamplingSettings(temperature=2.0, max_new_tokens=12)
    handed_over = {}
    sampled = teacher.generate(prompts * 2, range(16), warm, finished=handed_over.__setitem__)
    assert [handed_over[place] for place in range(16)] == sampled
    assert sampled[:8] != sampled[8:]  # a seed each
    assert teacher.generate(prompts[3:4], [3], warm) == sampled[3:4]
    assert all(len(ids) <= 12 for ids in sampled)


def test_what_the_start_refuses(server, tokenizer, caplog):
    assert connect(server, tokenizer).served.tolerance == 0.05  # in float32 a batch changes less
    assert "follow `temperature`" not in caplog.text  # as measured on vLLM 0.31
    with pytest.raises(ValueError, match="'other' is not served: it serves 'teacher'"):
        connect(server, tokenizer, model="other")
    teacher = ServerTeacher([server.url], eos_token_ids=[1])
    with pytest.raises(ValueError, match=r"context has 64 tokens.*needs 73.*--max-model-len 73"):
        teacher.check_start(tokenizer, longest_prompt=40, max_completion_length=32)

    class Swapped:
        """The same tokens, two of them in each other's place."""

        def __len__(self):
            return len(tokenizer)

        def decode(self, ids, **kwargs):
            return tokenizer.decode([{4: 5, 5: 4}.get(i, i) for i in ids], **kwargs)

    with pytest.raises(ValueError, match="token 4 is '2' there and '3' here"):
        teacher.check_start(Swapped(), longest_prompt=20, max_completion_length=32)

    class Larger:
        def __len__(self):
            return len(tokenizer) + 8

    with pytest.raises(ValueError, match="out of vocabulary"):
        teacher.check_start(Larger(), longest_prompt=20, max_completion_length=32)


def test_raw_logits_are_refused(model_dir, tokenizer):
    server = VLLMServer(model_dir, max_model_len=CONTEXT, arguments=["--logprobs-mode", "raw_logits"]).start()
    try:
        server.wait_ready()
        with pytest.raises(ValueError, match="as a log-probability.*--logprobs-mode"):
            connect(server, tokenizer)
    finally:
        server.kill()


# Whole runs


def make_trainer(output_dir, teacher, **overrides) -> SGOPDTrainer:
    settings = dict(
        max_steps=6,
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=32,
        learning_rate=1e-3,
        teacher_temperature=0.0,
        reuse_sampling_logps=False,
        stability_tau=10.0,
        teacher_sampling_ratio=0.2,
    )
    return SGOPDTrainer(
        model=resolve("miniature:guess"),
        reward_funcs=exact_answer_reward,
        args=tiny.make_args(output_dir, **(settings | overrides)),
        train_dataset=make_dataset("train", 256),
        teacher_model=teacher,
    )


def logged(trainer, name):
    return [line[name] for line in trainer.state.log_history if name in line]


def test_a_run_through_the_server_is_a_run_in_process(server, model_dir, tmp_path):
    local = make_trainer(tmp_path / "in", str(model_dir))
    local.train()
    served = make_trainer(tmp_path / "out", None, teacher_server_url=[server.url], teacher_bank=str(tmp_path / "bank"))
    assert isinstance(served.teacher, ServerTeacher)
    served.train()
    for name in ("loss", "teacher_sampling/loss", "reverse_kl", "teacher_sampling/verified"):
        assert logged(served, name) == pytest.approx(logged(local, name), abs=1e-3), name
    assert sum(logged(local, "teacher_sampling/verified")) > 0
    assert max(logged(served, "teacher/hidden_share")) > 0.1


RECIPE = Path(__file__).parents[1] / "recipes" / "miniature" / "sgopd" / "config_server.yaml"


def command(server, output_dir, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "sgopd_trl.cli", "train", "--config", str(RECIPE)),
        *("--teacher_server_url", server.url, "--teacher_server_model", "teacher", "--output_dir", str(output_dir)),
        *("--max_steps", "8", "--per_device_train_batch_size", "32", "--teacher_temperature", "0"),
        *("--teacher_sampling_ratio", "0.2", "--save_strategy", "no", *more),
    ]


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    """The weights of a run whose server stays alive."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(server, folder), check=True, capture_output=True, timeout=300)
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder, expected) -> None:
    weights = load_file(Path(folder) / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3)


def kill_at(process, server, step: int) -> list[str]:
    """Reads a run's output until it has logged a step, and then kills the server. Returns the lines read."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if sum("'reverse_kl'" in text for text in lines) == step:
            server.kill()
            return lines
    raise AssertionError(f"The run ended before step {step}:\n{''.join(lines)[-5000:]}")


def start_run(*arguments) -> subprocess.Popen:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_server_killed_in_the_middle_and_back_after_60_seconds(server, undisturbed, tmp_path):
    run = start_run(server, tmp_path)
    kill_at(run, server, step=3)
    restart = threading.Timer(60, server.start)
    restart.start()
    begin = time.monotonic()
    output, _ = run.communicate(timeout=300)
    server.wait_ready()
    assert run.returncode == 0, output[-5000:]
    assert time.monotonic() - begin > 60
    assert f"The teacher does not answer ({server.url}: ConnectError" in output
    assert "It is asked again until 540 s" in output and "The teacher answers again, after" in output
    assert_same_weights(tmp_path, undisturbed)


def test_a_server_gone_for_longer_than_the_limit(server, undisturbed, tmp_path):
    """A checkpoint is saved, the message names the address and the cause, and the run goes on later."""
    run = start_run(server, tmp_path, "--teacher_server_retry_timeout", "5")
    kill_at(run, server, step=3)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    assert f"has not answered for 5 s (`teacher_server_retry_timeout` is 5 s). {server.url}: ConnectError" in output
    (checkpoint,) = tmp_path.glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) >= 3
    assert f"is saved in {checkpoint}; go on with `resume_from_checkpoint`" in output
    assert "Traceback" not in output
    server.start().wait_ready()
    resumed = subprocess.run(
        command(server, tmp_path, "--resume_from_checkpoint", "true"), capture_output=True, text=True, timeout=300
    )
    assert resumed.returncode == 0, resumed.stderr[-5000:]
    assert_same_weights(tmp_path, undisturbed)


def test_another_model_behind_the_address_after_a_restart(server, tokenizer, tmp_path):
    teacher = connect(server, tokenizer)
    export("miniature:nine", tmp_path / "nine")
    server.kill()
    other = VLLMServer(tmp_path / "nine", port=server.port, max_model_len=CONTEXT).start()
    try:
        with pytest.raises(TeacherError, match="another model answers: loaded from"):
            teacher.score([[5, 6]], [[7]], temperature=1.0)
        teacher.pool.endpoints[0].root = str(tmp_path / "nine")  # as if it had come from the same folder
        with pytest.raises(
            TeacherError, match="another model answers: the log-probabilities of a fixed sequence differ"
        ):
            teacher.score([[5, 6]], [[7]], temperature=1.0)
    finally:
        other.kill()
