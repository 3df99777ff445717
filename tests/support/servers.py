"""As `writebehind_worker.testing.servers`."""

from writebehind_worker.testing.servers import *  # noqa: F403
