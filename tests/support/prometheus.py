"""A real Prometheus for a test, with the configuration and the rules of deploy/prometheus."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from writebehind_worker.testing.servers import missing
from writebehind_worker.testing.wait import wait_until

ROOT = Path(__file__).parents[2]
DEPLOYED = ROOT / "deploy" / "prometheus"
_EXAMPLE_TARGET = "worker:9753"


def program(name: str) -> str:
    """Where ``prometheus`` or ``promtool`` is; the test is skipped where it is not installed."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not on the PATH; on Debian: apt-get install prometheus prometheus-alertmanager")
    assert found is not None
    return found


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Sample:
    """Labels, and a value; of a range the last one."""

    labels: dict[str, str]
    value: float


class Prometheus:
    """Scrapes workers several times a second: ``with Prometheus(folder, port, "host:port")``.

    It runs the deployed rules; but alerts begin at once, and a minute that a rule looks back is some seconds.
    """

    def __init__(self, folder: Path, port: int, *targets: str) -> None:
        self._url = f"http://127.0.0.1:{port}"
        config = (DEPLOYED / "prometheus.yaml").read_text()
        example = f"- {_EXAMPLE_TARGET}"
        assert example in config
        config = config.replace(example, f"[{', '.join(targets)}]").replace("15s", "300ms")
        (folder / "prometheus.yaml").write_text(config)
        for name in ("rules.yaml", "alerts.yaml"):
            text = (DEPLOYED / name).read_text().replace("[1m]", "[3s]")
            (folder / name).write_text(re.sub(r"\bfor: \w+", "for: 0s", text))
        self._log = folder / "prometheus.log"
        self._command = [
            program("prometheus"),
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def query(self, expression: str) -> list[Sample]:
        """What it is now."""
        found = self._get("query", query=expression)["result"]
        return [Sample(one["metric"], float(one["value"][1])) for one in found]

    def query_range(self, expression: str, seconds: float) -> list[Sample]:
        """What it has been in the last ``seconds``."""
        now = time.time()
        found = self._get("query_range", query=expression, start=now - seconds, end=now, step=1)["result"]
        return [Sample(one["metric"], float(one["values"][-1][1])) for one in found]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, with their health."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def firing(self) -> dict[str, dict[str, Any]]:
        """The alerts that fire, by name."""
        alerts = self._get("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in alerts if alert["state"] == "firing"}

    def _get(self, path: str, **parameters: Any) -> Any:
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert answer["status"] == "success" and not answer.get("warnings"), answer
        return answer["data"]

    def _is_ready(self) -> bool:
        assert self._process is not None and self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError as error:
            error.close()
            return False
        except OSError:
            return False

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, timeout=30, interval=0.05, message="Prometheus was not ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
