"""A connect with verified TLS (as to RDS), against a plain one, both with SCRAM to the same server.

The server is Debian's, because the one in the wheel has no TLS; its certificate is signed by an
authority made here. Without a PostgreSQL with TLS on the machine nothing is measured.
"""

import datetime as dt
import functools
import ipaddress
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from infra.local.errors import tail
from infra.local.processes import free_port, wait_until
from jobplatform import database
from jobplatform.settings import DatabaseSettings
from tests.benchmarks.bench import Bench
from tests.benchmarks.measuring import Goal, NotMeasured, Result, interleave

_CONNECTS = 100


def run(bench: Bench) -> Iterator[Result]:
    binaries = _binaries()
    if binaries is None:
        raise NotMeasured(
            "there is no PostgreSQL server with TLS on the PATH or in /usr/lib/postgresql"
            " (on Debian and Ubuntu: apt-get install postgresql)"
        )
    with _server(binaries, bench.folder, bench.told) as (url, authority):
        plain = DatabaseSettings(url=f"{url}?sslmode=disable")
        verified = DatabaseSettings(url=f"{url}?sslmode=verify-full", ca_file=str(authority))
        samples = interleave(
            {
                "verified TLS": functools.partial(_connects, verified),
                "plain": functools.partial(_connects, plain),
            },
            rounds=bench.rounds(9),
            told=bench.told,
        )
    yield samples.result("connect, verified TLS / plain", "verified TLS", "plain", Goal(2.5))


def _connects(address: DatabaseSettings) -> float:
    """Seconds a connect."""
    began = time.perf_counter()
    for _ in range(_CONNECTS):
        database.connect(address, application_name="benchmark").close()
    return (time.perf_counter() - began) / _CONNECTS


def _binaries() -> Path | None:
    found = shutil.which("postgres")
    if found is not None:
        return Path(found).parent
    installed = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    newest = max(installed, key=lambda path: float(path.parts[-3]), default=None)
    return newest.parent if newest else None


@contextmanager
def _server(
    binaries: Path, folder: Path, told: Callable[[str], None]
) -> Iterator[tuple[str, Path]]:
    told(f"starting a PostgreSQL with TLS ({binaries})")
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    # Among the temporary files, which another user can reach.
    home = Path(tempfile.mkdtemp(prefix="jobplatform-tls-"))
    password = secrets.token_urlsafe(16)
    (home / "password").write_text(password)
    _make_certificates(home)
    if user:
        for path in (home, *home.iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
    environ = {"PATH": os.defpath, "LC_ALL": "C"}
    try:
        subprocess.run(
            [
                *(binaries / "initdb", "-D", home / "data", "--username", "platform"),
                *("--auth", "scram-sha-256", "--pwfile", home / "password", "--no-sync"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=home,
            env=environ,
            **as_user,  # type: ignore[call-overload]
        )
        port = free_port()
        options = {
            "port": str(port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "ssl": "on",
            "ssl_cert_file": str(home / "server.pem"),
            "ssl_key_file": str(home / "server.key"),
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        log = home / "postgres.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", home / "data", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=home,
                env=environ,
                **as_user,  # type: ignore[call-overload]
            )
        try:
            wait_until(
                lambda: "ready to accept connections" in tail(log, 50),
                process=process,
                what="PostgreSQL with TLS",
                log=log,
                seconds=60,
            )
            yield f"postgresql://platform:{password}@127.0.0.1:{port}/postgres", home / "ca.pem"
        finally:
            process.send_signal(2)
            process.wait(30)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _make_certificates(home: Path) -> None:
    """An authority (ca.pem) and a server's certificate for localhost, of the kind that RDS has."""
    authority_key = rsa.generate_private_key(65537, 2048)
    authority_name = _name("Benchmark authority")
    authority = _sign(authority_name, authority_name, authority_key, authority_key, _authority_only)
    key = rsa.generate_private_key(65537, 2048)
    server = _sign(_name("localhost"), authority_name, key, authority_key, _for_localhost)
    (home / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (home / "server.pem").write_bytes(server.public_bytes(serialization.Encoding.PEM))
    (home / "server.key").touch(mode=0o600)
    (home / "server.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _authority_only(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)


def _for_localhost(builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return builder.add_extension(x509.SubjectAlternativeName(names), critical=False)


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPrivateKey,
    issuer_key: rsa.RSAPrivateKey,
    extend: Callable[[x509.CertificateBuilder], x509.CertificateBuilder],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )
    return extend(builder).sign(issuer_key, hashes.SHA256())
