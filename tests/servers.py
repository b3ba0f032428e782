"""Object stores on loopback: Google's XML API and Azure's Blob API, as far as runs use them.

Written after https://cloud.google.com/storage/docs/xml-api/reference-methods (preconditions:
https://cloud.google.com/storage/docs/request-preconditions) and
https://learn.microsoft.com/en-us/rest/api/storageservices/blob-service-rest-api. Amazon's is moto. Every server can be
told to refuse requests.
"""

from __future__ import annotations

import base64
import hmac
import itertools
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import BytesParser
from email.utils import formatdate
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from werkzeug.http import http_date
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

PAGE = 100
"""Entries that a listing gives at once."""


@dataclass
class Faults:
    """What a server refuses."""

    refuse: Callable[[Request], Response | None] = lambda request: None

    @contextmanager
    def refusing(self, number: int, status: int, code: str, methods: str, where: str = "/") -> Iterator[list[str]]:
        """While this lasts, the first requests with these methods are answered so; gives what was asked meanwhile.

        Others than of paths with `where` in them are not counted.
        """
        left, asked = itertools.count(), list[str]()

        def refuse(request: Request) -> Response | None:
            if request.method not in methods.split() or where not in request.path:
                return None
            asked.append(f"{request.method} {request.path}")
            return told(status, code) if next(left) < number else None

        self.refuse = refuse
        try:
            yield asked
        finally:
            self.refuse = lambda request: None


@dataclass(frozen=True)
class Served:
    """A server that runs."""

    address: str
    faults: Faults
    create: Callable[[str], None]
    """Make a bucket."""


@contextmanager
def serving(application: Callable[..., object], create: Callable[[str, str], None]) -> Iterator[Served]:
    """A WSGI application on a free port of this machine; `create` makes a bucket at its address."""

    class Silent(WSGIRequestHandler):
        def log(self, *args: object) -> None:
            """Nothing."""

    faults = Faults()

    def tried(environ: dict, start_response: Callable) -> object:
        refusal = faults.refuse(Request(environ))
        return (application if refusal is None else refusal)(environ, start_response)

    server = make_server("127.0.0.1", 0, tried, threaded=True, request_handler=Silent)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield Served(address, faults, lambda name: create(address, name))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Blob:
    """A version of an object."""

    data: bytes
    generation: int
    changed: datetime

    @property
    def tag(self) -> str:
        return f'"{self.generation:x}"'


class Objects:
    """Buckets with objects, and uploads in parts that are not finished."""

    unmet: str
    """The code of the answer if a condition does not hold."""

    def __init__(self, credentials: str) -> None:
        self.credentials = credentials
        self.buckets: dict[str, dict[str, Blob]] = {}
        self.parts: dict[str, dict[str, bytes]] = {}
        self.lock = threading.RLock()
        self._generations = itertools.count(1)

    def create(self, address: str, bucket: str) -> None:
        self.buckets[bucket] = {}

    def put(self, bucket: str, key: str, data: bytes) -> Blob:
        blob = Blob(data, next(self._generations), datetime.now(UTC))
        self.buckets[bucket][key] = blob
        return blob

    def listed(self, bucket: str, prefix: str, delimiter: str, after: str) -> tuple[list[str], list[str], str]:
        """Keys and common prefixes of a page, and where the next begins."""
        found: dict[str, bool] = {}
        for key in sorted(self.buckets[bucket]):
            if key.startswith(prefix):
                head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key[len(prefix) :], "", "")
                found.setdefault(prefix + head + cut, bool(cut))
        rest = [name for name in sorted(found) if name > after]
        page = rest[:PAGE]
        following = page[-1] if len(rest) > PAGE else ""
        return [n for n in page if not found[n]], [n for n in page if found[n]], following

    def __call__(self, environ: dict, start_response: Callable) -> object:
        request = Request(environ)
        _, bucket, *rest = request.path.split("/", 2)
        key = rest[0] if rest else ""
        with self.lock:
            response = self.answer(request, bucket, key)
        return response(environ, start_response)

    def answer(self, request: Request, bucket: str, key: str) -> Response:
        raise NotImplementedError

    def content(self, request: Request, blob: Blob, headers: dict[str, str]) -> Response:
        """An object, or the range of it that is asked for, if the condition holds."""
        if request.headers.get("If-Match", blob.tag) != blob.tag:
            return told(412, self.unmet, "A condition does not hold.")
        response = Response(blob.data, headers=headers, content_type="application/octet-stream")
        response.headers["ETag"], response.headers["Last-Modified"] = blob.tag, http_date(blob.changed)
        return response.make_conditional(request, accept_ranges=True, complete_length=len(blob.data))


def told(status: int, code: str, message: str = "-") -> Response:
    """An error, in the XML that all three use."""
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(body, status, {"x-ms-error-code": code}, content_type="application/xml")


class Google(Objects):
    """Google Cloud Storage: its XML API, with generations as preconditions."""

    unmet = "PreconditionFailed"

    def answer(self, request: Request, bucket: str, key: str) -> Response:
        arguments, method = request.args, request.method
        if request.headers.get("Authorization") != f"Bearer {self.credentials}":
            return told(401, "AuthenticationRequired", "Authentication required.")
        if bucket not in self.buckets:
            return told(404, "NoSuchBucket", "The specified bucket does not exist.")
        if not key:
            return self._list(request, bucket)
        if "uploads" in arguments or "uploadId" in arguments:
            return self._upload(request, bucket, key)
        found = self.buckets[bucket].get(key)
        if method == "PUT":
            wanted = request.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (found.generation if found else 0):
                return told(412, self.unmet, "At least one of the pre-conditions you specified did not hold.")
            return self._stored(self.put(bucket, key, request.get_data()))
        if found is None:
            return told(404, "NoSuchKey", "The specified key does not exist.")
        if method == "DELETE":
            del self.buckets[bucket][key]
            return Response(status=204)
        return self.content(request, found, {"x-goog-generation": str(found.generation)})

    def _stored(self, blob: Blob) -> Response:
        return Response(headers={"ETag": blob.tag, "x-goog-generation": str(blob.generation)})

    def _list(self, request: Request, bucket: str) -> Response:
        given = request.args
        assert given["list-type"] == "2"
        after = given.get("continuation-token", "")
        keys, prefixes, following = self.listed(bucket, given.get("prefix", ""), given.get("delimiter", ""), after)
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(blob.data)}</Size><ETag>{escape(blob.tag)}</ETag>"
            f"<LastModified>{blob.changed:%Y-%m-%dT%H:%M:%S.%fZ}</LastModified></Contents>"
            for key in keys
            for blob in [self.buckets[bucket][key]]
        )
        entries += "".join(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in prefixes)
        more = f"<NextContinuationToken>{escape(following)}</NextContinuationToken>" if following else ""
        body = f"<ListBucketResult><IsTruncated>{str(bool(following)).lower()}</IsTruncated>{more}{entries}"
        return Response(f"{body}</ListBucketResult>", content_type="application/xml")

    def _upload(self, request: Request, bucket: str, key: str) -> Response:
        if "uploads" in request.args:
            upload = f"upload-{next(self._generations)}"
            self.parts[upload] = {}
            body = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return Response(body, content_type="application/xml")
        upload = request.args["uploadId"]
        if upload not in self.parts:
            return told(404, "NoSuchUpload")
        parts = self.parts[upload]
        if request.method == "PUT":
            number = request.args["partNumber"]
            parts[number] = request.get_data()
            return Response(headers={"ETag": f'"part-{number}"'})
        del self.parts[upload]
        if request.method == "DELETE":
            return Response(status=204)
        numbers = [entry.text or "" for entry in ElementTree.fromstring(request.get_data()).iter() if _ends(entry)]
        blob = self.put(bucket, key, b"".join(parts[number] for number in numbers))
        body = f"<CompleteMultipartUploadResult><ETag>{escape(blob.tag)}</ETag></CompleteMultipartUploadResult>"
        return Response(body, headers={"x-goog-generation": str(blob.generation)}, content_type="application/xml")


def _ends(entry: ElementTree.Element, name: str = "PartNumber") -> bool:
    return entry.tag.rpartition("}")[2] == name


class Azure(Objects):
    """Azure Blob Storage: block blobs, with entity tags as preconditions."""

    unmet = "ConditionNotMet"

    def answer(self, request: Request, bucket: str, key: str) -> Response:
        given, method = request.args, request.method
        if not request.headers.get("Authorization", "").startswith(f"SharedKey {self.credentials}:"):
            return told(403, "AuthenticationFailed", "Server failed to authenticate the request.")
        if bucket not in self.buckets:
            return told(404, "ContainerNotFound", "The specified container does not exist.")
        if given.get("comp") == "list":
            return self._list(request, bucket)
        if given.get("comp") == "batch":
            return self._batch(request, bucket)
        found = self.buckets[bucket].get(key)
        if method == "PUT":
            return self._put(request, bucket, key, found)
        if found is None:
            return told(404, "BlobNotFound", "The specified blob does not exist.")
        if method == "DELETE":
            del self.buckets[bucket][key]
            return Response(status=202)
        return self.content(request, found, {"x-ms-blob-type": "BlockBlob", "x-ms-version": "2023-11-03"})

    def _put(self, request: Request, bucket: str, key: str, found: Blob | None) -> Response:
        command, data = request.args.get("comp"), request.get_data()
        blocks = self.parts.setdefault(f"{bucket}/{key}", {})
        if command == "block":
            blocks[request.args["blockid"]] = data
            return Response(status=201)
        if request.headers.get("If-None-Match") == "*" and found:
            return told(409, "BlobAlreadyExists", "The specified blob already exists.")
        wanted = request.headers.get("If-Match")
        if wanted is not None and (found is None or wanted != found.tag):
            return told(412, self.unmet, "The condition specified using HTTP conditional header(s) is not met.")
        if command == "blocklist":
            names = [entry.text or "" for entry in ElementTree.fromstring(data)]
            data = b"".join(blocks[name] for name in names)
        else:
            assert request.headers["x-ms-blob-type"] == "BlockBlob"
        self.parts.pop(f"{bucket}/{key}")
        blob = self.put(bucket, key, data)
        return Response(status=201, headers={"ETag": blob.tag, "Last-Modified": http_date(blob.changed)})

    def _list(self, request: Request, bucket: str) -> Response:
        given = request.args
        after = base64.b64decode(given.get("marker", "")).decode()
        keys, prefixes, following = self.listed(bucket, given.get("prefix", ""), given.get("delimiter", ""), after)
        entries = "".join(
            f"<Blob><Name>{escape(key)}</Name><Properties><Last-Modified>{http_date(blob.changed)}</Last-Modified>"
            f"<Etag>{escape(blob.tag)}</Etag><Content-Length>{len(blob.data)}</Content-Length>"
            "<Content-Type>application/octet-stream</Content-Type><BlobType>BlockBlob</BlobType></Properties></Blob>"
            for key in keys
            for blob in [self.buckets[bucket][key]]
        )
        entries += "".join(f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in prefixes)
        marker = base64.b64encode(following.encode()).decode()
        body = f"<EnumerationResults><Blobs>{entries}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
        return Response(f"<?xml version='1.0' encoding='utf-8'?>{body}", content_type="application/xml")

    def _batch(self, request: Request, bucket: str) -> Response:
        """Deletions, each a request in a part of its own, answered in parts of the same numbers."""
        whole = b"Content-Type: " + request.headers["Content-Type"].encode() + b"\r\n\r\n" + request.get_data()
        answers = []
        for part in BytesParser().parsebytes(whole).get_payload():
            line = part.get_payload(decode=True).splitlines()[0].decode()
            inner = Request.from_values(line.split()[1], method=line.split()[0])
            existed = self.buckets[bucket].pop(inner.path.split("/", 2)[2], None) is not None
            status = "202 Accepted" if existed else "404 The specified blob does not exist."
            code = "" if existed else "x-ms-error-code: BlobNotFound\r\n"
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: {part['Content-ID']}\r\n\r\n"
                f"HTTP/1.1 {status}\r\n{code}x-ms-request-id: 1\r\n\r\n"
            )
        return Response("".join(answers) + "--batch--\r\n", 202, content_type="multipart/mixed; boundary=batch")


@contextmanager
def azurite(program: str) -> Iterator[tuple[Served, dict[str, str]]]:
    """Microsoft's emulator of Azure Blob Storage (npm: azurite), which cannot be told to refuse anything."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [program, "--silent", "--inMemoryPersistence", "--blobPort", str(port)]
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        next(line for line in process.stdout if "successfully listens" in line)
        try:
            yield (
                Served(address, Faults(), lambda name: _new_container(address, name)),
                {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": address},
            )
        finally:
            process.terminate()


def _new_container(address: str, name: str) -> None:
    """By the account and key that every emulator has."""
    account, version, date = "devstoreaccount1", "2021-08-06", formatdate(usegmt=True)
    key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    signed = (
        "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{account}/{account}/{name}\nrestype:container"
    )
    signature = base64.b64encode(hmac.digest(base64.b64decode(key), signed.encode(), "sha256")).decode()
    headers = {"x-ms-date": date, "x-ms-version": version, "Authorization": f"SharedKey {account}:{signature}"}
    url = f"{address}/{account}/{name}?restype=container"
    with urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)):
        pass
