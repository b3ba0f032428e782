"""What grows in a bucket. Nothing can be moved there, so it grows in its own place, without what readers open first:
its metadata is kept aside, and put in place when all else is there.
"""

from __future__ import annotations

from typing import Any

from zarr.abc.store import Store
from zarr.core.buffer import Buffer
from zarr.storage import WrapperStore

from neuroshed.storage.bucket_locations import InBucket
from neuroshed.storage.locations import Location

METADATA = ("zarr.json", "info")
"""Names of the files without which readers see nothing: of Zarr v3, of Neuroglancer's precomputed format."""


class Growing(InBucket):
    """A folder of which files named `METADATA` lie in another one, `aside`, until they are told to be put in place."""

    __slots__ = ("_aside",)
    _aside: Location

    def __init__(self, place: Location, aside: Location) -> None:
        super().__init__(str(place))
        object.__setattr__(self, "_aside", aside)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (InBucket(str(self)), self._aside)

    @property
    def parent(self) -> Location:
        """The folder that this lies in, which does not grow."""
        return InBucket(str(self)).parent

    def __truediv__(self, name: str) -> Location:
        """What lies at `name` below; metadata lies aside."""
        aside = self._aside / name
        return aside if aside.name in METADATA else Growing(InBucket(str(self)) / name, aside)

    def exists(self) -> bool:
        """Whether there is anything, aside or in place."""
        return self._aside.exists() or super().exists()

    def zarr_store(self, read_only: bool) -> Store:
        """The store of the folder, to read all of it, and to write what is no metadata."""
        return _Joined(super().zarr_store(read_only), self._aside.zarr_store(read_only=True))

    def put_in_place(self) -> Location:
        """Show readers what is there: the metadata of what lies deepest first, that of the whole last."""
        place = InBucket(str(self))
        names = [str(file).removeprefix(f"{self._aside}/") for file, _ in self._aside.files()]
        for name in sorted(names, key=lambda name: -name.count("/")):
            (place / name).put((self._aside / name).read_bytes())
        return place


class _Joined(WrapperStore[Store]):
    """A store of which metadata is in another."""

    def __init__(self, store: Store, aside: Store) -> None:
        super().__init__(store)
        self._aside = aside

    def _with_store(self, store: Store) -> _Joined:
        return type(self)(store, self._aside)

    def _of(self, key: str) -> Store:
        return self._aside if key.rpartition("/")[2] in METADATA else self._store

    async def get(self, key: str, *options: Any, **more: Any) -> Buffer | None:
        """What is at a key, in the store that holds it."""
        return await self._of(key).get(key, *options, **more)

    async def exists(self, key: str) -> bool:
        """Whether there is a key, in the store that would hold it."""
        return await self._of(key).exists(key)
