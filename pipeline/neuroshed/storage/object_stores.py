"""Kinds of object stores by the scheme of their URLs: all that differs between them.

A new kind is one more entry of `KINDS`. What is said of credentials and endpoints are names of environment variables:
their values stand in no file and no message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from obstore.store import AzureStore, GCSStore, S3Store

Client = S3Store | GCSStore | AzureStore


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object store."""

    client: type[Any]
    """Its class in obstore, which takes credentials from the environment itself."""
    bucket: str
    """What it calls a bucket."""
    endpoints: Mapping[str, dict[str, Any]]
    """Environment variables that name another server than the vendor's, the first that is set, with the settings that
    go with it."""
    endpoint_setting: str
    no_bucket: str
    """The code of its answer if there is no such bucket."""
    last_resort: tuple[str, ...]
    """Of an error: no credentials were given, and the machine that this runs on was asked for some."""
    how_to_sign: str
    credentials: str
    where: str

    def endpoint(self) -> str | None:
        """The environment variable that names the server; None if it is the vendor's."""
        return next((name for name in self.endpoints if os.environ.get(name)), None)

    def settings(self, variable: str, server: str) -> dict[str, Any]:
        """Of a client of the server that an environment variable names."""
        return {self.endpoint_setting: server, **self.endpoints[variable]}


# Other stores than Amazon's often know no bucket by its host's name.
_BY_PATH = {"virtual_hosted_style_request": False}
KINDS: dict[str, Kind] = {
    "s3": Kind(
        client=S3Store,
        bucket="bucket",
        endpoints={"AWS_ENDPOINT_URL_S3": _BY_PATH, "AWS_ENDPOINT_URL": _BY_PATH, "AWS_ENDPOINT": _BY_PATH},
        endpoint_setting="endpoint",
        no_bucket="NoSuchBucket",
        last_resort=("/latest/api/token", "/latest/meta-data/"),
        how_to_sign="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
        credentials="AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        where="AWS_ENDPOINT_URL, AWS_REGION",
    ),
    "gs": Kind(
        client=GCSStore,
        bucket="bucket",
        # As Google's own libraries do, nothing is signed for an emulator.
        endpoints={"GOOGLE_BASE_URL": {}, "STORAGE_EMULATOR_HOST": {"skip_signature": True}},
        endpoint_setting="base_url",
        no_bucket="NoSuchBucket",
        last_resort=("/computeMetadata/",),
        how_to_sign="set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true for a public "
        "bucket",
        credentials="GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
        where="GOOGLE_BASE_URL, STORAGE_EMULATOR_HOST",
    ),
    "az": Kind(
        client=AzureStore,
        bucket="container",
        endpoints={"AZURE_STORAGE_ENDPOINT": {}, "AZURE_ENDPOINT": {}},
        endpoint_setting="endpoint",
        no_bucket="ContainerNotFound",
        last_resort=("/metadata/identity/", "Account must be specified"),
        how_to_sign="set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for a "
        "public container",
        credentials="AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
        where="AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT, AZURE_STORAGE_USE_EMULATOR",
    ),
}


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket or container of a store.

    >>> str(Bucket("gs", "volumes"))
    'gs://volumes'
    """

    scheme: str
    name: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.name}"

    @property
    def kind(self) -> Kind:
        """The kind of its store."""
        return KINDS[self.scheme]


def is_missing(bucket: Bucket, error: Exception) -> bool:
    """Whether the store says that there is no such bucket."""
    return bucket.kind.no_bucket in str(error)


def is_full(error: Exception) -> bool:
    """Whether the store says that it, or somebody's share of it, is full."""
    status, code = _answer(error)
    return status == "507" or re.search(r"Full|Quota|CapacityExceeded", code) is not None


def is_beyond_end(error: Exception) -> bool:
    """Whether the store says that an object has none of the bytes that were asked for."""
    return _answer(error)[0] == "416"


def advice(bucket: Bucket, place: str, error: Exception) -> str:
    """What a store would not do with a place, why, and the remedy, in one line without secrets."""
    kind, text = bucket.kind, str(error)
    if is_missing(bucket, error):
        where = kind.where.partition(",")[0]
        return f"{place}: there is no {kind.bucket} {bucket.name}; create it, or check its name and {where}"
    if any(mark in text for mark in kind.last_resort):
        return f"{place}: no credentials were found; {kind.how_to_sign}"
    if re.search(r"(Content-Length|ETag) Header missing", text):
        # https://cloud.google.com/storage/docs/transcoding
        return (
            f"{place}: the store does not say how long it is, as Google's where an object is stored packed "
            "(Content-Encoding: gzip); copy it unpacked"
        )
    status, code = _answer(error)
    answer = f"{status} {code}".strip()
    if is_full(error):
        return f"{place}: the store is full ({answer}); free space in it or have its quota raised"
    if status == "429" or code in ("SlowDown", "ServerBusy"):
        tried = re.search(r"after (\d+) retries", text)
        also = f" after {tried[1]} retries too" if tried else ""
        return f"{place}: the store asks to slow down{also} ({answer}); use fewer workers, or try again later"
    if status in ("401", "403"):
        return (
            f"{place}: the store refuses these credentials ({answer}); check {kind.credentials} and what they are "
            "allowed to do"
        )
    return f"{place}: the store does not do its work ({_reason(text)}); check {kind.where} and the network"


def _answer(error: Exception) -> tuple[str, str]:
    """The status of a store's answer and its code, as far as an error tells."""
    text = str(error)
    status, code = re.search(r"status code: (\d{3})", text), re.search(r"<Code>(\w+)</Code>", text)
    return status[1] if status else "", code[1] if code else ""


def _reason(text: str) -> str:
    """The first line of an error, without what follows `?` in URLs: signatures may stand there.

    >>> _reason("Error performing GET http://host/a?sig=x in 1 ms: 500" + chr(10) + "more")
    'Error performing GET http://host/a in 1 ms: 500'
    """
    return re.sub(r"\?\S*", "", text.splitlines()[0])
