"""`writebehind healthcheck`: asks the worker on this host how it is, for containers' and other probes."""

from __future__ import annotations

import http.client
import json
import sys

import click

from .config import Config
from .errors import ConfigError
from .options import config_options

_TIMEOUT_S = 3.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what is listened on, and how to get there


@click.command()
@click.option("--ready", is_flag=True, help="Ask /readyz: both servers answer, and it owns or stands by.")
@config_options("metrics_host", "metrics_port")
def healthcheck(config: Config, ready: bool) -> None:
    """Ask the worker on this host whether it makes progress. Exit code 1 if it does not, or is not there."""
    if not config.metrics_port:
        raise ConfigError("the worker has no endpoint: --metrics-port is 0", "give it a port")
    path = "/readyz" if ready else "/healthz"
    host = _EVERY_ADDRESS.get(config.metrics_host, config.metrics_host)
    try:
        status, answer = _ask(host, config.metrics_port, path)
    except (OSError, http.client.HTTPException) as error:
        click.echo(f"No worker answers on {host}:{config.metrics_port}: {error}", err=True)
        sys.exit(1)
    click.echo(answer, err=status != 200)
    sys.exit(0 if status == 200 else 1)


def _ask(host: str, port: int, path: str) -> tuple[int, str]:
    """The status, and in words for people what is wrong."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode(errors="replace").strip()
    finally:
        connection.close()
    try:
        reasons = json.loads(body).get("reasons")
    except (ValueError, AttributeError):
        return response.status, body
    return response.status, "; ".join(reasons) if reasons else body
