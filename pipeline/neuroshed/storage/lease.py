"""The lease of a run: one writer at a time, on any store, without comparing clocks of two machines.

Who may write is decided by creating `epoch-NNNNNN`, which succeeds for one alone whatever the others have cached. The
holder of the latest epoch then raises a counter in that file, which nobody else writes. Others take over when it is
given back, when its process is seen to be gone, or when the counter stood still for longer than any cache keeps it, by
their own clock. A holder that finds a later epoch stops; one that slept for long claims the next epoch before it goes
on. No file is ever locked, so nobody waits for a process that hangs.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import threading
import time
from dataclasses import dataclass
from types import TracebackType

from neuroshed.errors import LeaseLostError, WorkflowError
from neuroshed.storage.holders import Holder, held
from neuroshed.storage.locations import Location

log = logging.getLogger("neuroshed")

FOLDER = "journal"
# Goes on while the machine sleeps, where there is such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a lease is renewed, and how long its holder must be silent to be taken for gone."""

    beat_seconds: float = 10.0
    silence_seconds: float = 90.0
    """Longer than the 60 s for which network file systems may show what was there before."""


PACE = Pace()
_UNKNOWN = Holder("another coordinator", "an unknown host", 0)


@dataclass(frozen=True, slots=True)
class _State:
    """What the file of an epoch says."""

    epoch: int
    holder: Holder | None
    """None if it was given back."""
    beat: int

    def encode(self) -> bytes:
        holder = self.holder and dataclasses.asdict(self.holder)
        return json.dumps({"epoch": self.epoch, "holder": holder, "beat": self.beat}).encode()


class Lease:
    """A context manager that holds a run; a second holder is refused with the first one's name.

    Entering may take `silence_seconds`, if the last holder was on another machine and gave nothing back. Raises
    `WorkflowError` if the run is being worked on.
    """

    def __init__(self, run_folder: Location, name: str, pace: Pace | None = None) -> None:
        self.run_folder, self.pace = run_folder, pace or PACE
        self.holder = Holder.here(name)
        self.epoch = 0
        """Grows with every holder, and when a holder slept for long."""
        self._folder = run_folder / FOLDER
        self._beat = 0
        self._lost = ""
        self._renewed = self._checked = 0.0
        self._guard = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="neuroshed-lease", daemon=True)

    def __enter__(self) -> Lease:
        self._folder.make_folder()
        held.add(self.holder.token)
        try:
            self._acquire()
        except BaseException:
            held.discard(self.holder.token)
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(self.pace.beat_seconds)
        try:
            if not self._lost:
                self._put(holder=None)
        except Exception as error:
            # The work is recorded; the next holder has to wait a little.
            log.warning("the lease of run %s could not be given back (%s)", self.run_folder, error)
        finally:
            held.discard(self.holder.token)

    def check(self, *, fresh: bool = False) -> None:
        """Raise `LeaseLostError` if the run was taken over; looks again if `fresh`, or if the last look is old."""
        # If it is being renewed right now, which takes long where the store does, that is look enough.
        if not self._guard.acquire(blocking=fresh or self._slept(_now())):
            return
        try:
            now = _now()
            if self._slept(now):
                self._try_to_renew()
            elif not self._lost and (fresh or now - self._checked > self.pace.beat_seconds):
                self._look_ahead()
                self._checked = now
            if self._lost:
                raise LeaseLostError(self._lost)
        finally:
            self._guard.release()

    def renew(self) -> None:
        """Raise the counter, and make sure that the run was not taken over before. Raises `LeaseLostError`."""
        with self._guard:
            now = _now()
            if self._lost:
                raise LeaseLostError(self._lost)
            if not self._slept(now):
                # A network file system shows other changes of a folder at the latest after one's own.
                self._put(self.holder)
                self._look_ahead()
            elif not self._claim(self.epoch + 1):
                self._look_ahead(sure=True)
            if self._lost:
                raise LeaseLostError(self._lost)
            self._renewed = self._checked = now

    def _acquire(self) -> None:
        seen, since, asked = _look(self._folder), _now(), 0.0
        while True:
            alive = seen.holder is not None and seen.holder.alive
            if alive:
                raise self._refusal(seen)
            if alive is False or asked - since >= self.pace.silence_seconds:
                self._renewed = self._checked = _now()
                if self._claim(seen.epoch + 1):
                    return
                # Somebody was quicker, or what was seen is long past.
                seen, since, asked = _look(self._folder, seen.epoch + 1), _now(), 0.0
                continue
            if not asked:
                log.warning("%s holds run %s; seeing whether it still works", seen.holder, self.run_folder)
            time.sleep(min(self.pace.beat_seconds, self.pace.silence_seconds) / 4)
            asked = _now()
            found = _look(self._folder, seen.epoch)
            if (found.epoch, found.beat) > (seen.epoch, seen.beat):
                if found.holder is not None and found.holder.alive is not False:
                    raise self._refusal(found)
                seen = found

    def _refusal(self, state: _State) -> WorkflowError:
        run = self.run_folder
        return WorkflowError(
            f"run {run} is being worked on by {state.holder}; wait for it, or stop it with `neuroshed cancel {run}`"
        )

    def _claim(self, epoch: int) -> bool:
        """Try to become the holder of an epoch; whether that went well."""
        mine = _State(epoch, self.holder, 0)
        # A store that answers too late may deny what it did.
        if not _epoch_file(self._folder, epoch).create(mine.encode()) and _read(self._folder, epoch) != mine:
            return False
        self.epoch, self._beat = epoch, 0
        return True

    def _put(self, holder: Holder | None) -> None:
        with self._guard:
            if holder is not None and self._ended.is_set():
                return
            self._beat += 1
            _epoch_file(self._folder, self.epoch).put(_State(self.epoch, holder, self._beat).encode())

    def _look_ahead(self, *, sure: bool = False) -> None:
        """Note whether somebody has the next epoch, by its file or because that is `sure`."""
        found = _read(self._folder, self.epoch + 1)
        if found is not None or sure:
            by = (found and found.holder) or "another coordinator"
            self._lost = f"run {self.run_folder} was taken over by {by}; this coordinator stops"

    def _slept(self, now: float) -> bool:
        """Whether others may take this holder for gone."""
        return now - self._renewed > self.pace.silence_seconds / 2

    def _keep(self) -> None:
        while not self._lost and not self._ended.wait(self.pace.beat_seconds):
            self._try_to_renew()

    def _try_to_renew(self) -> None:
        try:
            self.renew()
        except LeaseLostError:
            pass
        except Exception as error:
            # Whatever the store's client raises; it may come back.
            now = _now()
            silent = now - self._renewed
            log.warning("the lease of run %s cannot be renewed for %.0f s (%s)", self.run_folder, silent, error)
            if self._slept(now):
                self._lost = (
                    f"the lease of run {self.run_folder} could not be renewed for {silent:.0f} s ({error}); this "
                    "coordinator stops, as another may take over"
                )


def holder_of(run_folder: Location) -> Holder | None:
    """Who holds a run, for whoever asks; None if nobody does. Its `alive` says what can be told from this machine."""
    return _look(run_folder / FOLDER).holder


def _look(folder: Location, least: int = 0) -> _State:
    """The latest epoch, at least the given one, which exists, and who holds it."""
    listed = (int(match[1]) for name in folder.names() if (match := re.fullmatch(r"epoch-(\d+)", name)))
    top = max((least, *listed))
    return _read(folder, top) or _State(top, _UNKNOWN if top else None, -1)


def _epoch_file(folder: Location, epoch: int) -> Location:
    return folder / f"epoch-{epoch:06d}"


def _read(folder: Location, epoch: int) -> _State | None:
    """What the file of an epoch says; None if it is not there."""
    try:
        data = _epoch_file(folder, epoch).read_bytes()
    except FileNotFoundError:
        return None
    try:
        values = json.loads(data)
        holder = None if values["holder"] is None else Holder.parse(values["holder"])
        return _State(epoch, holder, int(values["beat"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        # Damaged, or just being made on a file system that cannot do that at once.
        return _State(epoch, _UNKNOWN, -1)


def _now() -> float:
    return time.clock_gettime(_CLOCK)
