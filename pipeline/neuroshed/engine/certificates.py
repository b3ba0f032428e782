"""Certificates for a Dask cluster of one's own: whoever has them belongs to it, nobody else gets in."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from neuroshed.errors import WorkflowError

AUTHORITY, CERTIFICATE, KEY, SETTINGS = "ca.pem", "cluster.pem", "cluster-key.pem", "dask.yaml"
_SETTINGS = """\
# For DASK_CONFIG, on every machine of the cluster and where runs are started.
distributed:
  comm:
    require-encryption: true
    tls:
      ca-file: {authority}
      scheduler: {{cert: {certificate}, key: {key}}}
      worker: {{cert: {certificate}, key: {key}}}
      client: {{cert: {certificate}, key: {key}}}
"""


def write_certificates(folder: Path, days: int, at: Path | None = None) -> dict[str, Path]:
    """Make an authority, one certificate with its key for all processes of a cluster, and Dask's settings for them.

    The authority's own key is thrown away: nobody can make another certificate that the cluster would take. Key and
    settings can be read by their owner alone. The settings say that the files are in `at`, by default where they are
    written. Returns the files by name.

    Raises `WorkflowError` if one of the files is there already, or the folder cannot be written.
    """
    files = {name: folder.resolve() / name for name in (AUTHORITY, CERTIFICATE, KEY, SETTINGS)}
    for file in files.values():
        if file.exists():
            raise WorkflowError(f"{file} is there already; choose another folder, or remove it if nothing uses it")
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = _certificate("neuroshed authority", authority_key, authority_key, None, days)
    certificate = _certificate("neuroshed cluster", key, authority_key, authority, days)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    there = at or folder.resolve()
    settings = _SETTINGS.format(authority=there / AUTHORITY, certificate=there / CERTIFICATE, key=there / KEY)
    contents = authority.public_bytes(pem), certificate.public_bytes(pem), secret, settings.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in zip(files.values(), contents, strict=True):
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as target:
                target.write(data)
    except OSError as error:
        raise WorkflowError(f"{folder} cannot be written ({error.strerror}); choose another folder") from error
    return files


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    days: int,
) -> x509.Certificate:
    """A certificate by an authority, or the authority's own if `issuer` is None."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    usage = {
        "digital_signature": issuer is not None, "key_cert_sign": issuer is None, "crl_sign": issuer is None,
        "content_commitment": False, "key_encipherment": False, "data_encipherment": False, "key_agreement": False,
        "encipher_only": False, "decipher_only": False,
    }  # fmt: skip
    constraints = x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of machines differ a little.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(constraints, critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )
    if issuer is not None:
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), critical=False)
    return builder.sign(signer, hashes.SHA256())
