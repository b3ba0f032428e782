"""`deploy/kubernetes` against the schemas of Kubernetes and of the Dask operator, which refuse unknown fields, and
against what the program itself takes.
"""

from __future__ import annotations

import copy
import shutil
import subprocess
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from neuroshed.cli import main
from neuroshed.engine.providers.kubernetes import GPU, JOB, JOB_UID, quantity
from neuroshed.workflow.config import load

from ..kubernetes_site import DEPLOY, Object, manifests

VERSION = "1.33"
OVERLAYS = {"objects": DEPLOY, "volume": DEPLOY.with_name("kubernetes-shared-volume")}
FILES = sorted(path.name for path in DEPLOY.glob("*.yaml") if path.name not in ("images.yaml", "kustomization.yaml"))
OWN = "kubernetes.dask.org/v1"


def strict(schema: Any) -> Any:
    """A schema of a custom resource as an API server applies it with strict field validation."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    if made.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
    return made


def crd(kind: str) -> Any:
    """The schema of a kind of the Dask operator, as it ships."""
    folder = resources.files("dask_kubernetes") / "operator/deployment/helm/dask-kubernetes-operator/crds"
    definition = yaml.safe_load((folder / f"{kind.lower()}.yaml").read_text())
    (version,) = (item for item in definition["spec"]["versions"] if item["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {"const": OWN}, "kind": {"const": kind}, "metadata": {"type": "object"}}
    return schema


def validate(item: Object) -> None:
    """Raise an error that names a field which an API server would refuse."""
    if item["apiVersion"] == OWN:
        jsonschema.validate(item, crd(item["kind"]))
        for spec in pod_specs(item):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec}
            kubernetes_validate.validate(pod, VERSION, strict=True)
    else:
        kubernetes_validate.validate(item, VERSION, strict=True)


def pod_specs(item: Object) -> list[Object]:
    """Of all pods that an object leads to."""
    spec = item["spec"]
    if item["kind"] == "Job":
        return [spec["template"]["spec"]]
    return [spec[part]["spec"] for part in ("scheduler", "worker") if part in spec]


def items(kind: str) -> list[Object]:
    return [item for file in FILES if file != "workflow.yaml" for item in manifests(file) if item["kind"] == kind]


PODS = [*items("DaskCluster"), *items("DaskWorkerGroup"), *items("Job")]
NAMES = [f"{item['kind']} {item['metadata']['name']}" for item in PODS]


@pytest.mark.parametrize("file", [name for name in FILES if name != "workflow.yaml"])
def test_every_manifest_is_valid(file: str) -> None:
    found = manifests(file)
    assert found
    for item in found:
        validate(item)
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "neuroshed"


@pytest.mark.parametrize("item", PODS, ids=NAMES)
def test_an_unknown_field_is_refused(item: Object) -> None:
    wrong = copy.deepcopy(item)
    pod_specs(wrong)[0]["containers"][0]["resource"] = {}
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match="resource"):
        validate(wrong)
    wrong = copy.deepcopy(item)
    wrong["spec"]["workers"] = 3
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError), match="workers"):
        validate(wrong)


@pytest.mark.parametrize("item", PODS, ids=NAMES)
def test_pods_may_do_no_more_than_they_need(item: Object) -> None:
    for spec in pod_specs(item):
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"]
        if item["kind"] != "Job":
            # Only the coordinator talks to Kubernetes.
            assert spec["automountServiceAccountToken"] is False
            assert spec["serviceAccountName"] == "neuroshed-worker"


def test_pools_and_groups_agree() -> None:
    cluster = load(str(DEPLOY / "workflow.yaml")).cluster
    groups = {item["metadata"]["name"]: item for item in items("DaskWorkerGroup")}
    assert groups.keys() == {f"{cluster.name}-{pool}" for pool in cluster.pools}
    for name, pool in cluster.pools.items():
        item = groups[f"{cluster.name}-{name}"]
        assert item["spec"]["cluster"] == cluster.name
        assert item["spec"]["worker"]["replicas"] == 0
        (container,) = item["spec"]["worker"]["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert limits == container["resources"]["requests"]
        assert quantity(limits["cpu"]) == pool.cores
        assert quantity(limits["memory"]) >= 1.1 * pool.memory_bytes
        assert quantity(limits.get(GPU, 0)) == pool.gpus
        wanted = {f"--name={name}-$(DASK_WORKER_NAME)", f"--cores={pool.cores}", f"--gpus={pool.gpus}"}
        assert wanted | {f"--memory-gb={pool.memory_gb:g}"} <= set(container["args"])


def test_the_role_names_what_there_is() -> None:
    (role,) = items("Role")
    rules = {(rule["resources"][0]): rule for rule in role["rules"]}
    groups = sorted(item["metadata"]["name"] for item in items("DaskWorkerGroup"))
    assert sorted(rules["daskworkergroups"]["resourceNames"]) == groups
    assert sorted(rules["daskworkergroups/scale"]["resourceNames"]) == groups
    assert rules["daskclusters"]["resourceNames"] == [item["metadata"]["name"] for item in items("DaskCluster")]
    assert not any("*" in values for rule in role["rules"] for values in rule.values())


@pytest.mark.parametrize("item", PODS, ids=NAMES)
def test_the_program_knows_the_commands_of_the_pods(item: Object) -> None:
    """Every option in the manifests is one of the command."""
    for spec in pod_specs(item):
        program, *words = spec["containers"][0]["args"]
        assert program == "neuroshed"
        if words[0] == "--version":
            continue
        options = {option for parameter in main.commands[words[0]].params for option in parameter.opts}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options
        assert CliRunner().invoke(main, [words[0], "--help"]).exit_code == 0


def test_the_coordinator_knows_its_job() -> None:
    (job,) = items("Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    variables = {item["name"]: item for item in container["env"]}
    assert variables[JOB]["value"] == job["metadata"]["name"]
    path = variables[JOB_UID]["valueFrom"]["fieldRef"]["fieldPath"]
    assert path == "metadata.labels['batch.kubernetes.io/controller-uid']"
    # Each budget and rule is for pods that exist.
    labels = job["spec"]["template"]["metadata"]["labels"]
    (budget,) = (item for item in items("PodDisruptionBudget") if "coordinator" in item["metadata"]["name"])
    assert budget["spec"]["selector"]["matchLabels"] == labels


@pytest.mark.system
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kustomize_makes_valid_manifests(overlay: str, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.fail("kubectl is missing: apt-get install kubernetes-client")
    # Nothing may be written beside the manifests.
    command = ["kubectl", "kustomize", str(OVERLAYS[overlay])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    found = [item for item in yaml.safe_load_all(done.stdout) if item]
    for item in found:
        validate(item)
    kinds = [item["kind"] for item in found]
    assert kinds.count("DaskWorkerGroup") == 3
    assert "ConfigMap" in kinds
    pods = [item for item in found if item["kind"] in ("DaskCluster", "DaskWorkerGroup", "Job")]
    images = {container["image"] for item in pods for spec in pod_specs(item) for container in spec["containers"]}
    assert {image.rpartition("/")[0] for image in images} == {"registry.example.org"}
    mounted = [spec for item in pods for spec in pod_specs(item) if "neuroshed-data" in str(spec.get("volumes"))]
    assert len(mounted) == (4 if overlay == "volume" else 0)
    (job,) = (item for item in found if item["kind"] == "Job")
    names = {item["metadata"]["name"] for item in found if item["kind"] == "ConfigMap"}
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert {volume["configMap"]["name"] for volume in volumes if "configMap" in volume} == names
