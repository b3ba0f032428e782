"""Settings of the whole suite."""

from __future__ import annotations

from hypothesis import settings

# Tests are never timed (the first call of a kernel compiles it), and leave no files behind.
settings.register_profile("neuroshed", deadline=None, database=None)
settings.load_profile("neuroshed")
