"""`sgopd eval`: avg@k and pass@k of a model on benchmarks, with intervals; and the paired difference of two evaluations."""

import argparse
import json
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation.settings import ENGINES
from . import eval_compare
from .errors import UsageError, reported


if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from ..evaluation.benchmarks import Problems
    from ..evaluation.engines import Engine
    from ..evaluation.judge import Judge
    from ..evaluation.runner import Evaluation
    from ..evaluation.settings import EvaluationSettings
    from ..evaluation.store import OutputFolder


# Options that only some engines have, with their defaults: the parser leaves None, so that one that is given is seen
_ONLY_OF = {
    "batch_size": (("transformers",), 256),
    "server_url": (("server",), None),
    "server_model": (("server",), None),
    "concurrency": (("server",), 128),
    "request_timeout": (("server",), 3600.0),
    "retry_timeout": (("server",), 540.0),
    "tensor_parallel_size": (("vllm",), None),
    "gpu_memory_utilization": (("vllm",), None),
    "max_model_len": (("vllm",), None),
    "vllm_settings": (("vllm",), None),
    "dtype": (("vllm", "transformers"), None),
}
# Arguments of vLLM's `LLM` that `sgopd eval` sets, and the option that each has here
_SET_BY_OPTION = {
    name: name
    for name in (
        *("model", "revision", "dtype", "trust_remote_code"),
        *("tensor_parallel_size", "gpu_memory_utilization", "max_model_len"),
    )
} | {"tokenizer_revision": "revision"}


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "eval",
        help="evaluate a model on benchmarks (avg@k, pass@k), or compare two evaluations",
        description="Samples k completions of every problem, judges them, and writes avg@k and pass@k with bootstrap "
        "intervals to OUTPUT_DIR/summary.json. Defaults are the paper's. Every finished sample is kept at once: the same "
        "command goes on where it was interrupted. docs/evaluation.md has the rest.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="print the paired differences of two output folders, B minus A, instead of evaluating",
    )
    parser.add_argument("--model", help="Hub id, directory, or miniature:NAME")
    parser.add_argument(
        "--output_dir", type=Path, help="for the samples and summary.json; with --compare for comparison.json"
    )
    parser.add_argument("--engine", default="vllm", choices=ENGINES, help="default: vllm")
    _add_data(parser.add_argument_group("data"))
    _add_sampling(parser.add_argument_group("sampling"))
    _add_judging(parser.add_argument_group("judging"))
    _add_engines(parser.add_argument_group("engines"))
    parser.set_defaults(run=partial(run, defaults=vars(parser.parse_args([]))))


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--dataset",
        nargs="+",
        metavar="D",
        help="aime24, aime25, hmmt25_feb, hmmt25_nov, miniature, a JSON lines or Parquet file, a folder, a Hub id",
    )
    group.add_argument("--dataset_config", help="configuration of a Hub id")
    group.add_argument("--split", help="default: the named benchmark's own, else test")
    group.add_argument("--prompt_column", help="default: prompt (used as it is), problem or question")
    group.add_argument(
        "--answer_column", help="default: solution beside a prompt, else answer, final_answer, solution or gold"
    )
    group.add_argument(
        "--prompt_template",
        help="str.format template over the columns; default: the question, and 'Please reason step by step, and put your "
        "final answer within \\boxed{}.'",
    )
    group.add_argument("--system_prompt", help="before every prompt")
    group.add_argument(
        "--chat_template_kwargs",
        type=_json_object,
        default={},
        metavar="JSON",
        help="for the chat template; Qwen3 Non-Thinking, the paper's student: '{\"enable_thinking\": false}'",
    )
    group.add_argument("--max_problems", type=int, help="the first problems of each dataset, this many")
    group.add_argument(
        "--box_answer",
        choices=("true", "false"),
        help="write gold answers as \\boxed{...}; default: true, but for the verifier code",
    )


def _add_sampling(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--k", type=int, default=32, help="of avg@k and pass@k (default: 32)")
    group.add_argument("--n", type=int, help="samples a problem, at least k; default: k")
    group.add_argument("--temperature", type=float, default=1.0, help="default: 1.0")
    group.add_argument("--top_p", type=float, default=1.0, help="default: 1.0")
    group.add_argument("--max_new_tokens", type=int, default=16384, help="default: 16384")
    group.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")


def _add_judging(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--verifier",
        default="math",
        help="math (default), exact, numeric, choice, code, exact_answer_reward or an import path: what `reward_funcs` of "
        "`sgopd train` takes",
    )
    group.add_argument("--verifier_settings", type=_json_object, default={}, metavar="JSON", help="of the verifier")
    group.add_argument("--rejudge", action="store_true", help="judge the samples that are there anew")
    group.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: 0.95)")
    group.add_argument("--bootstrap_samples", type=int, default=10_000, help="default: 10000")
    group.add_argument("--bootstrap_seed", type=int, default=0, help="default: 0")


def _add_engines(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--revision", help="of the model on the Hub")
    group.add_argument("--dtype", help="vllm, transformers: of the weights; default: the model's own")
    group.add_argument("--trust_remote_code", action="store_true")
    group.add_argument("--batch_size", type=int, help="transformers: completions at a time (default: 256)")
    group.add_argument("--server_url", nargs="+", metavar="URL", help="server: one address or several")
    group.add_argument("--server_model", help="server: the served name; default: the only one there is")
    group.add_argument("--concurrency", type=int, help="server: requests at a time (default: 128)")
    group.add_argument("--request_timeout", type=float, help="server: seconds for one answer (default: 3600)")
    group.add_argument(
        "--retry_timeout", type=float, help="server: seconds to repeat a failing request for (default: 540)"
    )
    group.add_argument("--tensor_parallel_size", type=int, help="vllm: GPUs that share the model")
    group.add_argument("--gpu_memory_utilization", type=float, help="vllm: share of each GPU's memory")
    group.add_argument("--max_model_len", type=int, help="vllm: tokens; default: the longest prompt and max_new_tokens")
    group.add_argument(
        "--vllm_settings", type=_json_object, metavar="JSON", help="vllm: further arguments of vLLM's LLM"
    )


def run(args: argparse.Namespace, defaults: Mapping[str, Any]) -> int:
    from rich.console import Console

    console = Console()
    if args.compare is not None:
        return eval_compare.run(args, defaults, console)
    with reported("sgopd eval"):
        for name in ("model", "dataset", "output_dir"):
            if getattr(args, name) is None:
                raise UsageError(
                    f"--{name} is needed (or --compare RUN_A RUN_B). `sgopd eval --help` lists the arguments."
                )
        check(args)
    return _evaluate(args, console)


def check(args: argparse.Namespace) -> None:
    """Refuse what is wrong about the options by themselves. Nothing is loaded for it, torch included.

    Raises:
        UsageError: for options that do not belong to the engine. ValueError: for a value that is out of range.
    """
    if (args.server_url is None) == (args.engine == "server"):
        raise UsageError("--engine server and --server_url belong together.")
    for name, (engines, _) in _ONLY_OF.items():
        if args.engine not in engines and getattr(args, name) is not None:
            raise UsageError(
                f"--{name} is of --engine {' or '.join(engines)}, and would do nothing with --engine {args.engine}. Leave it "
                "out."
            )
    for name in args.vllm_settings or ():
        if name in _SET_BY_OPTION:
            raise UsageError(f"--vllm_settings holds {name!r}, which --{_SET_BY_OPTION[name]} sets. Use that.")
    _settings(args)


def _evaluate(args: argparse.Namespace, console: "Console") -> int:
    with reported("sgopd eval"):
        from ..evaluation.engines import EngineError
        from ..evaluation.progress import SampleProgress
        from ..evaluation.store import OutputFolder
        from ..evaluation.summary import judge_failures, summarize, tables

        with closing(OutputFolder(args.output_dir)) as folder:
            evaluation, tokenizer = _evaluation(args, folder)
            try:
                with SampleProgress() as progress, reported("sgopd eval", EngineError):
                    evaluation.run(partial(_open_engine, args, evaluation, tokenizer), progress)
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                # After a mistake in the options the same command would not go on
                if interrupted or evaluation.sampling:
                    console.print(
                        f"\n{progress.done} of {evaluation.total} samples are kept in {args.output_dir}; the same command "
                        "goes on from there.",
                        markup=False,
                        soft_wrap=True,
                    )
                if interrupted:
                    return 130
                raise
            summary = summarize(
                evaluation.settings, evaluation.verdicts(), evaluation.judge.tells_unparsed, folder.served
            )
            path = folder.write_summary(summary)
    console.print(args.model, style="bold", markup=False, highlight=False)
    for found in tables(summary):
        console.print(found)
    if failures := judge_failures(summary):
        console.print(
            f"The judge failed (timeout or error) on {failures} samples, which count as wrong; their lines in verdicts.jsonl "
            "say why. Correct the verifier and add --rejudge.",
            style="bold red",
            markup=False,
        )
    console.print(f"Summary in {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _settings(args: argparse.Namespace, **found: str | None) -> "EvaluationSettings":
    from ..evaluation.settings import EvaluationSettings

    values = {name: getattr(args, name) for name in EvaluationSettings.__dataclass_fields__ if hasattr(args, name)}
    return EvaluationSettings(**values, **found)


def _evaluation(args: argparse.Namespace, folder: "OutputFolder") -> tuple["Evaluation", "PreTrainedTokenizerBase"]:
    from transformers import AutoTokenizer

    from ..evaluation.identity import chat_template_hash, weights_of
    from ..evaluation.runner import Evaluation
    from ..miniature import resolve

    model = resolve(args.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, revision=args.revision, trust_remote_code=args.trust_remote_code
        )
    except OSError as error:
        raise OSError(f"The tokenizer of {args.model} cannot be loaded: {error}") from error
    settings = _settings(args, weights=weights_of(model, args.revision), chat_template=chat_template_hash(tokenizer))
    problems, judge = load_data(args, tokenizer.chat_template is not None)
    return Evaluation(settings, problems, tokenizer, judge, folder, args.rejudge), tokenizer


def load_data(args: argparse.Namespace, conversational: bool = True) -> tuple[list["Problems"], "Judge"]:
    """The problems of the benchmarks, and who judges them.

    Args:
        conversational: prompts as messages, for a tokenizer with a chat template.

    Raises:
        ValueError, OSError, ImportError: when a dataset or the verifier cannot be loaded.
    """
    from ..evaluation.benchmarks import find_benchmarks, load_problems
    from ..evaluation.judge import Judge
    from ..verifiers import load_verifier

    benchmarks = find_benchmarks(
        args.dataset,
        config=args.dataset_config,
        split=args.split,
        prompt_column=args.prompt_column,
        answer_column=args.answer_column,
        prompt_template=args.prompt_template,
        box_answer=args.verifier != "code" if args.box_answer is None else args.box_answer == "true",
    )
    problems = [
        load_problems(benchmark, conversational, args.system_prompt, args.max_problems) for benchmark in benchmarks
    ]
    return problems, Judge(load_verifier(args.verifier, args.verifier_settings))


def _open_engine(args: argparse.Namespace, evaluation: "Evaluation", tokenizer: "PreTrainedTokenizerBase") -> "Engine":
    from ..miniature import resolve

    model = resolve(args.model)
    loading = {name: getattr(args, name) for name in ("revision", "dtype", "trust_remote_code")}
    given = {name: getattr(args, name) for name in _ONLY_OF}
    own = {name: _ONLY_OF[name][1] if value is None else value for name, value in given.items()}
    lengths = {"longest_prompt": evaluation.longest_prompt, "max_new_tokens": args.max_new_tokens}
    if args.engine == "transformers":
        from ..evaluation.engines.in_process import TransformersEngine

        return TransformersEngine.load(model, tokenizer, batch_size=own["batch_size"], **lengths, **loading)
    needed = evaluation.longest_prompt + args.max_new_tokens
    if args.engine == "server":
        from ..evaluation.engines.server import ServerEngine

        return ServerEngine(
            args.server_url,
            tokenizer,
            **lengths,
            model=args.server_model,
            **{name: own[name] for name in ("concurrency", "request_timeout", "retry_timeout")},
        )
    from ..evaluation.engines.vllm import VLLMEngine

    if args.max_model_len is not None and args.max_model_len < needed:
        raise ValueError(
            f"`max_model_len` is {args.max_model_len}, but the longest prompt ({evaluation.longest_prompt}) and "
            f"`max_new_tokens` ({args.max_new_tokens}) need {needed}."
        )
    chosen = {name: getattr(args, name) for name in ("tensor_parallel_size", "gpu_memory_utilization")}
    settings = {name: value for name, value in chosen.items() if value is not None} | (args.vllm_settings or {})
    return VLLMEngine(model, tokenizer, max_model_len=args.max_model_len or needed, **loading, **settings)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
