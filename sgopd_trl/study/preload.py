"""What the processes of a study are forked with, so that a run starts in a fraction of a second and not in ten.

Imported by the server that forks them, which runs nothing else. A fork has one thread: there must be none here that work
waits for. OpenMP has started none, since `OMP_NUM_THREADS` is set by then; pyarrow's allocator has one in the background,
and brings it back in a fork by itself.
"""

import transformers.models.auto.modeling_auto  # noqa: F401
import trl  # noqa: F401

from .. import figures, trainer  # noqa: F401
from ..cli import teacher_rollouts, train  # noqa: F401
from ..evaluation import judge, runner, summary  # noqa: F401
from ..evaluation.engines import in_process  # noqa: F401
