"""An evaluation from its problems to its samples and verdicts: what is missing is asked, judged and kept at once."""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

from ..seeded_sampling import rollout_seed
from ..teachers.protocol import SamplingSettings
from .benchmarks import Problems
from .engines import Engine, Finished, Request, Sample
from .judge import Judge
from .prompts import encode
from .settings import EvaluationSettings
from .store import BenchmarkFiles, Key, Line, OutputFolder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_JUDGED_TOGETHER = 512


class Progress(Protocol):
    """Is told how far the evaluation is."""

    def start(self, done: int, total: int) -> None: ...

    def advance(self, samples: int, tokens: int) -> None: ...


class Evaluation:
    """An evaluation of one model on some benchmarks, which goes on where its output folder says it stood.

    Args:
        settings, problems, judge: what is asked, and who judges. tokenizer: the model's.
        chat_template_kwargs of the settings go to its template.
        folder: of the output. rejudge: make the verdicts anew.

    Attributes:
        sampling: whether the engine has been asked, so that no option has stood in the way.

    Raises:
        ValueError: when the folder holds samples or verdicts of other settings or problems, a gold is malformed, or
            `chat_template_kwargs` have no template to go to.
    """

    def __init__(
        self,
        settings: EvaluationSettings,
        problems: Sequence[Problems],
        tokenizer: "PreTrainedTokenizerBase",
        judge: Judge,
        folder: OutputFolder,
        rejudge: bool = False,
    ):
        if settings.chat_template_kwargs and tokenizer.chat_template is None:
            raise ValueError(
                f"`chat_template_kwargs` is {settings.chat_template_kwargs}, but the tokenizer of {settings.model} has no chat "
                "template. Leave it out."
            )
        self.settings = settings
        self.tokenizer = tokenizer
        self.judge = judge
        self.folder = folder
        self.sampling = False
        self.rows: dict[str, list[Line]] = {each.name: each.rows.to_list() for each in problems}
        self.files: dict[str, BenchmarkFiles] = {each.name: folder[each.name] for each in problems}
        self.prompt_ids = {
            each.name: [encode(tokenizer, row["prompt"], settings.chat_template_kwargs) for row in self.rows[each.name]]
            for each in problems
        }
        for name, rows in self.rows.items():
            judge.check(name, rows)
        templates = {each.name: each.template for each in problems}
        remembered = folder.check(settings.of_samples(), settings.of_verdicts(), templates, rejudge)
        for each in problems:
            lines = zip(each.keys(), self.rows[each.name], self.prompt_ids[each.name], strict=True)
            self.files[each.name].open(
                [
                    {
                        "problem": place,
                        "prompt": row["prompt"],
                        "solution": row["solution"],
                        "prompt_tokens": len(ids),
                        "key": key,
                    }
                    for place, (key, row, ids) in enumerate(lines)
                ]
            )
        if rejudge:
            folder.forget_verdicts([each.name for each in problems], settings.of_verdicts())
        folder.remember(remembered)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(ids) for prompts in self.prompt_ids.values() for ids in prompts)

    @property
    def total(self) -> int:
        """Samples that are asked for in all."""
        return self.settings.n * sum(map(len, self.rows.values()))

    def _count(self) -> tuple[list[Request], dict[str, list[Line]]]:
        """The requests for the samples that are missing, and each benchmark's samples without a verdict."""
        missing, unjudged = [], {}
        for name, files in self.files.items():
            keys, others = files.sampled(besides=files.judged().keys())
            unjudged[name] = [line for line in others if line["problem"] < len(self.rows[name])]
            missing += [self._request(name, *key) for key in self._wanted(name) if key not in keys]
        return missing, unjudged

    def run(self, open_engine: Callable[[], Engine], progress: Progress) -> None:
        """Asks for what is missing. The engine is opened only where something is.

        Raises:
            EngineError: when the engine cannot answer. What has finished is kept.
            ValueError: when it serves another model than the one that the folder's samples come from.
        """
        missing, unjudged = self._count()
        progress.start(self.total - len(missing), self.total)
        for name, lines in unjudged.items():
            for start in range(0, len(lines), _JUDGED_TOGETHER):
                self._judge(name, lines[start : start + _JUDGED_TOGETHER])
        if not missing:
            return
        settings = SamplingSettings(
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            top_k=0,
            max_new_tokens=self.settings.max_new_tokens,
        )
        with closing(open_engine()) as engine:
            if engine.served is not None:
                self.folder.check_served(engine.served)
            self.sampling = True
            self._keep(engine.generate(missing, settings), progress)

    def _keep(self, batches: Generator[Finished, None, None], progress: Progress) -> None:
        """Writes and judges what has finished."""
        with closing(batches):
            for finished in batches:
                by_benchmark: dict[str, list[Line]] = defaultdict(list)
                for request, sample in finished:
                    by_benchmark[request.dataset].append(self._line(request, sample))
                for name, lines in by_benchmark.items():
                    self.files[name].samples.append(lines)
                for name, lines in by_benchmark.items():
                    self._judge(name, lines)
                progress.advance(len(finished), sum(len(sample.completion_ids) for _, sample in finished))

    def verdicts(self) -> dict[str, list[list[Line]]]:
        """For each benchmark (P, n) verdicts.

        Raises:
            KeyError: when one is missing.
        """
        found = {}
        for name, files in self.files.items():
            judged = files.judged()
            found[name] = [
                [judged[place, sample] for sample in range(self.settings.n)] for place in range(len(self.rows[name]))
            ]
        return found

    def _wanted(self, name: str) -> list[Key]:
        return [(problem, sample) for problem in range(len(self.rows[name])) for sample in range(self.settings.n)]

    def _request(self, name: str, problem: int, sample: int) -> Request:
        seed = rollout_seed("evaluation", self.settings.seed, name, problem, sample)
        return Request(name, problem, sample, self.prompt_ids[name][problem], seed)

    def _line(self, request: Request, sample: Sample) -> Line:
        return {
            "problem": request.problem,
            "sample": request.sample,
            "seed": request.seed,
            "finish_reason": sample.finish_reason,
            "tokens": len(sample.completion_ids),
            "completion": self.tokenizer.decode(sample.completion_ids, skip_special_tokens=True),
            "completion_ids": sample.completion_ids,
        }

    def _judge(self, name: str, lines: Sequence[Line]) -> None:
        rows = [self.rows[name][line["problem"]] for line in lines]
        verdicts = self.judge(rows, [line["completion"] for line in lines], [line["completion_ids"] for line in lines])
        self.files[name].verdicts.append(
            [
                {
                    "problem": line["problem"],
                    "sample": line["sample"],
                    # Of a truncated sample the answer is not taken, as in training (`zero_truncated_reward`)
                    "correct": verdict.correct and line["finish_reason"] != "length",
                    "verdict": str(verdict.status),
                    "answer": verdict.answer,
                    "detail": verdict.detail,
                    "finish_reason": line["finish_reason"],
                    "tokens": line["tokens"],
                    "seed": line["seed"],
                }
                for line, verdict in zip(lines, verdicts, strict=True)
            ]
        )
