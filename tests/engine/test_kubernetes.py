"""Worker groups of Kubernetes, against a stand-in of its API with the rights of our own Role and no others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from neuroshed.engine.fleet import Member
from neuroshed.engine.pools import Pool
from neuroshed.engine.providers import kubernetes
from neuroshed.engine.providers.kubernetes import WorkerGroups, quantity
from neuroshed.errors import RunFailedError, WorkflowError

from ..kubernetes_site import NAMESPACE, Site, kubernetes_site

POOLS = {"gpu": Pool(cores=4, memory_gb=28, gpus=1), "cpu": Pool(cores=8, memory_gb=28)}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with kubernetes_site(tmp_path) as made:
        monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig))
        monkeypatch.setattr(kubernetes, "POLL_SECONDS", 0.02)
        yield made


def groups(**changed: Any) -> WorkerGroups:
    return WorkerGroups("neuroshed", changed.pop("namespace", NAMESPACE), POOLS | changed)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_groups_grow_and_shrink_by_the_workers_that_are_named(site: Site) -> None:
    provider = groups()
    provider.start("gpu", 3)
    provider.start("cpu", 1)
    members = provider.members()
    assert {(member.pool, member.running) for member in members} == {("gpu", True), ("cpu", True)}
    assert len(members) == 4
    assert site.count("neuroshed-gpu") == 3
    gone = next(member for member in members if member.pool == "gpu")
    provider.stop([gone.name])
    assert site.count("neuroshed-gpu") == 2
    assert provider.members() == [member for member in members if member != gone]
    # The operator had nothing to choose.
    time.sleep(0.2)
    assert not site.retired
    provider.start("gpu", 1)
    assert len(provider.members()) == 4
    provider.close()
    assert not site.named("deployments")
    assert not site.named("pods")
    assert (site.count("neuroshed-gpu"), site.count("neuroshed-cpu")) == (0, 0)
    assert not site.retired


def test_scales_by_the_scale_subresource_alone(site: Site) -> None:
    provider = groups()
    provider.start("gpu", 1)
    provider.close()
    patched = {request for request in site.requests if request.startswith("patch")}
    assert patched == {"patch daskworkergroups/scale neuroshed-gpu", "patch daskworkergroups/scale neuroshed-cpu"}


def test_pods_that_are_not_ready_wait(site: Site) -> None:
    site.kubelet = lambda site, deployment: site.make_pod(deployment, ready=False)
    provider = groups()
    provider.start("cpu", 2)
    assert [member.running for member in provider.members()] == [False, False]
    name = site.named("pods")[0]
    site.objects["pods", name]["status"]["conditions"][0]["status"] = "True"
    assert provider.members().count(Member(f"cpu-{name.removesuffix('-pod')}", "cpu", running=True)) == 1


def test_a_pod_that_cannot_come_up_is_taken_away_and_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    provider = groups()
    provider.start("cpu", 2)
    pod = site.objects["pods", site.named("pods")[0]]
    waiting = {"reason": "ErrImagePull", "message": "no such image"}
    pod["status"] = {"containerStatuses": [{"state": {"waiting": waiting}}]}
    assert len(provider.members()) == 1
    assert site.count("neuroshed-cpu") == 1
    assert "does not come up: ErrImagePull: no such image" in caplog.text
    assert "the last: ErrImagePull: no such image" in provider.logs
    assert not site.retired


def test_workers_of_an_earlier_coordinator_are_taken_over(site: Site) -> None:
    groups().start("cpu", 2)
    assert len(groups().members()) == 2


def test_without_an_operator_that_is_said_and_nothing_is_left_asked_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "OPERATOR_SECONDS", 0.1)
    site.operator_works = False
    with pytest.raises(RunFailedError, match=r"operator made 0 of 2 workers of neuroshed-cpu .*is it running"):
        groups().start("cpu", 2)
    assert site.count("neuroshed-cpu") == 0


def test_silence_and_refusals_are_told_apart(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = groups()
    site.answers = False
    with pytest.raises(OSError, match="Kubernetes answers 503"):
        provider.members()
    with pytest.raises(WorkflowError, match=r"cluster neuroshed of Kubernetes cannot be used .*503"):
        groups()
    site.answers = True
    monkeypatch.setattr(kubernetes, "ANSWER_SECONDS", 0.5)
    provider = groups()
    site.silent_seconds = 2
    with pytest.raises(OSError, match=r"Kubernetes does not answer .*Timeout"):
        provider.members()
    site.silent_seconds = 0
    with pytest.raises(WorkflowError, match=r"403"):
        groups(namespace="elsewhere")
    del site.objects["daskworkergroups", "neuroshed-gpu"]
    with pytest.raises(WorkflowError, match=r"neuroshed-gpu does not exist|404"):
        groups()
    monkeypatch.setenv("KUBECONFIG", str(site.kubeconfig.with_name("missing")))
    with pytest.raises(WorkflowError, match="cannot be used"):
        groups()


@pytest.mark.parametrize(
    ("pool", "told"),
    [
        (Pool(cores=9, memory_gb=28), "pool cpu needs 9 cpu for a worker, group neuroshed-cpu has a limit of 8"),
        (Pool(cores=8, memory_gb=64), "needs 64000000000 memory for a worker, group neuroshed-cpu has a limit of 29Gi"),
        (Pool(cores=8, memory_gb=28, gpus=1), "needs 1 nvidia.com/gpu for a worker, group neuroshed-cpu"),
    ],
)
def test_a_group_smaller_than_its_pool_is_refused(site: Site, pool: Pool, told: str) -> None:
    with pytest.raises(WorkflowError, match=told):
        groups(cpu=pool)


def test_the_cluster_belongs_to_the_job(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    groups()
    assert "ownerReferences" not in site.objects["daskclusters", "neuroshed"]["metadata"]
    monkeypatch.setenv(kubernetes.JOB, "neuroshed")
    monkeypatch.setenv(kubernetes.JOB_UID, "1-2-3")
    groups()
    (owner,) = site.objects["daskclusters", "neuroshed"]["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "batch/v1", "kind": "Job", "name": "neuroshed", "uid": "1-2-3"}


@pytest.mark.parametrize("text", ["", "four", "4X", "Gi", "1.2.3"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity(text)
