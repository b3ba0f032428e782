"""Workers that are pods of Kubernetes: each pool is a `DaskWorkerGroup` of the Dask operator, which is scaled here.

The operator makes a Deployment of one pod for each worker of a group. Told to have fewer, it would end whichever it
thinks idle, of any group. So a worker that is to go is taken away by its own Deployment first, and the group's count is
set to what is left, which gives the operator nothing to choose.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from typing import Any

from neuroshed.engine.fleet import Member
from neuroshed.engine.pools import Pool
from neuroshed.errors import RunFailedError, WorkflowError

log = logging.getLogger(__name__)

ANSWER_SECONDS = 60.0
"""For an answer of Kubernetes."""
OPERATOR_SECONDS = 60.0
"""For the operator to make the workers that were asked for."""
GONE_SECONDS = 60.0
"""For pods to end."""
POLL_SECONDS = 0.5
JOB, JOB_UID = "NEUROSHED_JOB", "NEUROSHED_JOB_UID"
"""Environment variables: name and uid of the Job that the coordinator is, if it is one."""
GPU = "nvidia.com/gpu"
BROKEN = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Why a container waits that will not come up by itself."""
_VERSION = "kubernetes.dask.org/v1"
_GROUP, _WORKERS = "dask.org/workergroup-name", "dask.org/cluster-name={},dask.org/component=worker"
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3)} | {
    letter + ending: Decimal(base) ** power
    for power, letter in enumerate("KMGTPE", 1)
    for ending, base in (("i", 1024), ("", 1000))
    if letter + ending != "K"
}


class WorkerGroups:
    """A `Provider` of the groups `CLUSTER-POOL` of a `DaskCluster`.

    Workers that an earlier coordinator has left are taken over. If this process is in a Job, the cluster is made to
    belong to it: what a coordinator leaves that dies for good goes with its Job.
    """

    def __init__(self, cluster: str, namespace: str | None, pools: Mapping[str, Pool]) -> None:
        """`namespace`: by default that of the kubeconfig, or of the pod.

        Raises `WorkflowError` if Kubernetes does not answer, or groups are missing or smaller than their pools.
        """
        try:
            import kr8s
            from kr8s.objects import Deployment, Pod, new_class
        except ModuleNotFoundError as error:
            raise WorkflowError(
                "cluster kubernetes needs the package kr8s; pip install 'neuroshed[kubernetes]'"
            ) from error
        self._cluster, self._pools = cluster, pools
        self._deployment, self._pod = Deployment, Pod
        self._kinds = {kind: new_class(kind, _VERSION, asyncio=False) for kind in ("DaskCluster", "DaskWorkerGroup")}
        self._trouble = ""
        try:
            with _told():
                given = {"namespace": namespace, "kubeconfig": os.environ.get("KUBECONFIG")}
                self._api: Any = kr8s.api(**{key: value for key, value in given.items() if value})
                self._api.timeout = ANSWER_SECONDS
                self.namespace: str = self._api.namespace
            for pool in pools:
                self._check(pool)
            self._belong()
        # The last is no kubeconfig and no service account.
        except (OSError, RunFailedError, ValueError) as error:
            raise WorkflowError(
                f"cluster {cluster} of Kubernetes cannot be used ({error}); apply deploy/kubernetes first, and run "
                "with its service account or a kubeconfig of yours"
            ) from error

    @property
    def logs(self) -> str:
        """The command that shows them."""
        shown = f"`kubectl logs -n {self.namespace} -l {_WORKERS.format(self._cluster)} --prefix`"
        return f"{shown} ({self._trouble})" if self._trouble else shown

    def start(self, pool: str, count: int) -> None:
        """Raise the count of a group, and wait until the operator has seen to it; raises `RunFailedError` if not."""
        wanted = len(self._deployments(pool)) + count
        self._scale(pool, wanted)
        end = time.monotonic() + OPERATOR_SECONDS
        while (there := len(self._deployments(pool))) < wanted:
            if time.monotonic() > end:
                # Else it might make them long after nobody expects them.
                self._scale(pool, there)
                raise RunFailedError(
                    f"the Dask operator made {there} of {wanted} workers of {self._group(pool)} in "
                    f"{OPERATOR_SECONDS:.0f} s; is it running? (kubectl get pods -A -l app.kubernetes.io/name="
                    "dask-kubernetes-operator)"
                )
            time.sleep(POLL_SECONDS)

    def members(self) -> list[Member]:
        """Workers as their Deployments say. One whose pod cannot come up is taken away."""
        found = {name: pool for pool in self._pools for name in self._deployments(pool)}
        pods = self._pods()
        broken = {name: reason for name, reason in _broken(pods).items() if name in found}
        if broken:
            self._trouble = f"the last: {next(iter(broken.values()))}"
            for name, reason in broken.items():
                log.warning("worker %s does not come up: %s", name, reason)
            self._take_away([(found.pop(name), name) for name in broken])
        running = {_owner(pod) for pod in pods if _is_ready(pod)}
        return [Member(f"{pool}-{name}", pool, name in running) for name, pool in found.items()]

    def stop(self, names: Collection[str], *, broken: bool = False) -> None:
        """Take away workers. On which node the next one runs is for Kubernetes to say; cordon one that is broken."""
        self._take_away([(pool, name) for pool, _, name in (member.partition("-") for member in names)])

    def close(self) -> None:
        """Take away all, and wait until their pods are gone, as far as that is a matter of a minute."""
        try:
            self._take_away([(pool, name) for pool in self._pools for name in self._deployments(pool)])
            for pool in self._pools:
                self._scale(pool, 0)
            end = time.monotonic() + GONE_SECONDS
            while self._pods() and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
        except (OSError, RunFailedError) as error:
            log.warning(
                "workers of cluster %s may be left (%s); see `kubectl get pods -n %s -l %s`",
                self._cluster, error, self.namespace, _WORKERS.format(self._cluster),
            )  # fmt: skip

    def _group(self, pool: str) -> str:
        return f"{self._cluster}-{pool}"

    def _take_away(self, workers: Collection[tuple[str, str]]) -> None:
        """Delete the Deployments of workers (pool and name) and lower the counts of their groups accordingly."""
        for _, name in workers:
            with _told(missing_ok=True):
                self._made(self._deployment, name).delete(propagation_policy="Background")
        for pool in Counter(pool for pool, _ in workers):
            self._scale(pool, len(self._deployments(pool)))

    def _scale(self, pool: str, count: int) -> None:
        group = self._made(self._kinds["DaskWorkerGroup"], self._group(pool))
        with _told():
            group.patch({"spec": {"replicas": count}}, subresource="scale")

    def _deployments(self, pool: str) -> list[str]:
        """Names of the Deployments of a group that are not about to go."""
        selector = f"{_WORKERS.format(self._cluster)},{_GROUP}={self._group(pool)}"
        found = self._listed(self._deployment, selector)
        return sorted(item["metadata"]["name"] for item in found if "deletionTimestamp" not in item["metadata"])

    def _pods(self) -> list[Mapping[str, Any]]:
        return self._listed(self._pod, _WORKERS.format(self._cluster))

    def _listed(self, kind: Any, selector: str) -> list[Mapping[str, Any]]:
        with _told():
            return [
                item.raw.to_dict() for item in self._api.get(kind, namespace=self.namespace, label_selector=selector)
            ]

    def _made(self, kind: Any, name: str) -> Any:
        """A stand-in of an object, by which it is changed."""
        return kind({"metadata": {"name": name, "namespace": self.namespace}}, api=self._api)

    def _check(self, pool: str) -> None:
        """A worker of a group must have what its pool says."""
        name = self._group(pool)
        group = self._made(self._kinds["DaskWorkerGroup"], name)
        with _told():
            group.refresh()
        container = group.raw.to_dict()["spec"]["worker"]["spec"]["containers"][0]
        limits = container.get("resources", {}).get("limits", {})
        said = self._pools[pool]
        for key, needed in (("cpu", said.cores), ("memory", said.memory_bytes), (GPU, said.gpus)):
            try:
                has = quantity(limits.get(key, "0"))
            except ValueError as error:
                raise WorkflowError(f"group {name} limits {key} to {limits[key]!r}, which is no quantity") from error
            if has < needed:
                raise WorkflowError(
                    f"pool {pool} needs {needed} {key} for a worker, group {name} has a limit of {limits.get(key, 0)}; "
                    "make pool and group agree"
                )

    def _belong(self) -> None:
        """Make the cluster belong to the Job of this process, if it is in one."""
        name, uid = os.environ.get(JOB), os.environ.get(JOB_UID)
        if name and uid:
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
            cluster = self._made(self._kinds["DaskCluster"], self._cluster)
            with _told():
                cluster.patch({"metadata": {"ownerReferences": [owner]}})


def quantity(text: str | int | float) -> Decimal:
    """A quantity of Kubernetes as a number; raises ValueError if it is none.

    >>> [str(quantity(text)) for text in ("4", "500m", "16Gi", "16G", 2)]
    ['4', '0.500', '17179869184', '16000000000', '2']
    """
    digits = str(text).rstrip("mkKMGTPEi")
    try:
        return Decimal(digits) * _SUFFIXES[str(text)[len(digits) :]]
    except (InvalidOperation, KeyError) as error:
        raise ValueError(f"{text!r} is no quantity") from error


@contextmanager
def _told(missing_ok: bool = False) -> Iterator[None]:
    """Errors of the Kubernetes API: OSError if it does not answer now, `RunFailedError` if it refuses."""
    import httpx
    import kr8s

    try:
        yield
    except kr8s.NotFoundError as error:
        if not missing_ok:
            raise RunFailedError(str(error)) from error
    except kr8s.ServerError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 404 and missing_ok:
            return
        kind = RunFailedError if status in (403, 404, 422) else OSError
        raise kind(f"Kubernetes answers {status}: {error}") from error
    except (kr8s.APITimeoutError, kr8s.ConnectionClosedError, httpx.HTTPError) as error:
        raise OSError(f"Kubernetes does not answer ({type(error).__name__}: {error})") from error


def _owner(pod: Mapping[str, Any]) -> str:
    """The worker that a pod is: its Deployment has the same labels, and its name is in the environment."""
    for container in pod["spec"].get("containers", []):
        for variable in container.get("env", []):
            if variable["name"] == "DASK_WORKER_NAME":
                return str(variable.get("value", ""))
    return ""


def _is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions
    )


def _broken(pods: Collection[Mapping[str, Any]]) -> dict[str, str]:
    """Why workers do not come up, by name."""
    found = {}
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses", []):
            waiting = status.get("state", {}).get("waiting", {})
            if waiting.get("reason") in BROKEN:
                found[_owner(pod)] = ": ".join(filter(None, (waiting["reason"], waiting.get("message"))))
    return found
