"""TLS to both servers: the right certificate is taken, any other is told and waited for."""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import psycopg
import pytest
import trustme
from click.testing import CliRunner
from redis.backoff import NoBackoff
from redis.retry import Retry
from tests.support.cluster import one_node
from tests.support.sentinels import SERVICE, lone_sentinel
from tests.support.tls import TlsFront
from tests.support.workers import RunningWorker, WorkerProcess

from writebehind import AsyncWriteBehind, RedisUnavailable, WriteBehind
from writebehind_worker.cli import cli
from writebehind_worker.redis_server import RedisLink
from writebehind_worker.testing.wait import wait_until

SECRET = "s3cret/:@?"
HOST = "127.0.0.1"
NEVER = Retry(NoBackoff(), 0)


@dataclass(frozen=True)
class Files:
    """Paths of PEM files."""

    ca: Path
    other_ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Authority:
    """Certificates, made here."""

    ca: trustme.CA
    files: Files

    def server(self, host: str = HOST, *, expired: bool = False, mutual: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["postgresql"])
        past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        ends = past if expired else None
        self.ca.issue_cert(host, not_before=past - dt.timedelta(days=1), not_after=ends).configure_cert(
            context
        )
        if mutual:
            context.verify_mode = ssl.CERT_REQUIRED
            self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    files = Files(*(folder / name for name in ("ca.pem", "other.pem", "client.pem", "client.key")))
    ca.cert_pem.write_to_path(files.ca)
    trustme.CA().cert_pem.write_to_path(files.other_ca)
    client = ca.issue_cert("worker@writebehind.example")
    client.private_key_pem.write_to_path(files.key)
    files.key.chmod(0o600)
    for blob in client.cert_chain_pems:
        blob.write_to_path(files.certificate, append=True)
    return Authority(ca, files)


@dataclass
class Fronts:
    """A front of each server, and the URLs that lead there."""

    redis: TlsFront
    postgres: TlsFront
    database: str
    user: str

    def redis_url(self, ca: Path, **options: object) -> str:
        query = urlencode({"ssl_ca_certs": ca, "ssl_check_hostname": True, **options})
        return f"rediss://{HOST}:{self.redis.port}/0?{query}"

    def postgres_url(self, ca: Path, **options: object) -> str:
        query = urlencode({"sslmode": "verify-full", "sslrootcert": ca, **options})
        return f"postgresql://{self.user}@{HOST}:{self.postgres.port}{self.database}?{query}"


@pytest.fixture
def fronts(authority: Authority, redis_url: str, postgres_url: str) -> Iterator[Fronts]:
    with TlsFront(redis_url, authority.server()) as one, TlsFront(postgres_url, authority.server()) as two:
        parts = urlsplit(postgres_url)
        yield Fronts(one, two, parts.path, parts.netloc.rpartition("@")[0])


def works(redis_url: str, postgres_url: str, queue: str, pg: psycopg.Connection[Any]) -> None:
    """Producer and worker, over these URLs."""
    pg.execute("CREATE TABLE users (id int PRIMARY KEY, name text)")
    with (
        RunningWorker(redis_url=redis_url, postgres_url=postgres_url, queue=queue),
        WriteBehind.from_url(redis_url, queue=queue, prefix=f"{queue}:") as wb,
    ):
        wb.put("users", 1, {"name": "Ada"}).wait(10)
    assert pg.execute("SELECT name FROM users").fetchall() == [("Ada",)]
    status = CliRunner().invoke(cli, ["status", *given(redis_url, postgres_url, queue)])
    assert status.exit_code == 0, status.output


def given(redis_url: str, postgres_url: str, queue: str) -> list[str]:
    return ["--redis-url", redis_url, "--postgres-url", postgres_url, "--queue", queue]


def test_with_the_right_authority_everything_works(
    fronts: Fronts, authority: Authority, queue: str, pg: psycopg.Connection[Any]
) -> None:
    ca = authority.files.ca
    works(fronts.redis_url(ca), fronts.postgres_url(ca), queue, pg)
    init = CliRunner().invoke(cli, ["init", "--postgres-url", fronts.postgres_url(ca)])
    assert init.exit_code == 0, init.output


def test_postgres_with_tls_from_the_first_byte(
    fronts: Fronts, authority: Authority, redis_url: str, queue: str, pg: psycopg.Connection[Any]
) -> None:
    if psycopg.pq.version() < 170000:
        pytest.skip("this libpq has no sslnegotiation")
    works(redis_url, fronts.postgres_url(authority.files.ca, sslnegotiation="direct"), queue, pg)


def test_certificates_of_clients(
    fronts: Fronts, authority: Authority, queue: str, pg: psycopg.Connection[Any]
) -> None:
    files = authority.files
    fronts.redis.context = fronts.postgres.context = authority.server(mutual=True)
    works(
        fronts.redis_url(files.ca, ssl_certfile=files.certificate, ssl_keyfile=files.key),
        fronts.postgres_url(files.ca, sslcert=files.certificate, sslkey=files.key),
        queue,
        pg,
    )


# What redis-py and libpq say of it. A Redis without TLS waits for the end of what it takes for a command.
WRONG = {
    "authority": ("unable to get local issuer certificate", "certificate verify failed"),
    "host name": ("certificate is not valid for '127.0.0.1'", "does not match host name"),
    "expired": ("certificate has expired", "certificate verify failed"),
    "plaintext": ("Timeout connecting to server", "server does not support SSL"),
    "no client certificate": ("certificate required", "certificate required"),
    "missing file": ("No such file", "nowhere.pem.* does not exist"),
}


def spoil(
    what: str, server: str, fronts: Fronts, authority: Authority, redis_url: str, postgres_url: str
) -> tuple[str, str]:
    """Both URLs, with passwords; what is wrong is so for one server."""
    front: TlsFront = getattr(fronts, server)
    ca = authority.files.ca
    if what == "authority":
        ca = authority.files.other_ca
    elif what == "missing file":
        ca = ca.with_name("nowhere.pem")
    elif what == "host name":
        front.context = authority.server("elsewhere.example")
    elif what == "expired":
        front.context = authority.server(expired=True)
    elif what == "no client certificate":
        front.context = authority.server(mutual=True)
    ports = str(front.port), str(urlsplit({"redis": redis_url, "postgres": postgres_url}[server]).port)
    if what != "plaintext":
        ports = ports[0], ports[0]
    if server == "redis":
        url = fronts.redis_url(ca, socket_timeout=1.5).replace(*ports)
        return with_password(url, "someone"), postgres_url
    url = fronts.postgres_url(ca).replace(f"//{fronts.user}@", "//").replace(*ports)
    return redis_url, with_password(url, "someone")


def with_password(url: str, user: str) -> str:
    return url.replace("://", f"://{user}:{quote(SECRET, safe='')}@", 1)


def tells_no_secret(text: str) -> None:
    assert SECRET not in text
    assert quote(SECRET, safe="") not in text
    assert "s3cret" not in text


@pytest.mark.parametrize("server", ["redis", "postgres"])
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_tls_is_waited_for_and_told(
    what: str,
    server: str,
    fronts: Fronts,
    authority: Authority,
    redis_url: str,
    postgres_url: str,
    queue: str,
) -> None:
    urls = spoil(what, server, fronts, authority, redis_url, postgres_url)
    with RunningWorker(redis_url=urls[0], postgres_url=urls[1], queue=queue) as worker:
        reason = wait_until(lambda: worker.facts[f"{server}_reason"])
        assert re.search(WRONG[what][server == "postgres"], reason)
        ready, told = worker.state.readiness()
        assert not ready
        tells_no_secret(str(told))
    status = CliRunner().invoke(cli, ["status", *given(*urls, queue)])
    assert status.exit_code == 1
    down = [line for line in status.output.splitlines() if "DOWN" in line]
    assert len(down) == 1
    assert re.search(WRONG[what][server == "postgres"], down[0])
    tells_no_secret(status.output)


@pytest.mark.parametrize("what", WRONG)
def test_a_producer_is_told_what_is_wrong_with_tls(
    what: str, fronts: Fronts, authority: Authority, redis_url: str, postgres_url: str, queue: str
) -> None:
    url, _ = spoil(what, "redis", fronts, authority, redis_url, postgres_url)
    with (
        WriteBehind.from_url(url, queue=queue, redis_options={"retry": NEVER}) as wb,
        pytest.raises(RedisUnavailable, match=WRONG[what][0]) as caught,
    ):
        wb.put("users", 1, {"name": "Ada"})
    tells_no_secret(str(caught.value))


def test_a_certificate_that_is_mended_is_taken_without_a_restart(
    fronts: Fronts, authority: Authority, queue: str
) -> None:
    ca = authority.files.ca
    fronts.redis.context = authority.server(expired=True)
    fronts.postgres.context = authority.server("elsewhere.example")
    with WorkerProcess(
        redis_url=fronts.redis_url(ca), postgres_url=fronts.postgres_url(ca), queue=queue
    ) as worker:
        assert worker.wait_for_event("redis")["up"] is False
        fronts.redis.context = authority.server()
        assert worker.wait_for_event("postgres")["up"] is False
        fronts.postgres.context = authority.server()
        worker.wait_for_event("owner")


def check_both_clients(url: str, queue: str) -> None:
    """What the one writes the other reads."""
    with WriteBehind.from_url(url, queue=queue) as wb:
        wb.put("users", 1, {"name": "Ada"})

    async def read() -> object:
        async with AsyncWriteBehind.from_url(url, queue=queue) as wb:
            return await wb.get("users", 1)

    assert asyncio.run(read()) == {"name": "Ada"}


def test_the_nodes_of_a_cluster_are_spoken_to_in_tls(authority: Authority, queue: str) -> None:
    with one_node() as node:
        port = node.connection_pool.connection_kwargs["port"]
        with TlsFront(f"redis://{HOST}:{port}", authority.server()) as front:
            node.config_set("cluster-announce-port", front.port)  # what it tells of itself
            query = urlencode({"ssl_ca_certs": authority.files.ca, "ssl_check_hostname": True})
            url = f"rediss+cluster://{HOST}:{front.port}?{query}"
            check_both_clients(url, queue)
            with RedisLink(url, queue) as link, RedisLink(url) as whole:
                assert link.client.llen(queue) == whole.client.llen(queue) == 1
            wrong = url.replace(authority.files.ca.name, authority.files.other_ca.name)
            with pytest.raises(RedisUnavailable):
                WriteBehind.from_url(wrong, queue=queue)


def test_sentinels_and_the_server_that_they_name_are_spoken_to_in_tls(
    authority: Authority, fronts: Fronts, queue: str
) -> None:
    with lone_sentinel(fronts.redis) as plain, TlsFront(plain, authority.server()) as front:
        query = urlencode({"ssl_ca_certs": authority.files.ca, "ssl_check_hostname": True})
        url = f"rediss+sentinel://{HOST}:{front.port}/{SERVICE}?{query}"
        check_both_clients(url, queue)
        with RedisLink(url, queue) as link:
            assert link.client.llen(queue) == 1
        wrong = url.replace(authority.files.ca.name, authority.files.other_ca.name)
        with (
            WriteBehind.from_url(wrong, queue=queue, redis_options={"retry": NEVER}) as wb,
            pytest.raises(RedisUnavailable),
        ):
            wb.put("users", 1, {"name": "Eve"})
