"""The pytest plugin as it is installed, in a folder where there is nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROMISES = Path(__file__).with_name("test_promises.py")


def test_a_users_tests_run_with_nothing_but_the_plugin(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(PROMISES.read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-W", "error", str(tmp_path)]
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    assert "3 passed" in done.stdout, done.stdout + done.stderr
