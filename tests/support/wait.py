"""As `writebehind_worker.testing.wait`."""

from writebehind_worker.testing.wait import *  # noqa: F403
