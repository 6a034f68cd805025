"""What one process does for all of them."""

from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list


T = TypeVar("T")


def on_main_process(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """What `function` returns on the main process, on all of them. Collective.

    Raises:
        Exception: what `function` raised on the main process, on all of them: none is left waiting for another.
    """
    answer = error = None
    if accelerator.is_main_process:
        try:
            answer = function()
        except Exception as raised:
            error = raised
    answer, failure = broadcast_object_list([answer, error])
    if failure is not None:
        raise error or failure
    return answer
