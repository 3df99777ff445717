"""One process: its endpoint, what systemd is told, and one worker after another as it is reloaded."""

from __future__ import annotations

import threading

from .config import Config, one_line
from .course import Course
from .endpoint import Endpoint
from .errors import FatalError
from .log import configure_logging, get_logger
from .metrics import Metrics
from .notify import Reporter, ServiceManager
from .state import WorkerState
from .worker import Worker, stall_after_s

_STOP_MARGIN_S = 10.0  # beyond stop_timeout: closing connections


class Service:
    """`run` works until `stop`; `reload` gives it another configuration. Both may come from any thread."""

    def __init__(self, config: Config, manager: ServiceManager) -> None:
        self._config, self._manager = config, manager
        self._state = WorkerState(stall_after_s(config))
        self._metrics = {config.queue: Metrics(config.queue)}
        self._course = Course()
        self._endpoint: Endpoint | None = None
        self._reporter = Reporter(manager, self._state, self._waiting)
        self._turn = threading.Lock()
        self._next: Config | None = None
        self._stop = threading.Event()
        self._end = threading.Event()  # of the worker at hand

    def run(self) -> None:
        """Raises `FatalError` if the operator must act."""
        configure_logging(self._config.log_level, self._config.log_format)
        last_words = ""
        try:
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
            self._next = config
            self._end.set()

    def reloading(self) -> None:
        """The configuration is being read again: `reload` follows, or `refuse`."""
        self._manager.reloading()

    def refuse(self, error: FatalError) -> None:
        """It was wrong: the one in force stays."""
        get_logger(queue=self._config.queue).error(
            "reload refused: the configuration in force stays", reason=one_line(error), hint=error.hint
        )
        self._reporter.remark = f"reload refused: {one_line(error)}"
        self._manager.ready()

    def _work(self) -> None:
        config = self._config
        Worker(config, self._state, self._metrics[config.queue], get_logger()).run(self._end, self._stop)

    def _take_next(self) -> None:
        with self._turn:
            config, self._next = self._next, None
            if config is None or self._stop.is_set():
                return
            self._end.clear()
        try:
            self._move_endpoint(config)
        except FatalError as error:
            self.refuse(error)
        else:
            self._use(config)
        self._state.begin(stall_after_s(self._config))

    def _use(self, config: Config) -> None:
        before, self._config = self._config, config
        configure_logging(config.log_level, config.log_format)
        get_logger(queue=config.queue).info("reloaded", changed=changes(before, config))
        self._reporter.remark = ""
        self._manager.ready()

    def _serve(self, config: Config) -> Endpoint | None:
        if not config.metrics_port:
            return None
        metrics = self._metrics.setdefault(config.queue, Metrics(config.queue))
        if config.queue != self._config.queue:
            self._course = Course()
        endpoint = Endpoint(config.metrics_host, config.metrics_port, metrics, self._state, self._course)
        endpoint.start()
        return endpoint

    def _move_endpoint(self, config: Config) -> None:
        """To another address or queue. Raises `FatalError`, and it stays, if it cannot listen there."""
        if _served(config) == _served(self._config):
            return
        if self._endpoint is not None:
            self._endpoint.stop()  # first: both may be one port
        try:
            self._endpoint = self._serve(config)
        except FatalError:
            if self._endpoint is not None:
                self._endpoint.start()
            raise

    def _waiting(self) -> int:
        value = self._metrics[self._config.queue].registry.get_sample_value("writebehind_queue_length")
        return int(value or 0)


def _served(config: Config) -> tuple[str, int, str]:
    return config.metrics_host, config.metrics_port, config.queue


def changes(before: Config, after: Config) -> list[str]:
    """The settings that differ, by name: their values may be secret."""
    names = Config.__dataclass_fields__
    return [name for name in names if getattr(before, name) != getattr(after, name)]
