"""What messages call the model behind the servers, and the settings that its user may correct."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """The words of a run with a teacher.

    Args:
        model: at the beginning of a sentence. url, name, retry_timeout, lengths: settings.
        answers: the longest that is asked for, by `completion` and `rollout`, in tokens.
        tokenizer: whose the server's must be. serve: what to do where it is not.
    """

    model: str = "The teacher"
    url: str = "`teacher_server_url`"
    name: str = "`teacher_server_model`"
    retry_timeout: str = "`teacher_server_retry_timeout`"
    lengths: str = "`max_prompt_length`, `max_completion_length` or `teacher_max_completion_length`"
    answers: str = "a completion of {completion} or a rollout of {rollout}"
    tokenizer: str = "the student's"
    serve: str = "Serve a teacher of the student's family"

    @property
    def server(self) -> str:
        """At the beginning of a sentence."""
        return f"{self.model}'s server"


TEACHER = Words()
