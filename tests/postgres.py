"""A real PostgreSQL for tests: one cluster for each test process, a database of its own for each test.

A test asks for a fixture (tests/conftest.py registers them):

- `postgres_url`: URL of a fresh empty database, dropped after the test.
- `postgres`: the `Cluster` itself; `cluster.database()` is a context manager that gives such a URL, and
  `cluster.database(fill)` a copy of a database that `fill(url)` filled once, such as with a migrated schema.

URLs are `postgresql://postgres@/name?host=/folder/of/the/socket`: nothing listens on a port. Where PostgreSQL
is not installed these tests are skipped, or fail if the environment says CI_REQUIRES_POSTGRES=1.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pwd import getpwnam

import psycopg
import pytest

REQUIRED = "CI_REQUIRES_POSTGRES"
OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "16MB",
    "autovacuum": "off",
}
START_SECONDS = 60.0
STOP_SECONDS = 20.0


class Cluster:
    """A running cluster, reached by the socket in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = (f"test_{number}" for number in itertools.count())
        self._filled: dict[Callable[[str], None], str] = {}

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def execute(self, statement: str, database: str = "postgres") -> None:
        """Run one statement outside of transactions."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            connection.execute(statement.encode())

    @contextmanager
    def database(self, fill: Callable[[str], None] | None = None) -> Iterator[str]:
        """URL of a new database: empty, or a copy of what `fill` made of an empty one."""
        name = self._create("template1" if fill is None else self._template(fill))
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _template(self, fill: Callable[[str], None]) -> str:
        if fill not in self._filled:
            name = self._create("template1")
            fill(self.url(name))
            self._filled[fill] = name
        return self._filled[fill]

    def _create(self, template: str) -> str:
        name = next(self._names)
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name


def binaries() -> Path | None:
    """The folder of `initdb` and `postgres`: Debian keeps them out of PATH. None: not installed."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    candidates = [Path(found).resolve().parent] if found else []
    candidates += reversed(folders)
    return next((folder for folder in candidates if (folder / "postgres").exists()), None)


def as_user(folder: Path) -> list[str]:
    """The beginning of a command that runs as somebody who may run PostgreSQL, which root may not.

    Also gives `folder` to that user, and has the process end with its parent.
    """
    command = ["setpriv", "--pdeathsig", "INT"]
    if os.geteuid() != 0:
        return command if shutil.which("setpriv") else []
    try:
        user = getpwnam("postgres")
    except KeyError:
        user = getpwnam("nobody")
    os.chown(folder, user.pw_uid, user.pw_gid)
    return [*command, "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"]


@contextmanager
def running(programs: Path) -> Iterator[Cluster]:
    """A new cluster in a temporary folder; both are gone afterwards."""
    # Not below pytest's own folders: those are closed to other users, and a socket's path must be short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        user = as_user(folder)
        data = str(folder / "data")
        initdb = [str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        locale = ["-E", "UTF8", "--locale", "C"]
        done = subprocess.run([*user, *initdb, *locale], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        options = [f"--{name}={value}" for name, value in OPTIONS.items()]
        server = [str(programs / "postgres"), "-D", data, "-k", str(folder), *options]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([*user, *server], cwd=folder, stdout=log, stderr=log)
        try:
            cluster = Cluster(folder)
            _wait(cluster, process)
            yield cluster
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder)


def _wait(cluster: Cluster, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return cluster.execute("SELECT 1")
        except psycopg.OperationalError:
            log = (cluster.folder / "log").read_text()
            assert process.poll() is None, f"PostgreSQL ended: {log}"
            assert time.monotonic() < end, f"PostgreSQL does not answer: {log}"
            time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)  # ends sessions, then itself
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGQUIT)
        process.wait(STOP_SECONDS)


def programs_or_skip() -> Path:
    """The folder of the programs; where there is none the test is skipped, or fails if it must not be."""
    programs = binaries()
    if programs is not None:
        return programs
    lack = "PostgreSQL is not installed (on Debian: apt-get install postgresql)"
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(f"{lack}, and {REQUIRED}=1 asks for it")
    pytest.skip(lack)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """The cluster of this test process."""
    with running(programs_or_skip()) as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres: Cluster) -> Iterator[str]:
    """URL of a fresh empty database."""
    with postgres.database() as url:
        yield url
