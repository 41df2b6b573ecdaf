"""The adopter's database behind TLS: verified by certificate and name, with SCRAM, at full size."""

import contextlib
import dataclasses
import datetime as dt
import hashlib
import ipaddress
import select
import socket
import ssl
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jobplatform import database, jobs, settings
from jobplatform.usecases import run_job
from tests.helpers import platform, reports, store

_SSL_REQUEST = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big")
_BLOCK = 256 * 1024
_HOST = "127.0.0.1"


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._folder = folder
        made = self._builder(self._name, self._key, authority=True)
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(self._pem(made.sign(self._key, hashes.SHA256())))

    def issue(self, host: str) -> tuple[Path, Path]:
        """Files of a certificate for a host, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names: list[x509.GeneralName] = [x509.DNSName(host)]
        with contextlib.suppress(ValueError):
            names = [x509.IPAddress(ipaddress.ip_address(host))]
        builder = self._builder(subject, key, authority=False).add_extension(
            x509.SubjectAlternativeName(names), critical=False
        )
        certificate, key_file = self._folder / f"{host}.pem", self._folder / f"{host}.key"
        certificate.write_bytes(self._pem(builder.sign(self._key, hashes.SHA256())))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return certificate, key_file

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, authority: bool
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=authority,
                    crl_sign=authority,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )

    @staticmethod
    def _pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(serialization.Encoding.PEM)


class TlsProxy:
    """Does for a PostgreSQL without TLS what a server with it does: takes the request, decrypts."""

    def __init__(self, server: tuple[str, int], certificate: Path, key: Path) -> None:
        self._server = server
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listener = socket.create_server((_HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self.encrypted = 0
        """Bytes that went through, unpacked, in both directions."""
        self.asked_for_scram = False
        """Whether the server began with it."""
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._stop.set()
        # Wakes the thread that accepts.
        with contextlib.suppress(OSError):
            socket.create_connection((_HOST, self.port), timeout=1).close()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._stop.is_set():
            client, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, contextlib.suppress(OSError):
            if plain.recv(8, socket.MSG_WAITALL) != _SSL_REQUEST:
                return
            plain.sendall(b"S")
            with (
                self._context.wrap_socket(plain, server_side=True) as client,
                socket.create_connection(self._server) as server,
            ):
                self._pump(client, server)

    def _pump(self, client: ssl.SSLSocket, server: socket.socket) -> None:
        while not self._stop.is_set():
            readable = (
                [client] if client.pending() else select.select([client, server], [], [], 1)[0]
            )
            for source in readable:
                block = source.recv(_BLOCK)
                if not block:
                    return
                self.encrypted += len(block)
                self.asked_for_scram |= block.startswith(b"R") and b"SCRAM-SHA-256" in block
                (server if source is client else client).sendall(block)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture
def proxies(data: settings.DataDatabaseSettings, authority: Authority) -> Iterator["Proxies"]:
    found = Proxies(data, authority)
    yield found
    found.close()


class Proxies:
    """Proxies before the database, each with a certificate for some host."""

    def __init__(self, data: settings.DataDatabaseSettings, authority: Authority) -> None:
        self._url = sa.make_url(data.url or "")
        self._authority = authority
        self._made: list[TlsProxy] = []

    def start(self, *, host: str = _HOST) -> TlsProxy:
        """One whose certificate is for a host."""
        server = (self._url.host or _HOST, self._url.port or 5432)
        self._made.append(TlsProxy(server, *self._authority.issue(host)))
        return self._made[-1]

    def address(
        self, proxy: TlsProxy, sslmode: str, ca_file: Path | None = None
    ) -> settings.DataDatabaseSettings:
        url = self._url.set(host=_HOST, port=proxy.port, query={"sslmode": sslmode})
        return settings.DataDatabaseSettings(
            url=url.render_as_string(hide_password=False), ca_file=str(ca_file) if ca_file else None
        )

    def close(self) -> None:
        for proxy in self._made:
            proxy.close()


@pytest.mark.parametrize("sslmode", ["require", "verify-full"])
def test_a_whole_export_goes_through_tls_and_scram(
    worker: run_job.Worker,
    client_id: uuid.UUID,
    data: settings.DataDatabaseSettings,
    proxies: Proxies,
    authority: Authority,
    backends: reports.Backends,
    sslmode: str,
) -> None:
    proxy = proxies.start()
    secure = proxies.address(proxy, sslmode, authority.file if sslmode == "verify-full" else None)
    worker = dataclasses.replace(worker, data=secure)
    job = platform.submit(worker, client_id, "flights")

    done = platform.run(worker, job)

    assert done.error_code is None
    assert done.result is not None
    expected = platform.copy(data, "SELECT * FROM flights ORDER BY id")
    assert done.result.sha256 == hashlib.sha256(expected).hexdigest()
    assert proxy.encrypted > len(expected)
    assert proxy.asked_for_scram
    store.until(lambda: not backends.pids(), what="no session of an export is left")


def test_a_wrong_password_is_refused_over_tls(proxies: Proxies, authority: Authority) -> None:
    address = proxies.address(proxies.start(), "verify-full", authority.file)
    url = sa.make_url(address.url or "").set(password="wrong").render_as_string(hide_password=False)

    with pytest.raises(database.DriverError) as caught:
        database.connect(address.model_copy(update={"url": url}), application_name="tests")

    assert database.sqlstate(caught.value) == "28P01"


def test_an_authority_that_did_not_sign_is_refused(proxies: Proxies, tmp_path: Path) -> None:
    other = Authority(tmp_path, "another")
    address = proxies.address(proxies.start(), "verify-full", other.file)

    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        database.connect(address, application_name="tests")


def test_the_systems_authorities_do_not_know_ours(proxies: Proxies) -> None:
    address = proxies.address(proxies.start(), "verify-full")

    with pytest.raises(ssl.SSLCertVerificationError):
        database.connect(address, application_name="tests")


@pytest.mark.parametrize("host", ["127.0.0.2", "db.example.com"])
def test_a_certificate_for_another_host_is_refused(
    proxies: Proxies, authority: Authority, host: str
) -> None:
    address = proxies.address(proxies.start(host=host), "verify-full", authority.file)

    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for '127\.0\.0\.1'"):
        database.connect(address, application_name="tests")


def test_a_server_without_tls_is_refused(
    data: settings.DataDatabaseSettings, authority: Authority
) -> None:
    url = sa.make_url(data.url or "").set(query={"sslmode": "verify-full"})
    address = settings.DataDatabaseSettings(
        url=url.render_as_string(hide_password=False), ca_file=str(authority.file)
    )

    with pytest.raises(Exception, match="SSL"):
        database.connect(address, application_name="tests")


def test_a_job_whose_database_cannot_be_trusted_is_tried_again_and_says_nothing(
    worker: run_job.Worker, client_id: uuid.UUID, proxies: Proxies, authority: Authority
) -> None:
    """A certificate that ran out is renewed by somebody; until then nothing is sent."""
    address = proxies.address(proxies.start(host="db.example.com"), "verify-full", authority.file)
    worker = dataclasses.replace(worker, data=address)
    job = platform.submit(worker, client_id, "flights")

    waiting = platform.run(worker, job)

    assert waiting.status is jobs.JobStatus.QUEUED
    assert platform.left_in(worker.bucket) == []
