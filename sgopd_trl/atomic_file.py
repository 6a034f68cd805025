"""Files that appear whole or not at all."""

import os
import uuid
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes a text file in one step: a reader finds the old one or the new one, also after a kill in between."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    with open(temporary, "x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
