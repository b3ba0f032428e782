"""The command line: arguments to one call, progress and results to the terminal.

Exit code 0 means that everything was done, 1 that blocks failed, 2 that the user has something to mend, 130 that it was
asked to stop. With `--json` the result goes to standard output as one JSON object; progress and messages always go to
standard error.
"""

from neuroshed.cli import data, exports, models, results, running, volumes, watching, workers
from neuroshed.cli.base import main

__all__ = ["data", "exports", "main", "models", "results", "running", "volumes", "watching", "workers"]
