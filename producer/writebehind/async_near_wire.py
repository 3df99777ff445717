"""One connection that tracks what is read over it, on an event loop."""

from __future__ import annotations

import asyncio
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from redis._parsers import _AsyncRESP3Parser
from redis.exceptions import ConnectionError, TimeoutError

from .near_rows import QUEUE_S, Look, NearRows, Reading

_ROUNDS = 4  # of the event loop, until what has come to the socket has been read and taken in
_TOLD = object()  # a message that is no reply


class Asked:
    """A question on its way. ``answer`` is looks, what Redis answered instead, or ``None``: lost."""

    def __init__(self, reading: Reading) -> None:
        self.reading, self.replies = reading, list[Any]()
        self.answer: asyncio.Future[dict[str, Look] | Exception | None]
        self.answer = asyncio.get_running_loop().create_future()


class AsyncNearWire:
    """Connects at once. A task of its own reads all that Redis says, in order, whoever waits for it or not.

    So a call that is cancelled takes nothing with it: its reply is read and kept as if it were waited for.
    """

    def __init__(self, pool: Any, rows: NearRows) -> None:
        options = {**pool.connection_kwargs, "protocol": 3}
        self._connection: Any = pool.connection_class(**options)
        kind: Any = type(self._connection._parser)
        if not hasattr(kind, "handle_push_response"):  # redis-py 6 with hiredis
            kind = _AsyncRESP3Parser
        told = {"handle_push_response": self._told}
        self._connection.set_parser(type("NearParser", (kind,), told))
        self._timeout_s: float | None = options.get("socket_timeout")
        self._rows, self._asked = rows, deque[Asked]()
        self._loop = asyncio.get_running_loop()
        self._socket: Any = None
        self.is_open, self.is_lost, self.lost_at = False, False, 0.0
        self.refused: Exception | None = None  # what Redis answered to CLIENT TRACKING
        self.opened: asyncio.Future[None] = self._loop.create_future()  # done when it is open, or lost
        self._task = self._loop.create_task(self._live())

    async def hear(self) -> None:
        """Lets the task take in what has come. Costs one look at the socket if nothing has."""
        for _ in range(_ROUNDS):
            if not (self.is_open and self._has_word()):
                return
            await asyncio.sleep(0)

    async def ask(self, names: Sequence[str]) -> dict[str, Look] | None:
        """What Redis says of these keys; ``None`` if it cannot be asked here now, or does not answer."""
        late_s = time.monotonic() - self._asked[0].reading.started if self._asked else 0.0
        if self._timeout_s and late_s > self._timeout_s:
            self.lose()
        if self.is_lost or late_s > QUEUE_S:
            return None
        is_first = not self._asked
        asked = Asked(self._rows.begin(names))
        try:
            packed = self._connection.pack_commands(asked.reading.commands())
            self._connection._writer.writelines(packed)  # without waiting: nobody comes in between
        except (OSError, RuntimeError, AttributeError):  # it is being closed
            self.lose()
            return None
        self._asked.append(asked)
        await asyncio.wait({asked.answer}, timeout=self._timeout_s if is_first else QUEUE_S)
        if not asked.answer.done():
            if is_first:
                self.lose()
            return None
        answer = asked.answer.result()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def lose(self) -> None:
        """It is of no use any more, and nobody is told of changes to what was read over it."""
        if self.is_lost:
            return
        self.is_open, self.is_lost, self.lost_at = False, True, time.monotonic()
        self._rows.forget_all()
        for asked in self._asked:
            _settle(asked.answer, None)
        self._asked.clear()
        _settle(self.opened, None)
        if asyncio.current_task(self._loop) is not self._task:
            self._task.cancel()

    async def close(self) -> None:
        """Returns when the connection is closed."""
        self.lose()
        await asyncio.wait({self._task})

    def is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it lives on this event loop."""
        return self._loop is loop

    async def _live(self) -> None:
        connection = self._connection
        try:
            await connection.connect()
            await connection.send_command("CLIENT", "TRACKING", "ON")
            await connection.read_response()
            if self.is_lost:  # before Python 3.12 what redis-py sends with could swallow a cancellation
                return
            self._socket = _Socket(connection._writer)
            self.is_open = True
            _settle(self.opened, None)
            while True:
                message = await connection._parser.read_response(push_request=True)
                if message is not _TOLD:
                    self._take(message)
        except (ConnectionError, TimeoutError, OSError):
            pass
        except Exception as error:  # Redis refuses it, or says what nobody understands
            if not self.is_open:
                self.refused = error
        finally:
            self.lose()
            await connection.disconnect(nowait=True)

    def _take(self, reply: Any) -> None:
        asked = self._asked[0]
        asked.replies.append(reply)
        if len(asked.replies) < 2 * len(asked.reading.names):
            return
        self._asked.popleft()
        try:
            _settle(asked.answer, self._rows.take(asked.reading, asked.replies))
        except Exception as error:
            self._rows.drop(asked.reading.names)
            _settle(asked.answer, error)

    async def _told(self, message: Sequence[Any], *_: Any, **__: Any) -> object:
        """In place of the parser's own: that could not be told from a reply, and hides errors."""
        if message[0] in (b"invalidate", "invalidate"):
            self._rows.told(message[1])
        return _TOLD

    def _has_word(self) -> bool:
        """Whether something has come that the task has not taken in; the end of the connection, too."""
        reader = self._connection._reader
        if reader is None or reader.exception() is not None or reader.at_eof() or reader._buffer:
            return True
        return bool(self._socket.has_word())


class _Socket:
    """Looks at a socket without waiting: the event loop does only when nothing else is to be done."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._fileno: int = writer.get_extra_info("socket").fileno()
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._fileno, select.POLLIN)

    def has_word(self) -> bool:
        if self._poll is not None:
            return bool(self._poll.poll(0))
        return bool(select.select([self._fileno], [], [], 0)[0])


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)
