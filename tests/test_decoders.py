"""Msgspec looks into a class when it first hears of it, and crashes where two threads tell it at once."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = (ROOT / "producer" / "writebehind", ROOT / "worker" / "writebehind_worker")

TYPED_ROWS = """
from __future__ import annotations
import faulthandler, sys, threading, msgspec
from writebehind.field_decoder import field_decoder

class NoModels:
    def know(self, kind): raise TypeError
    def make(self, kind, members): raise TypeError

faulthandler.enable()
sys.setswitchinterval(1e-6)
numbers = "\\n".join(f"    f{n}: int" for n in range(12))
text = msgspec.json.encode({f"f{n}": n for n in range(12)} | {"inner": [{f"f{n}": n for n in range(12)}]})
for _ in range(80):
    exec(f"class Inner(msgspec.Struct):\\n{numbers}")
    exec(f"class Outer(msgspec.Struct):\\n{numbers}\\n    inner: list[Inner] | None")
    outer = Outer
    gate = threading.Barrier(6)

    def make():
        gate.wait()
        assert field_decoder(outer, float, NoModels())(text).f3 == 3

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_msgspec_hears_of_each_of_our_classes_while_its_module_is_imported() -> None:
    """A worker of several shards reads the catalog in as many threads, and so do those of an application."""
    late = [
        f"{path.name}: {line.strip()}"
        for package in PACKAGES
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"\b(decode|convert)\(.*type=_?[A-Z]", line)
    ]
    assert not late, "make a Decoder of it beside the class"


def test_typed_rows_may_be_made_by_several_threads_at_once() -> None:
    made = subprocess.run([sys.executable, "-c", TYPED_ROWS], capture_output=True, text=True, timeout=60)
    assert made.returncode == 0, made.stderr[:500]
