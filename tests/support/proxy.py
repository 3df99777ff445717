"""As `writebehind_worker.testing.proxy`."""

from writebehind_worker.testing.proxy import *  # noqa: F403
