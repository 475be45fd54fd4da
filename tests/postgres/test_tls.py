"""TLS between a host and its store: what proves the server, what is refused, and that no message holds a password.

The development server knows no TLS, so PgBouncer ends it here: it answers PostgreSQL's own request for it, and for the
driver it is the server.
"""

from __future__ import annotations

import shutil
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from pgbouncer import BINARY, Pgbouncer
from postgres_databases import PostgresDatabases, opened

from atoll.actors.errors import StoreUnavailable
from atoll.persistence.postgres_migrate import migrate

OPENSSL = shutil.which("openssl")
PASSWORD = "open-sesame-7"

needs_tls = pytest.mark.skipif(
    BINARY is None or OPENSSL is None,
    reason="there is no pgbouncer or no openssl here: apt-get install pgbouncer openssl",
)


def openssl(*arguments: str) -> None:
    assert OPENSSL is not None
    subprocess.run([OPENSSL, *arguments], check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    """`<name>.crt` and `<name>.key` of a certificate authority of one's own."""
    files = "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")
    key = "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"
    openssl("req", "-x509", *key, *files, "-days", "2", "-subj", f"/CN={name}")


def server_certificate(folder: Path, signed_by: str) -> None:
    """`server.crt` and `server.key`, for 127.0.0.1 and no other name."""
    key = "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"
    request, extensions = folder / "request", folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    openssl("req", *key, "-keyout", str(folder / "server.key"), "-out", str(request), "-subj", "/CN=store")
    ca = "-CA", str(folder / f"{signed_by}.crt"), "-CAkey", str(folder / f"{signed_by}.key"), "-CAcreateserial"
    ends = "-days", "2", "-extfile", str(extensions), "-out", str(folder / "server.crt")
    openssl("x509", "-req", "-in", str(request), *ca, *ends)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    authority(folder, "ours")
    authority(folder, "theirs")
    server_certificate(folder, "ours")
    return folder


@pytest.fixture(scope="module")
def guarded(postgres_databases: PostgresDatabases, certificates: Path) -> Iterator[Pgbouncer]:
    """Lets nobody in without TLS and the password."""
    with Pgbouncer.start(postgres_databases.server, "session", certificates=certificates, password=PASSWORD) as guarded:
        yield guarded


def url(
    guarded: Pgbouncer, postgres_url: str, options: str, *, host: str = "127.0.0.1", password: str = PASSWORD
) -> str:
    database = postgres_url.rpartition("/")[2]
    return f"postgresql://atoll_runtime:{password}@{host}:{guarded.port}/{database}?pooler=session&{options}"


async def refusal(url: str) -> str:
    """The message of a store that cannot be opened; fails when anything that it says holds the password."""
    with pytest.raises(StoreUnavailable) as raised:
        await opened(url)
    assert PASSWORD not in "".join(traceback.format_exception(raised.value))
    return str(raised.value)


@needs_tls
@pytest.mark.parametrize("sslmode", ["require", "verify-ca", "verify-full"])
async def test_a_server_that_demands_tls_is_used_with_it(
    guarded: Pgbouncer, postgres_url: str, certificates: Path, sslmode: str
) -> None:
    """R04: with the authority that signed its certificate."""
    store = await opened(url(guarded, postgres_url, f"sslmode={sslmode}&sslrootcert={certificates / 'ours.crt'}"))
    host = await store.register_host("a:1", "n", None)
    await store.append(host, 1, b"one")
    assert [row.content for row in await store.read_log(host)] == [b"one"]
    await store.close()


@needs_tls
@pytest.mark.parametrize("sslmode", ["verify-ca", "verify-full"])
async def test_a_certificate_of_another_authority_is_refused(
    guarded: Pgbouncer, postgres_url: str, certificates: Path, sslmode: str
) -> None:
    """R04: whoever stands in between cannot pass as the server; the message says what to check."""
    said = await refusal(url(guarded, postgres_url, f"sslmode={sslmode}&sslrootcert={certificates / 'theirs.crt'}"))
    assert "check sslrootcert" in said


@needs_tls
async def test_a_certificate_of_another_name_is_refused(
    guarded: Pgbouncer, postgres_url: str, certificates: Path
) -> None:
    """R04: verify-full also compares the name that the URL has."""
    options = f"sslrootcert={certificates / 'ours.crt'}"
    said = await refusal(url(guarded, postgres_url, f"sslmode=verify-full&{options}", host="localhost"))
    assert "as its certificate does" in said
    await (await opened(url(guarded, postgres_url, f"sslmode=verify-ca&{options}", host="localhost"))).close()


@needs_tls
async def test_without_tls_or_with_another_password_nobody_gets_in(
    guarded: Pgbouncer, postgres_url: str, certificates: Path
) -> None:
    """R04: and neither password stands in what is said."""
    assert "SSL required" in await refusal(url(guarded, postgres_url, "sslmode=disable"))
    options = f"sslmode=verify-full&sslrootcert={certificates / 'ours.crt'}"
    wrong = url(guarded, postgres_url, options, password=PASSWORD + "-not")
    assert "authentication failed" in await refusal(wrong)


@pytest.mark.skipif(OPENSSL is None, reason="there is no openssl here: apt-get install openssl")
@pytest.mark.parametrize("sslmode", ["require", "verify-full"])
async def test_a_server_without_tls_is_refused_when_it_is_demanded(
    postgres_url: str, certificates: Path, sslmode: str
) -> None:
    """R04: nothing goes over the wire in clear text, and the message says what is wrong."""
    demanding = postgres_url.replace("atoll_runtime@", f"atoll_runtime:{PASSWORD}@") + f"?sslmode={sslmode}"
    assert "demands TLS" in await refusal(f"{demanding}&sslrootcert={certificates / 'ours.crt'}")
    assert "cannot be read (sslrootcert" in await refusal(f"{demanding}&sslrootcert={certificates / 'none.crt'}")


async def test_the_owners_work_says_the_same(postgres_url: str) -> None:
    """R04: `atoll store migrate` is one of those who connect."""
    with pytest.raises(StoreUnavailable, match="demands TLS") as raised:
        await migrate(postgres_url.replace("atoll_runtime@", f"atoll_owner:{PASSWORD}@") + "?sslmode=require")
    assert PASSWORD not in "".join(traceback.format_exception(raised.value))
