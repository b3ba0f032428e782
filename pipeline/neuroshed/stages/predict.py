"""Image to affinities: the U-Net over a lattice of patches that belongs to the volume, not to the block."""

from __future__ import annotations

import functools
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from neuroshed.errors import BlockError
from neuroshed.geometry import Box, Grid, Vec, add, mul
from neuroshed.kernels.across import NEAREST
from neuroshed.model.lattice import Lattice, read_box
from neuroshed.model.words import Precision
from neuroshed.stages.base import Done, Need, Stage, Step
from neuroshed.stages.drift import FIELD_BYTES, Drift
from neuroshed.stages.masks import Skipped, left_out
from neuroshed.storage.identity import unchanged
from neuroshed.storage.locations import Location
from neuroshed.storage.metadata import chunk_side
from neuroshed.storage.networks import ModelChoice, open_model
from neuroshed.storage.reading import reading_bytes
from neuroshed.storage.volumes import Volume, create_volume, open_volume

if TYPE_CHECKING:
    from neuroshed.model.inference import Predictor
    from neuroshed.model.networks import Network
    from neuroshed.storage.networks import Opened

GPU_CONTEXT_BYTES = 10**9
"""That CUDA and its libraries take of a GPU for a process, before any patch."""


class Predict(Stage):
    """Affinities of the blocks that touch the region, each block whole, so that another region can use them."""

    kind: Literal["predict"] = "predict"
    version = 3
    image: Location
    image_identity: dict[str, Any]
    """What the image was when the run was planned."""
    volume_shape: Vec
    voxel_size: tuple[float, float, float]
    offset: tuple[float, float, float]
    region: Box
    """The part of the volume that is wanted; blocks that touch it are predicted whole."""
    block_shape: Vec
    shard_shape: Vec
    model: ModelChoice
    """Name of a shipped model, path of any of ours, or what is declared of another."""
    network_sha256: str
    """Of weights and architecture, or of a foreign model's files and what is declared of it."""
    lattice: Lattice
    normalisation: tuple[float, float]
    """Image values that become -1 and 1; of the levelled image, if `drift` is given."""
    drift: Drift | None = None
    """A coarse map of the image's intensities."""
    spread: tuple[float, float] | None = None
    """With `drift`: what its quantiles become, in 0..1."""
    inverted: bool = False
    """With `drift`: whether the image is turned round."""
    flips: tuple[int, ...] = ()
    """Axes along which patches are flipped and what the network says of them averaged."""
    batch_size: int
    threads: int
    device: str
    precision: Precision
    deterministic: bool = True
    """Whether a GPU gives the same numbers each time."""
    torch_version: str
    """Another version of torch may round differently."""
    skipped: Skipped | None = None
    """Blocks in which masks leave nothing to segment. Like the region, they decide which blocks are predicted, not what
    is in them: other masks use what is there."""

    unhashed: ClassVar[frozenset[str]] = frozenset({"run_folder", "region", "image", "model", "skipped"})

    @property
    def grid(self) -> Grid:
        """Whole blocks that touch the region, cut only by the volume."""
        blocks = Grid(self.region, self.block_shape)
        start = mul(blocks.first, self.block_shape)
        whole = Box(start, add(start, mul(blocks.counts, self.block_shape)))
        return Grid(whole.intersect(Box.of_shape(self.volume_shape)), self.block_shape)

    @property
    def steps(self) -> tuple[Step, ...]:
        """One pass over the image, which is there already, and the map of its intensities around each block."""
        skipped = left_out(self.skipped)
        if self.drift is None:
            return (Step("", self.grid, skipped=skipped),)
        reach = add(add(self.lattice.stride, self.lattice.context), self.drift.cell_shape)
        return (Step("", self.grid, (Need(self.drift.fingerprint, "", reach, reach),), skipped),)

    def without(self, skipped: Skipped | None) -> Self:
        """The same, but for blocks to be left out."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**fields | {"skipped": skipped})

    @property
    def path(self) -> Location:
        """Where the affinities are."""
        return self.folder / "affinities.zarr"

    @cached_property
    def affinities(self) -> Volume:
        """Affinities, uint8 `(3, z, y, x)`."""
        return create_volume(
            self.path,
            shape=self.volume_shape,
            dtype=np.uint8,
            shard_shape=self.shard_shape,
            voxel_size=self.voxel_size,
            offset=self.offset,
            voxel_offsets=NEAREST,
        )

    @cached_property
    def _image(self) -> Volume:
        return open_volume(self.image)

    @cached_property
    def predictor(self) -> Predictor:
        """The network over patches, as it predicts blocks."""
        # With torch, which stages that only read affinities do without.
        from neuroshed.model.inference import Predictor
        from neuroshed.model.networks import Flipped

        choice = _CHOICE.dump_json(self.model)
        network = _network(choice, self.network_sha256, self.normalisation, self.device, self.precision)
        if self.flips:
            network = Flipped(network, self.flips)
        return Predictor(network, self.lattice, self.batch_size, self.threads, self.deterministic)

    @property
    def marks(self) -> tuple[Location, ...]:
        """The stage's file and the volume."""
        return (*super().marks, self.path)

    def written(self, step: str) -> tuple[Volume, ...]:
        """The affinities."""
        return (self.affinities,)

    def has_tables(self, step: str) -> bool:
        """None."""
        return False

    def run(self, step: str, index: Vec) -> Done:
        """Affinities of one block."""
        box = self.grid.block_box(index)
        image_box = read_box(box, self.volume_shape, self.lattice)
        with unchanged(self._image, self.image_identity):
            image = self._image.read(image_box)
        if self.drift and self.spread:
            image = self.drift.level(image, image_box, self.spread, inverted=self.inverted)
        affinities = self.predictor.predict(image, image_box, box, self.volume_shape)
        self.affinities.write(box, affinities)
        return Done(box.size)

    def resource(self, step: str) -> Literal["cpu", "gpu"]:
        """A worker with a GPU, if the network runs on one."""
        return "gpu" if self.device.startswith("cuda") else "cpu"

    def shards(self, step: str) -> Vec:
        """Those of the volume."""
        return self.shard_shape

    @property
    def output_bytes(self) -> int:
        """Three bytes a voxel of whole blocks."""
        return 3 * self.steps[0].voxels_left

    @property
    def offsets(self) -> tuple[Vec, ...]:
        """Offset of each channel that `read` gives."""
        return NEAREST

    def read_bytes(self, shape: Vec) -> int:
        """Peak memory in bytes of `read` for a box of `shape`."""
        channels = len(NEAREST)
        chunks = [chunk_side(side) for side in self.shard_shape]
        return reading_bytes(
            (channels, *shape), (1, *chunks), (channels, *self.shard_shape), 1, on_disk=self.folder.is_local
        )

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Affinities of a box that is predicted, uint8 `(3, z, y, x)`; 0 in blocks that were left out."""
        if self.skipped is None:
            return self.affinities.read(box)
        return self.skipped.read(self.affinities, self.grid, box)

    @property
    def patch_bytes(self) -> int:
        """Roughly the memory in bytes that a patch takes while it goes through the network."""
        return _opened(_CHOICE.dump_json(self.model), self.network_sha256).patch_bytes(self.lattice)

    def gpu_bytes(self, batch_size: int) -> int:
        """Roughly the memory that the network takes of a GPU: one batch at a time, however many tasks share it."""
        share = 1.0 if self.precision == "float32" else 0.5
        return GPU_CONTEXT_BYTES + round(batch_size * self.patch_bytes * share)

    def memory_bytes(self, step: str) -> int:
        """Image and affinities of a block, and the activations of one batch."""
        from neuroshed.model.inference import predicted_bytes

        return predicted_bytes(
            self.patch_bytes,
            self.lattice,
            self.block_shape,
            self.batch_size,
            image_bytes=self._image.dtype.itemsize + (FIELD_BYTES if self.drift else 0),
        )

    def report(self) -> dict[str, str]:
        """Where the affinities are."""
        return {"affinities": str(self.path)}


_CHOICE: TypeAdapter[ModelChoice] = TypeAdapter(ModelChoice)


@functools.lru_cache(maxsize=2)
def _opened(choice: bytes, network_sha256: str) -> Opened:
    """The model that some JSON chooses, once a process; the checksum makes a changed file be read anew."""
    model = _CHOICE.validate_json(choice)
    opened = open_model(model)
    if opened.network_sha256 != network_sha256:
        name = model if isinstance(model, str) else model.path
        raise BlockError(f"model {name} changed since the run was planned; put it back or plan a new run")
    return opened


@functools.lru_cache(maxsize=2)
def _network(
    choice: bytes, network_sha256: str, intensity: tuple[float, float], device: str, precision: Precision
) -> Network:
    """The network on its device, once a process, however many stages and threads use it."""
    return _opened(choice, network_sha256).network(intensity, device, precision)
