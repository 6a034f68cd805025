"""The settings of `SGOPDConfig` that say which teachers there are, where they live, and what is kept of them."""

from dataclasses import dataclass, field
from typing import Any


_OF_ONE_TEACHER = ("model_name_or_path", "revision", "init_kwargs", "offload", "server_url", "server_model")


@dataclass
class TeacherConfig:
    """One teacher or several, in process, behind a vLLM server, or recorded. docs/teachers.md compares them."""

    teacher_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Teacher pi*: Hub id or directory. Used when `teacher_model` is not passed. With `teacher_server_url` "
            "it is not loaded: it names what the server serves."
        },
    )
    teacher_model_revision: str | None = field(
        default=None, metadata={"help": "Revision of the teacher (branch, tag or commit)."}
    )
    teacher_model_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Keyword arguments for `from_pretrained` of the teacher. `dtype` defaults to 'float32', as the "
            "student's does; `quantization_config` may be a mapping."
        },
    )
    teacher_offload: bool = field(
        default=False,
        metadata={"help": "Keep the in-process teacher's weights in host memory while it is not working."},
    )
    teacher_server_url: list[str] | None = field(
        default=None,
        metadata={
            "help": "vLLM server(s) with the teacher, as http://host:8000; several share the load and stand in for each "
            "other. The API key is read from the environment variable VLLM_API_KEY."
        },
    )
    teacher_server_model: str | None = field(
        default=None, metadata={"help": "Name the server gives the teacher. Default: the only model it serves."}
    )
    teacher_server_concurrency: int = field(
        default=16, metadata={"help": "Requests to the teacher's server(s) at a time, of all processes together."}
    )
    teacher_server_tokens_per_request: int = field(
        default=16384,
        metadata={"help": "Tokens of one scoring request; a longer sequence gets a request of its own."},
    )
    teacher_server_request_timeout: float = field(
        default=600.0,
        metadata={
            "help": "Seconds to wait for one answer, with the check of the server before it; then it is asked again."
        },
    )
    teacher_server_retry_timeout: float = field(
        default=540.0,
        metadata={
            "help": "Seconds, from its first failure on, that a request is repeated. After that the run saves a "
            "checkpoint and stops. On several processes 2 * `teacher_server_request_timeout` and this must be below "
            "`ddp_timeout`."
        },
    )
    teachers: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Several teachers: a mapping of names to settings (model_name_or_path, revision, init_kwargs, "
            "offload, server_url, server_model). The dataset's column `teacher` names each row's."
        },
    )
    teacher_recorded_path: str | None = field(
        default=None,
        metadata={"help": "Folder of recorded log-probabilities and rollouts, which take the teacher's place."},
    )
    teacher_record_path: str | None = field(
        default=None, metadata={"help": "Folder to record all the teacher's log-probabilities and rollouts in."}
    )
    teacher_bank: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the teacher's rollouts for phased teacher sampling: those it holds are not generated "
            "again, those that are generated are added. Default: `_teacher_rollouts-<hash>` in `output_dir`."
        },
    )
    teacher_rollouts_per_prompt: int = field(
        default=1,
        metadata={"help": "Different rollouts of the teacher a prompt. Each time the prompt is drawn, one is taken."},
    )

    def check_teachers(self) -> None:
        """Validates these settings, and makes one URL a list.

        Raises:
            ValueError: with the setting and its value.
        """
        if isinstance(self.teacher_server_url, str):
            self.teacher_server_url = [self.teacher_server_url]
        for name, ok, expected in (
            ("teacher_server_concurrency", self.teacher_server_concurrency >= 1, ">= 1"),
            ("teacher_server_tokens_per_request", self.teacher_server_tokens_per_request >= 1, ">= 1"),
            ("teacher_server_request_timeout", self.teacher_server_request_timeout > 0, "> 0"),
            ("teacher_server_retry_timeout", self.teacher_server_retry_timeout >= 0, ">= 0"),
            ("teacher_rollouts_per_prompt", self.teacher_rollouts_per_prompt >= 1, ">= 1"),
        ):
            if not ok:
                raise ValueError(f"`{name}` must be {expected}, got {getattr(self, name)!r}.")
        _check_urls("teacher_server_url", self.teacher_server_url)
        if self.teachers is not None:
            self._check_several()
        if self.teacher_recorded_path is not None and self.teacher_record_path is not None:
            raise ValueError(
                "`teacher_recorded_path` takes the teacher's place and `teacher_record_path` records a teacher: set one, "
                f"got {self.teacher_recorded_path!r} and {self.teacher_record_path!r}."
            )

        urls = self.teacher_server_url or [
            url for settings in (self.teachers or {}).values() for url in settings.get("server_url") or []
        ]
        if urls:
            self._check_server()

    def _check_server(self) -> None:
        if self.temperature != 1:
            raise ValueError(
                "A teacher behind a vLLM server needs `temperature` = 1: the server's log-probabilities of given tokens "
                "are those of temperature 1 whatever is asked for (at 0.7 they are off by up to 0.2 nats), got "
                f"{self.temperature!r}. Sample the student at temperature 1, or load the teacher in process."
            )
        if self.teacher_temperature > 2:
            raise ValueError(
                f"vLLM samples at temperatures up to 2, got `teacher_temperature` = {self.teacher_temperature}."
            )
        # A request is waited for once, fails, is repeated, and its last attempt is waited for again.
        longest = 2 * self.teacher_server_request_timeout + self.teacher_server_retry_timeout
        if self.world_size > 1 and longest >= self.ddp_timeout:
            raise ValueError(
                "While one process waits for the teacher's server the others wait for it: 2 * "
                "`teacher_server_request_timeout` + `teacher_server_retry_timeout` must be below `ddp_timeout` "
                f"({self.ddp_timeout} s), got {longest} s."
            )

    def _check_several(self) -> None:
        if not isinstance(self.teachers, dict) or not self.teachers:
            raise ValueError(f"`teachers` must be a mapping of names to settings, got {self.teachers!r}.")
        for single in ("teacher_model_name_or_path", "teacher_server_url", "teacher_recorded_path"):
            if getattr(self, single) is not None:
                raise ValueError(
                    f"`teachers` and `{single}` both name a teacher: set one, got {list(self.teachers)} and "
                    f"{getattr(self, single)!r}."
                )
        for name, settings in self.teachers.items():
            if not isinstance(settings, dict):
                raise ValueError(f"`teachers`: {name!r} must be a mapping of settings, got {settings!r}.")
            unknown = sorted(settings.keys() - set(_OF_ONE_TEACHER))
            if unknown:
                raise ValueError(f"`teachers`: {name!r} has unknown settings {unknown}; it takes {_OF_ONE_TEACHER}.")
            if not settings.get("model_name_or_path") and not settings.get("server_url"):
                raise ValueError(f"`teachers`: {name!r} needs `model_name_or_path` or `server_url`, got {settings!r}.")
            if isinstance(settings.get("server_url"), str):
                settings["server_url"] = [settings["server_url"]]
            _check_urls(f"teachers: {name}: server_url", settings.get("server_url"))


def _check_urls(name: str, urls: list[str] | None) -> None:
    if urls is not None and (not urls or not all(str(url).startswith(("http://", "https://")) for url in urls)):
        raise ValueError(f"`{name}` must be one or more http:// or https:// addresses, got {urls!r}.")
