"""What a run folder holds, by name."""

from __future__ import annotations

from neuroshed.storage.lease import FOLDER as JOURNAL_FOLDER
from neuroshed.storage.locations import Location

WORKFLOW_FILE = "workflow.yaml"
PLAN_FILE = "plan.json"
SUMMARY_FILE = "summary.json"
MODEL_CARD_FILE = "model_card.json"


def is_run(place: Location) -> bool:
    """Whether a folder is that of a run, begun or only planned."""
    return any((place / name).exists() for name in (WORKFLOW_FILE, PLAN_FILE, JOURNAL_FOLDER))
