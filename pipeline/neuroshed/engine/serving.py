"""A scheduler that stands by itself, for runs that come and go: `dask scheduler` with the settings of a run."""

from __future__ import annotations

import asyncio
import logging
import signal

from neuroshed.engine.joining import demand_certificates
from neuroshed.engine.scratch import scratch_folder
from neuroshed.engine.settings import dask_settings
from neuroshed.errors import WorkflowError

log = logging.getLogger(__name__)

HEALTH_ROUTES = ["distributed.http.health"]
"""All that is served without a certificate: whether the scheduler lives."""


def serve(host: str, port: int, health: int) -> None:
    """Listen on `host` (all addresses if it is empty) under mutual TLS with the certificates of Dask's configuration,
    and for `/health` on another port, until told to stop.

    Raises `WorkflowError` if there are no certificates, or nothing can listen there.
    """
    import dask

    demand_certificates()
    with scratch_folder() as scratch:
        settings = dask_settings(str(scratch)) | {"distributed.scheduler.http.routes": HEALTH_ROUTES}
        with dask.config.set(settings):
            asyncio.run(_serve(host, port, health))


async def _serve(host: str, port: int, health: int) -> None:
    from distributed import Scheduler
    from distributed.security import Security

    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        scheduler = await Scheduler(
            protocol="tls://",
            host=host,
            port=port,
            security=Security(),
            dashboard=False,
            dashboard_address=f"{host}:{health}",
        )
    except (OSError, ValueError) as error:
        raise WorkflowError(
            f"no scheduler can listen on {host or 'this machine'}, ports {port} and {health} ({error}); choose others"
        ) from error
    log.info("scheduler at %s", scheduler.address)
    ended = asyncio.ensure_future(scheduler.finished())
    waiting = asyncio.ensure_future(told.wait())
    await asyncio.wait({waiting, ended}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await scheduler.close()
