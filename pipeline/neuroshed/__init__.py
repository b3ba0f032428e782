"""neuroshed: neurons from petascale electron microscopy, the same whatever the chunking.

Each verb of the command line is a function here:

    import neuroshed
    neuroshed.import_volume("stack.tif", "a.zarr", voxel_size=(10, 10, 10))
    summary = neuroshed.run("segment", ["image=a.zarr", "output=run1"])
    neuroshed.evaluate(summary["segmentations"]["0.5"], "truth.zarr")
"""

from typing import TYPE_CHECKING, Any

from neuroshed.errors import (
    BlockError,
    InputError,
    NeuroshedError,
    RunFailedError,
    RunStoppedError,
    StorageFullError,
    WorkflowError,
)
from neuroshed.version import __version__ as __version__

if TYPE_CHECKING:
    from neuroshed.api import (
        cancel,
        check_model,
        clean,
        cluster_certificates,
        cut,
        doctor,
        evaluate,
        export,
        follow,
        import_volume,
        init,
        plan,
        pyramid,
        resume,
        retry,
        run,
        runs,
        status,
        submit,
        sweep,
        train,
        verify,
        volume_check,
        volume_compare,
        volume_crop,
        volume_info,
    )
    from neuroshed.geometry import Box
    from neuroshed.showcase import demo


__all__ = [
    # verbs
    "cancel",
    "check_model",
    "clean",
    "cluster_certificates",
    "cut",
    "demo",
    "doctor",
    "evaluate",
    "export",
    "follow",
    "import_volume",
    "init",
    "plan",
    "pyramid",
    "resume",
    "retry",
    "run",
    "runs",
    "status",
    "submit",
    "sweep",
    "train",
    "verify",
    "volume_check",
    "volume_compare",
    "volume_crop",
    "volume_info",
    # values and errors
    "Box",
    "BlockError",
    "InputError",
    "NeuroshedError",
    "RunFailedError",
    "RunStoppedError",
    "StorageFullError",
    "WorkflowError",
]


def __getattr__(name: str) -> Any:
    # torch, zarr and Dask take seconds to import; errors, boxes and --help should not wait for them.
    if name in __all__:
        from importlib import import_module

        homes = {"demo": "neuroshed.showcase", "Box": "neuroshed.geometry"}
        return getattr(import_module(homes.get(name, "neuroshed.api")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
