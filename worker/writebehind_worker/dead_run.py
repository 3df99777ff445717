"""One run of `dead retry` or `dead drop`, page by page, with a progress bar on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import redis
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from writebehind.keys import QueueKeys

from .dead import Choice, DeadLetters, Letter, acknowledged
from .dead_retry import Retry, Sender, Watch, chunks, make_correction, make_retry

AGAIN = "their batch is still being finished: run it again in a moment"
_MOST_NAMED = 50


class RetryRun:
    """One `dead retry`: what it sends, and what it leaves alone."""

    def __init__(
        self,
        letters: DeadLetters,
        client: redis.Redis,
        keys: QueueKeys,
        max_queue_length: int,
        watch: Watch,
        force: bool,
        body: str | None,
    ) -> None:
        self._letters, self._client, self._keys, self._watch = letters, client, keys, watch
        self._force, self._body = force, body
        self._sender = Sender(client, keys, max_queue_length)
        self._fresh = self._unreadable = self._rowless = 0
        self._left: list[str] = []

    def send(self, choice: Choice) -> None:
        """Sends what is meant, oldest first."""
        missing = set(choice.ids)
        with progress_bar() as progress:
            task = progress.add_task("sending", total=self._letters.count(choice))
            for page in self._letters.pages(choice):
                missing -= {letter.id for letter in page}
                free = acknowledged(page, inflight(self._client, page))
                self._fresh += len(page) - len(free)
                for part in chunks(free):
                    for sent in self._sender.send(self._retries(part)):
                        self._watch.sent(sent)
                progress.advance(task, len(page))
        self._left += [f"{letter}: no such dead letter here" for letter in sorted(missing)]

    def _retries(self, letters: Sequence[Letter]) -> Iterator[Retry]:
        bodies = self._letters.bodies(letters)
        for letter in letters:
            body = bodies.get(letter.id)
            if body is None:
                continue  # gone since: applied by another retry, or dropped
            if letter.needs_force and not self._force:
                if len(self._left) < _MOST_NAMED:
                    self._left.append(f"{letter.id}: {letter.needs_force}")
                continue
            if self._body is not None:
                made: Retry | None = make_correction(letter, body, self._body, self._keys, force=self._force)
            else:
                made = make_retry(letter, body, self._keys, force=self._force)
            if made is None:
                self._unreadable += 1
            elif letter.key is None and self._body is None and not self._force:
                self._rowless += 1  # no later write can have superseded it
            else:
                yield made

    def left(self) -> list[str]:
        """What was not sent, and why; a line each."""
        left = list(self._left)
        if self._unreadable:
            left.append(
                f"{many(self._unreadable)} cannot be sent again: no JSON objects. "
                "Correct each (dead retry ID --body JSON), or drop them"
            )
        if self._rowless:
            left.append(
                f"{many(self._rowless)} not sent: which rows they are for could not be told when they were "
                "rejected (a table was missing, say), so later writes of these may have been applied. "
                "--force sends them, and lets them overwrite"
            )
        if self._fresh:
            left.append(f"{many(self._fresh)} not sent: {AGAIN}")
        return [f"{line}." for line in left]


def drop_letters(letters: DeadLetters, choice: Choice, client: redis.Redis) -> tuple[int, int]:
    """Removes what is meant; returns how many were, and how many stay: their batch is in flight."""
    dropped = left = 0
    with progress_bar() as progress:
        task = progress.add_task("dropping", total=letters.count(choice))
        for page in letters.pages(choice):
            free = acknowledged(page, inflight(client, page))
            dropped += letters.remove(free)
            left += len(page) - len(free)
            progress.advance(task, len(page))
    return dropped, left


def inflight(client: redis.Redis, letters: Sequence[Letter]) -> set[tuple[str, int]]:
    """The frozen batches at this moment of the queues, or shards, that these letters are of."""
    queues = sorted({letter.queue for letter in letters})
    with client.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.lrange(QueueKeys(queue).inflight, 0, -1)
        batches = pipe.execute()
    return {(queue, int(batch)) for queue, those in zip(queues, batches, strict=True) for batch in those}


def many(count: int) -> str:
    """So many dead letters, in words."""
    return f"{count} dead letter{'' if count == 1 else 's'}"


def progress_bar() -> Progress:
    """On a terminal only, and not in what the command prints."""
    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
