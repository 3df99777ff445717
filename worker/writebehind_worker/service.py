"""One process: its endpoint, what systemd is told, and one worker after another as it is reloaded."""

from __future__ import annotations

import threading
from typing import NamedTuple

from .config import Config, one_line
from .course import Course
from .endpoint import Endpoint
from .errors import FatalError
from .fleet import Fleet
from .log import configure_logging, get_logger
from .metrics import Metrics
from .notify import Reporter, ServiceManager
from .state import WorkerState
from .worker import stall_after_s

_STOP_MARGIN_S = 10.0  # beyond stop_timeout: closing connections


class _Figures(NamedTuple):
    """Of one queue. They stay when another one is served, for it may come back."""

    metrics: Metrics
    course: Course


class _Reload(NamedTuple):
    number: int
    config: Config


class Service:
    """`run` works until `stop`; `reload` gives it another configuration. Both may come from any thread."""

    def __init__(self, config: Config, manager: ServiceManager) -> None:
        self._config, self._manager = config, manager
        self._state = WorkerState(stall_after_s(config))
        self._figures: dict[str, _Figures] = {}
        self._figures_of(config.queue)
        self._endpoint: Endpoint | None = None
        self._reporter = Reporter(manager, self._state, self._waiting)
        self._turn = threading.Lock()  # of what is said of reloads, and of these:
        self._asked = 0  # reloads so far
        self._refused = 0  # the last one that was
        self._reading = False  # `reload` or `refuse` will follow
        self._next: _Reload | None = None
        self._at_hand: _Reload | None = None
        self._stop = threading.Event()
        self._end = threading.Event()  # of the worker at hand

    def run(self) -> None:
        """Raises `FatalError` if the operator must act."""
        configure_logging(self._config.log_level, self._config.log_format)
        last_words = ""
        try:
            _prepare_tracing(self._config)
            self._endpoint = self._serve(self._config)
            self._reporter.start()
            self._manager.ready()
            while not self._stop.is_set():
                self._work()
                self._take_next()
        except BaseException as error:
            last_words = one_line(error)
            raise
        finally:
            if self._endpoint is not None:
                self._endpoint.stop()
            self._reporter.stop(last_words)

    def stop(self) -> None:
        """What is frozen is finished within the configuration's ``stop_timeout_s``."""
        self._manager.stopping(self._config.stop_timeout_s + _STOP_MARGIN_S)
        self._stop.set()
        self._end.set()

    def reload(self, config: Config) -> None:
        """The worker finishes what is frozen and lets go of the queue; another one takes it up by ``config``.

        Nothing is lost and no counter of the metrics goes back; the endpoint stays, unless it is to move.
        """
        with self._turn:
            self._reading, self._next = False, _Reload(self._asked, config)
            self._end.set()

    def reloading(self) -> None:
        """The configuration is being read again: `reload` follows, or `refuse`."""
        with self._turn:
            self._asked += 1
            self._reading = True
            self._manager.reloading()

    def refuse(self, error: Exception) -> None:
        """It could not be read, or was wrong: the one in force stays."""
        self._refuse(self._asked, error)
        with self._turn:
            self._reading = False
            self._say_ready()

    def _refuse(self, number: int, error: Exception) -> None:
        is_ours = isinstance(error, FatalError)
        reason = one_line(error) if is_ours else f"{type(error).__name__}: {one_line(error)}"
        get_logger(queue=self._config.queue).error(
            "reload refused: the configuration in force stays",
            reason=reason,
            hint=error.hint if isinstance(error, FatalError) else "see the traceback",
            exc_info=None if is_ours else error,
        )
        if number >= self._refused:
            self._refused = number
            self._reporter.remark = f"reload refused: {reason}"

    def _say_ready(self) -> None:
        """Once nothing is under way: it would be taken for the answer to the last reload. It has the turn."""
        if not self._reading and self._next is None and self._at_hand is None:
            self._manager.ready()

    def _work(self) -> None:
        config = self._config
        metrics = self._figures_of(config.queue).metrics
        Fleet(config, self._state, metrics, get_logger()).run(self._end, self._stop)

    def _take_next(self) -> None:
        with self._turn:
            self._at_hand, self._next = self._next, None
            if self._at_hand is None or self._stop.is_set():
                return
            self._end.clear()
        number, config = self._at_hand
        try:
            stall_after_s(config)  # for its errors
            _prepare_tracing(config)
            self._move_endpoint(config)
        except Exception as error:  # whatever it is, the worker goes on as before
            self._refuse(number, error)
        else:
            self._use(number, config)
        self._state.begin(stall_after_s(self._config))
        with self._turn:
            self._at_hand = None
            self._say_ready()

    def _use(self, number: int, config: Config) -> None:
        self._figures_of(config.queue)  # before another thread asks for them
        before, self._config = self._config, config
        configure_logging(config.log_level, config.log_format)
        get_logger(queue=config.queue).info("reloaded", changed=changes(before, config))
        with self._turn:
            if number > self._refused:
                self._reporter.remark = ""

    def _figures_of(self, queue: str) -> _Figures:
        if queue not in self._figures:
            self._figures[queue] = _Figures(Metrics(queue), Course())
        return self._figures[queue]

    def _serve(self, config: Config) -> Endpoint | None:
        if not config.metrics_port:
            return None
        metrics, course = self._figures_of(config.queue)
        endpoint = Endpoint(config.metrics_host, config.metrics_port, metrics, self._state, course)
        endpoint.start()
        return endpoint

    def _move_endpoint(self, config: Config) -> None:
        """To another address or queue. Raises `FatalError`, and it stays, if it cannot listen there."""
        if self._endpoint is None:
            self._endpoint = self._serve(config)
        elif config.metrics_port:
            figures = self._figures_of(config.queue)
            self._endpoint.move(config.metrics_host, config.metrics_port, *figures)
        else:
            self._endpoint.stop()
            self._endpoint = None

    def _waiting(self) -> int:
        backlog = self._figures_of(self._config.queue).metrics.figures().backlog
        return 0 if backlog is None else backlog.length


def _prepare_tracing(config: Config) -> None:
    """Raises `FatalError` where spans are asked for and cannot be made."""
    if config.tracing:
        from .tracing_setup import prepare_tracing  # noqa: PLC0415 - not everybody has what it imports

        prepare_tracing()


def changes(before: Config, after: Config) -> list[str]:
    """The settings that differ, by name: their values may be secret."""
    names = Config.__dataclass_fields__
    return [name for name in names if getattr(before, name) != getattr(after, name)]
