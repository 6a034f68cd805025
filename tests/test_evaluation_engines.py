"""The engines of `sgopd eval` in their corners: a vLLM that aborts, embeddings larger than the tokenizer."""

import json
import shutil
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from sgopd_trl.evaluation.engines import EngineError, Request
from sgopd_trl.evaluation.engines.in_process import TransformersEngine
from sgopd_trl.evaluation.engines.vllm import VLLMEngine
from sgopd_trl.miniature import make_tokenizer, resolve
from sgopd_trl.teachers.protocol import SamplingSettings


SETTINGS = SamplingSettings(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=8)


def requests(count: int) -> list[Request]:
    return [Request("miniature", place, 0, [2, 3], seed=place) for place in range(count)]


class FakeVLLM:
    """Ends all requests in its first step, with these reasons; `None` goes on for ever."""

    def __init__(self, *reasons):
        self.reasons, self.names, self.aborted = reasons, [], None

    def add_request(self, name, prompt, params):
        self.names.append(name)

    def step(self):
        return [
            SimpleNamespace(
                request_id=name,
                finished=reason is not None,
                outputs=[SimpleNamespace(token_ids=(7, 1), finish_reason=reason)],
            )
            for name, reason in zip(self.names, self.reasons, strict=True)
        ]

    def abort_request(self, names):
        self.aborted = names


@pytest.fixture
def vllm(monkeypatch):
    """Stands for the package."""
    package, params = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    package.SamplingParams = SimpleNamespace
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY=2)
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", params)
    return package


def test_what_has_finished_beside_an_aborted_completion_is_kept(vllm):
    fake = FakeVLLM("stop", "abort", "length", None)
    vllm.LLM = lambda *arguments, **settings: SimpleNamespace(llm_engine=fake)
    engine = VLLMEngine("model", make_tokenizer(), max_model_len=16)
    batches = engine.generate(requests(4), SETTINGS)
    assert [(r.problem, s.completion_ids, s.finish_reason) for r, s in next(batches)] == [
        (0, [7, 1], "stop"),
        (2, [7, 1], "length"),
    ]
    with pytest.raises(EngineError, match="`finish_reason` 'abort'"):
        next(batches)
    assert fake.aborted == ["3"]


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default"}, 512),
        ({"rope_type": "linear", "factor": 4.0}, 2048),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 128}, 512),
    ],
)
def test_the_model_must_have_a_position_for_every_token(rope, limit, tmp_path):
    folder = shutil.copytree(resolve("miniature:guess"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 1000.0} | rope}))
    tokenizer = make_tokenizer()
    TransformersEngine.load(str(folder), tokenizer, longest_prompt=12, max_new_tokens=limit - 12)
    with pytest.raises(
        ValueError, match=rf"positions for {limit} tokens.*prompt \(12\).*need {limit + 1}. Lower --max"
    ):
        TransformersEngine.load(str(folder), tokenizer, longest_prompt=12, max_new_tokens=limit - 11)


def test_ids_that_the_tokenizer_does_not_know_are_never_drawn():
    """Embeddings are often padded beyond the tokenizer, and what is there has no text."""
    tokenizer = make_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(resolve("miniature:guess")).eval()
    model.resize_token_embeddings(len(tokenizer) + 64, mean_resizing=False)
    with torch.no_grad():  # the same logits as known ids have: the half of all that would be drawn
        weight = model.get_output_embeddings().weight
        weight[len(tokenizer) :] = weight[: len(tokenizer)].repeat(64, 1)[:64]
    engine = TransformersEngine(model, tokenizer)
    ids = [
        token
        for batch in engine.generate(requests(64), SETTINGS)
        for _, sample in batch
        for token in sample.completion_ids
    ]
    assert len(ids) >= 64 and max(ids) < len(tokenizer)
