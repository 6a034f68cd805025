"""Memory and time of each kind of teacher at the paper's scale: computed from the models' shapes, nothing is measured.

python benchmarks/teacher_budget.py
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Qwen3: `parameters` with the embedding, which is tied to the LM head."""

    name: str
    parameters: float
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocabulary: int = 151_936

    @property
    def embedding(self) -> float:
        return self.vocabulary * self.hidden

    def weights(self, bits: float = 16) -> float:
        """GB; the embedding and head stay at 16 bits."""
        return ((self.parameters - self.embedding) * bits / 8 + self.embedding * 2) / 1e9

    @property
    def cache(self) -> float:
        """Bytes of keys and values a token, at 16 bits."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def flops(self, length: float) -> float:
        """Of a forward pass, a token of a sequence of this length: weights, and attention to half of the sequence."""
        return 2 * self.parameters + 4 * self.layers * self.heads * self.head_dim * length / 2


# Parameters as on the models' cards, shapes as in their config.json
QWEN3 = [
    Shape("Qwen3-1.7B", 1.72e9, 28, 2048, 16, 8),
    Shape("Qwen3-4B", 4.02e9, 36, 2560, 32, 8),
]

GPUS = 8
SEQUENCES = 1024  # Appendix C: trajectories a step
LENGTH = 4096  # tokens: assumed mean of prompt and completion
CONTEXT = 18_433  # 2,048 + 16,384 tokens, and one to generate
BATCHED = 4096  # vLLM's --max-num-batched-tokens
NF4 = 4.127  # bits a weight: 4, and double-quantized scales of blocks of 64
PEAK, USED = 312e12, 0.4  # A100, bfloat16, and the share of it that a forward pass is assumed to reach
BANDWIDTH = 2.0e12  # bytes a second of an A100's memory
PCIE = 25e9  # bytes a second
ROLLOUT = 14_336  # tokens: Appendix C's longest teacher rollout
JSON = 75  # bytes a token of an answer with `prompt_logprobs: 0` (measured: 60 to 90)


def main() -> None:
    tokens = SEQUENCES * LENGTH
    print("| | " + " | ".join(f"{shape.name} as teacher" for shape in QWEN3) + " |")
    print("|---|" + "---|" * len(QWEN3))

    def line(what: str, values) -> None:
        print(f"| {what} | " + " | ".join(values) + " |")

    gb = "{:.1f} GB".format
    line("in process, bfloat16, on each GPU (DDP, ZeRO-1/2)", [gb(s.weights()) for s in QWEN3])
    line(f"in process, ZeRO-3 or FSDP over {GPUS} GPUs, on each", [gb(s.weights() / GPUS) for s in QWEN3])
    line("in process, 4 bits (nf4), on each GPU", [gb(s.weights(NF4)) for s in QWEN3])
    line("in process, offloaded, on each GPU while it does not score", ["0 GB"] * len(QWEN3))
    line("... in host memory, for each GPU", [gb(s.weights()) for s in QWEN3])
    line("... seconds to bring it back, each time", [f"{s.weights() * 1e9 / PCIE:.2f} s" for s in QWEN3])
    line("server, on the training GPUs", ["0 GB"] * len(QWEN3))
    line("server, weights on its own GPU", [gb(s.weights()) for s in QWEN3])
    line(f"server, keys and values of one sequence of {CONTEXT:,} tokens", [gb(s.cache * CONTEXT / 1e9) for s in QWEN3])
    # Logits in bfloat16, and in float32 before and after the softmax
    line(
        f"server, logits of `--max-num-batched-tokens {BATCHED}`",
        [gb(BATCHED * s.vocabulary * (2 + 4 + 4) / 1e9) for s in QWEN3],
    )
    line(
        f"scoring a step in process, {GPUS} A100",
        [f"{tokens * s.flops(LENGTH) / (GPUS * PEAK * USED):.0f} s" for s in QWEN3],
    )
    line(
        "scoring a step by a server on one A100",
        [f"{tokens * s.flops(LENGTH) / (PEAK * USED):.0f} s" for s in QWEN3],
    )
    line("... its answers, JSON", [gb(tokens * JSON / 1e9)] * len(QWEN3))
    line(
        f"one rollout of {ROLLOUT:,} tokens, at least (weights and cache read once a token)",
        [f"{ROLLOUT * (s.weights() * 1e9 + s.cache * ROLLOUT / 2) / BANDWIDTH:.0f} s" for s in QWEN3],
    )
    line("a rollout from the bank", ["0 s"] * len(QWEN3))


if __name__ == "__main__":
    main()
