"""A stand-in of a Kubernetes cluster with the Dask operator: an API server on loopback that grants what a Role grants.

The operator does what dask-kubernetes 2026.3 does (`operator/controller/controller.py`): on a change of a group's count
it makes Deployments that are missing; if there are too many it deletes some of its own choice.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy" / "kubernetes"
NAMESPACE = "neuroshed"
Object = dict[str, Any]
_PATH = re.compile(
    r"/(?:api/v1|apis/(?P<group>[^/]+)/v1)/namespaces/(?P<namespace>[^/]+)/(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[^/]+))?"
)


def manifests(name: str) -> list[Object]:
    """The objects of a file of `deploy/kubernetes`."""
    return [item for item in yaml.safe_load_all((DEPLOY / name).read_text()) if item]


def role_rules() -> list[Object]:
    """What the coordinator is granted."""
    (role,) = (item for item in manifests("rbac.yaml") if item["kind"] == "Role")
    rules: list[Object] = role["rules"]
    return rules


@dataclass
class Site:
    """What the API server holds."""

    objects: dict[tuple[str, str], Object] = field(default_factory=dict)
    """By resource and name."""
    requests: list[str] = field(default_factory=list)
    """Verb, resource and name of all that was asked, as RBAC sees it."""
    retired: list[str] = field(default_factory=list)
    """Workers that the operator chose to end."""
    operator_works: bool = True
    silent_seconds: float = 0.0
    """Before every answer."""
    answers: bool = True
    """Else every request is answered with 503."""
    kubelet: Callable[[Site, Object], None] = lambda site, deployment: site.make_pod(deployment)
    """Starts the pod of a new Deployment."""
    killer: Callable[[str], None] = lambda name: None
    """Ends the process of a pod, if it has one."""
    lock: Any = field(default_factory=threading.RLock)
    kubeconfig: Path = Path()

    def put(self, resource: str, item: Object) -> Object:
        """Add or replace an object."""
        with self.lock:
            self.objects[resource, item["metadata"]["name"]] = item
        return item

    def named(self, resource: str) -> list[str]:
        """Names of all objects of a resource."""
        with self.lock:
            return [name for kind, name in self.objects if kind == resource]

    def count(self, group: str) -> int:
        """What a worker group is scaled to."""
        return int(self.objects["daskworkergroups", group]["spec"]["worker"]["replicas"])

    def make_pod(self, deployment: Object, ready: bool = True) -> None:
        """The pod of a Deployment."""
        name = deployment["metadata"]["name"]
        template = deployment["spec"]["template"]
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        metadata = {"name": f"{name}-pod", "namespace": NAMESPACE, "labels": template["metadata"]["labels"]}
        self.put("pods", {"metadata": metadata, "spec": template["spec"], "status": {"conditions": conditions}})

    def reconcile(self, group: str) -> None:
        """What the operator does when the count of a group has changed."""
        item = self.objects["daskworkergroups", group]
        with self.lock:
            workers = [name for name in self.named("deployments") if name.startswith(f"{group}-worker-")]
            missing = self.count(group) - len(workers)
        for _ in range(missing if self.operator_works else 0):
            deployment = self.put("deployments", _deployment(item))
            self.kubelet(self, deployment)
        for name in workers[missing:] if missing < 0 else []:
            self.retired.append(name)
            self.delete(name)

    def delete(self, name: str) -> bool:
        """A Deployment, and its pod."""
        with self.lock:
            found = self.objects.pop(("deployments", name), None)
            self.objects.pop(("pods", f"{name}-pod"), None)
        self.killer(name)
        return found is not None


def _deployment(group: Object) -> Object:
    name = f"{group['metadata']['name']}-worker-{secrets.token_hex(5)}"
    cluster = group["spec"]["cluster"]
    labels = {
        "dask.org/cluster-name": cluster,
        "dask.org/workergroup-name": group["metadata"]["name"],
        "dask.org/component": "worker",
    }
    spec = json.loads(json.dumps(group["spec"]["worker"]["spec"]))
    scheduler = f"tcp://{cluster}-scheduler.{NAMESPACE}.svc.cluster.local:8786"
    for container in spec["containers"]:
        container.setdefault("env", []).extend(
            [{"name": "DASK_WORKER_NAME", "value": name}, {"name": "DASK_SCHEDULER_ADDRESS", "value": scheduler}]
        )
    metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
    return {"metadata": metadata, "spec": {"replicas": 1, "template": {"metadata": metadata, "spec": spec}}}


def _granted(group: str, resource: str, name: str | None, verb: str) -> bool:
    return any(
        group in rule["apiGroups"]
        and resource in rule["resources"]
        and verb in rule["verbs"]
        and ("resourceNames" not in rule or name in rule["resourceNames"])
        for rule in role_rules()
    )


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        time.sleep(self.site.silent_seconds)
        if not self.site.answers:
            self._answer(503, {"message": "etcd is away"})
            return
        if parts.path.strip("/") == "version":
            # Which everybody may see.
            self._answer(200, {"major": "1", "minor": "35", "gitVersion": "v1.35.0"})
            return
        found = _PATH.fullmatch(parts.path)
        if not found:
            self._answer(404, {"message": f"no path {parts.path}"})
            return
        resource, name = found["resource"], found["name"]
        verb = {"GET": "get" if name else "list", "PATCH": "patch", "DELETE": "delete"}[self.command]
        asked = resource + (f"/{found['sub']}" if found["sub"] else "")
        self.site.requests.append(f"{verb} {asked} {name or ''}".strip())
        if found["namespace"] != NAMESPACE or not _granted(found["group"] or "", asked, name, verb):
            self._answer(403, {"message": f"{verb} of {asked} {name} is forbidden"})
        elif verb == "list":
            self._answer(200, {"items": self._selected(resource, parse_qs(parts.query).get("labelSelector", [""])[0])})
        elif (resource, name) not in self.site.objects:
            self._answer(404, {"message": f"{resource} {name} not found"})
        elif verb == "delete":
            self.site.delete(name)
            self._answer(200, {"status": "Success"})
        elif verb == "patch" and found["sub"] == "scale":
            self.site.objects[resource, name]["spec"]["worker"]["replicas"] = json.loads(body)["spec"]["replicas"]
            threading.Thread(target=self.site.reconcile, args=(name,), daemon=True).start()
            self._answer(200, {"kind": "Scale", "metadata": {"name": name}, "spec": json.loads(body)["spec"]})
        else:
            if verb == "patch":
                self.site.objects[resource, name]["metadata"].update(json.loads(body)["metadata"])
            self._answer(200, self.site.objects[resource, name])

    do_GET = do_PATCH = do_DELETE = _serve

    def _selected(self, resource: str, selector: str) -> list[Object]:
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        with self.site.lock:
            items = [item for (kind, _), item in self.site.objects.items() if kind == resource]
        return [item for item in items if wanted.items() <= item["metadata"].get("labels", {}).items()]

    def _answer(self, status: int, value: Object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def kubernetes_site(folder: Path) -> Iterator[Site]:
    """A cluster to which `deploy/kubernetes` was applied, and a kubeconfig for it."""
    site = Site()
    for file, resource in (("cluster.yaml", "daskclusters"), ("pools.yaml", "daskworkergroups")):
        for item in manifests(file):
            site.put(resource, item)
    handler = type("Handler", (_Handler,), {"site": site, "protocol_version": "HTTP/1.1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    site.kubeconfig = folder / "kubeconfig"
    context = {"cluster": "here", "user": "me", "namespace": NAMESPACE}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
        "contexts": [{"name": "here", "context": context}],
        "current-context": "here",
    }
    site.kubeconfig.write_text(json.dumps(config))
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
