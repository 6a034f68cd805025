"""Engines: what samples completions, behind one protocol."""

from .protocol import Engine, EngineError, Finished, Request, Sample
