"""Teachers: one protocol, and what stands behind it."""

from .protocol import SamplingSettings, Teacher, TeacherError
