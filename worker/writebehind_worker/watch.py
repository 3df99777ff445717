"""`Watch`: asks a worker's endpoint again and again for its `Overview`, on a thread of its own."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from .config import redacted
from .errors import ConfigError
from .overview import Overview

_TIMEOUT_S = 2.0
_MOST_BYTES = 1 << 20

_read_overview = msgspec.json.Decoder(Overview).decode


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of asking ``url``: an overview, or why there is none. ``at_s``: of the monotonic clock."""

    url: str
    at_s: float
    overview: Overview | None = None
    error: str | None = None


def checked_url(text: str) -> str:
    """Where a worker's endpoint is, without a slash at its end. Raises `ConfigError`."""
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # the port is no number, say
        is_url = False
    if not is_url or "@" in text:
        raise ConfigError(
            f"--url {redacted(text)!r} is no address of a worker's endpoint",
            "give it as http://host:9753, without a user or a password",
        )
    return text.rstrip("/")


def ask(url: str) -> Answer:
    """Once, directly and not through a proxy. Raises nothing for a worker that does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    overview, error = None, None
    try:
        with opener.open(f"{url}/status.json", timeout=_TIMEOUT_S) as response:
            overview = _read_overview(response.read(_MOST_BYTES))
    except urllib.error.HTTPError as failure:
        with failure:
            error = f"it answers with {failure.code}: no writebehind, or an earlier version?"
    except urllib.error.URLError as failure:
        error = _reason(failure.reason)
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = "what it answers is no status of writebehind"
    except (OSError, http.client.HTTPException) as failure:
        error = _reason(failure)
    return Answer(url, time.monotonic(), overview, error)


def _reason(failure: BaseException | str) -> str:
    if isinstance(failure, OSError) and failure.strerror:
        return failure.strerror.lower()
    return redacted(" ".join(str(failure).split())) or type(failure).__name__


class Watch:
    """``answer`` is the last one, None before the first."""

    def __init__(self, url: str, every_s: float) -> None:
        self.url = url
        self.answer: Answer | None = None
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name=f"watch {url}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for an answer that is on its way."""
        self._stop.set()

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.answer = ask(self.url)
            self._stop.wait(self._every_s)
