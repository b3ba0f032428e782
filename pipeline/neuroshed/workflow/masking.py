"""What a workflow's masks leave to be done: read once when a run is planned, before anything else is."""

from __future__ import annotations

from typing import Any

from neuroshed.errors import BlockError, InputError, WorkflowError
from neuroshed.geometry import Grid
from neuroshed.stages.affinities import Affinities
from neuroshed.stages.masks import Mask, MaskOptions, Skipped, empty_blocks
from neuroshed.stages.predict import Predict
from neuroshed.workflow.config import Workflow
from neuroshed.workflow.prediction import region_of


def masked(workflow: Workflow, source: Affinities | Predict) -> tuple[Affinities | Predict, dict[str, Any]]:
    """The source without the blocks that nothing needs, and the fields that masks are of a stage of blocks.

    Raises `InputError` for a mask that does not fit or cannot be read, `WorkflowError` if nothing is left.
    """
    if not workflow.masks:
        return source, {}
    masks = [_described(given, source) for given in workflow.masks]
    region = region_of(workflow.box, source.volume_shape)
    grid = Grid(region, workflow.block_shape)
    try:
        empty, digests = empty_blocks(masks, grid)
        if empty.all():
            raise WorkflowError(
                f"masks {', '.join(str(mask.path) for mask in masks)} leave nothing to segment: no voxel of {region} "
                "is allowed by all of them; check the values in keep and drop, and the box"
            )
        if isinstance(source, Predict):
            whole = empty if source.grid == grid else empty_blocks(masks, source.grid)[0]
            source = source.without(Skipped.of(source.grid, whole))
    except BlockError as error:
        raise InputError(f"masks cannot be read: {error}") from error
    # All of it was read, so any change is seen, not only one that touches a sample.
    known = tuple(
        mask.model_copy(update={"identity": mask.identity | {"allowed_sha256": digest}})
        for mask, digest in zip(masks, digests, strict=True)
    )
    return source, {"masks": known, "skipped": Skipped.of(grid, empty)}


def _described(given: MaskOptions, source: Affinities | Predict) -> Mask:
    given.path.check()
    return Mask.of(given, source.volume_shape, source.voxel_size, source.offset)
