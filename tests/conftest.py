"""Settings of the whole suite."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Tests are never timed (the first call of a kernel compiles it), and leave no files behind.
settings.register_profile("neuroshed", deadline=None, database=None)
settings.load_profile("neuroshed")


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever libraries and killed processes leave in the folder of temporary files goes with pytest's own."""
    folder = str(tmp_path_factory.mktemp("temporary"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
