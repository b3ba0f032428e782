"""Exceptions, grouped by what a handler does about them.

Every message is one line and says what was wrong, what was got, what the limit is and how to mend it.
"""

from __future__ import annotations

from typing import Any


class NeuroshedError(Exception):
    """Base of all errors that neuroshed raises on purpose.

    `exit_code` is what the command line returns: 2 for a mistake of the user, 1 for work that failed.
    """

    exit_code = 1


class InputError(NeuroshedError):
    """Stop before starting: a file, array or checkpoint given by the user cannot be used."""

    exit_code = 2


class WorkflowError(NeuroshedError):
    """Stop before starting: the user mends the workflow, the training configuration or the command."""

    exit_code = 2


class BlockError(NeuroshedError):
    """Set this block aside; go on with the rest."""


class StorageFullError(NeuroshedError):
    """Stop the run, which stays resumable: nothing more can be written."""


class RunFailedError(NeuroshedError):
    """The run ended with blocks that failed; everything that did not depend on them is done."""

    summary: dict[str, Any]
    """The run's summary, failures included."""


class RunStoppedError(NeuroshedError):
    """The run was asked to stop before everything was done; it can be resumed."""

    exit_code = 130
    summary: dict[str, Any]
    """The run's summary."""


class LeaseLostError(NeuroshedError):
    """Stop at once and record nothing more: another coordinator may have taken the run over."""
