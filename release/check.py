"""`make release-check`: what would be published is built, looked through, installed, and run."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from . import audit, contents
from .outcome import Failed, NotRun, Outcomes
from .project import LOCK, NAME, ROOT, VERSIONS, files
from .pythons import download_python, find_python

UV = [sys.executable, "-m", "uv"]
DEMO = ["demo", "--writes", "6000", "--rows", "600"]
ALONE = {NAME, "redis", "msgspec", "async-timeout"}
"""All that an application gets; the last one is redis', for Python before 3.11.3."""

LOWEST_TESTS = ("test_enqueue.py", "test_silence.py", "test_tls.py", "test_log.py")
"""Tests of what rests on a dependency's ways: sending again, waiting, certificates, rendering."""

_IMPORT = """
import importlib.metadata, json, sys, writebehind
from writebehind import *
names = {name.partition(".")[0] for name in sys.modules} - {*sys.stdlib_module_names, "__main__"}
print(json.dumps([sorted(d.name for d in importlib.metadata.distributions()), sorted(names)]))
"""

_WORKER = """
import writebehind_worker.worker
from writebehind_worker.ledger_schema import schema_sql
schema_sql()
"""


@dataclass
class Run:
    """One release check: its folder, what it built, and how all went."""

    folder: Path
    outcomes: Outcomes
    wheel: Path = Path()
    sdist: Path = Path()

    def all(self, download: bool) -> None:
        """Everything. What cannot go on without the build is left out if that failed."""
        if not self.outcomes.check("build", self.build):
            return
        self.outcomes.check("contents", self.contents)
        self.outcomes.check("metadata", self.metadata)
        check, pythons = self.outcomes.check, dict[str, Path]()
        for version in VERSIONS:
            check(f"Python {version}", partial(self.find, version, pythons, download))
        for version, python in pythons.items():
            for kind, artefact in (("wheel", self.wheel), ("sdist", self.sdist)):
                check(f"{version}, {kind}, alone", partial(self.alone, artefact, python))
                check(f"{version}, {kind}, worker", partial(self.worker, artefact, python))
                check(f"{version}, {kind}, embedded", partial(self.embedded, artefact, python))
            check(f"{version}, lowest versions", partial(self.lowest, version, python))
        if pythons:
            check(f"{next(iter(pythons))}, lowest versions, tests", self.lowest_tests)
        self.outcomes.check("audit", self.audit)

    def build(self) -> str:
        """From a copy that has just the project's files, so that nothing else can get in."""
        source = self.folder / "source"
        for name in files():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
        command([sys.executable, "-m", "build", "--outdir", str(self.folder / "dist"), str(source)])
        (self.wheel,) = (self.folder / "dist").glob("*.whl")
        (self.sdist,) = (self.folder / "dist").glob("*.tar.gz")
        sizes = [f"{path.name}, {path.stat().st_size / 1024:.0f} KiB" for path in (self.sdist, self.wheel)]
        return "; ".join(sizes)

    def contents(self) -> str:
        source, repository = self.folder / "source", files()
        wheel, sdist = contents.read_wheel(self.wheel), contents.read_sdist(self.sdist)
        faults = contents.wheel_faults(wheel, repository, source)
        faults += contents.sdist_faults(sdist, repository, source)
        if faults:
            raise Failed("\n".join(faults))
        return f"{len(sdist)} files in the sdist, {len(wheel)} in the wheel"

    def metadata(self) -> str:
        command([sys.executable, "-m", "twine", "check", "--strict", str(self.wheel), str(self.sdist)])
        return "twine check --strict"

    def find(self, version: str, pythons: dict[str, Path], download: bool) -> str:
        folder = ROOT / ".venv-release" / "pythons"
        python = find_python(version, folder)
        why = "not found on the PATH, nor of pyenv"
        if python is None and download:
            why += f"; uv: {download_python(UV, version, folder) or 'it is there'}"
            python = find_python(version, folder)
        if python is None:
            raise NotRun(why)
        pythons[version] = python
        return command([str(python), "-c", "import platform; print(platform.python_version())"]).strip()

    def alone(self, artefact: Path, python: Path) -> str:
        """Without extras: the library can be imported, and the command says what it lacks."""
        place = self.environment(python, [str(artefact)])
        names, modules = json.loads(command([str(place / "bin/python"), "-c", _IMPORT], self.empty()))
        if extra := set(names) - ALONE:
            raise Failed(f"the library brings {', '.join(sorted(extra))}")
        said = subprocess.run([place / "bin" / NAME, "run"], capture_output=True, text=True, check=False)
        if said.returncode != 2 or "pip install 'writebehind[worker]'" not in said.stderr:
            raise Failed(f"`{NAME} run` without the extra ended with {said.returncode}: {said.stderr}")
        return f"has {', '.join(names)}; imports {', '.join(modules)}"

    def worker(self, artefact: Path, python: Path) -> str:
        """With the extra: the command works, and finds its schema."""
        place = self.environment(python, [f"{NAME}[worker] @ {artefact.as_uri()}"])
        said = command([str(place / "bin" / NAME), "--version"], self.empty()).strip()
        command([str(place / "bin" / NAME), "run", "--help"], self.empty())
        command([str(place / "bin/python"), "-c", _WORKER], self.empty())
        return said

    def embedded(self, artefact: Path, python: Path) -> str:
        place = self.environment(python, [f"{NAME}[embedded] @ {artefact.as_uri()}"])
        return self.demo(place)

    def lowest(self, version: str, python: Path) -> str:
        """With the lowest version that is allowed of each dependency."""
        pins = self.folder / f"lowest-{version}.txt"
        words = ["--quiet", "--resolution", "lowest-direct", "--only-binary", ":all:", "--extra", "embedded"]
        words += ["--no-header", "--no-annotate", "--no-emit-index-url", "--python", str(python)]
        words += ["--output-file", str(pins), "pyproject.toml"]
        command([*UV, "pip", "compile", *words], self.folder / "source")
        place = self.environment(python, ["-r", str(pins)], f"lowest-{version}")
        command([*UV, "pip", "install", "--quiet", "--python", str(place), "--no-deps", str(self.wheel)])
        return self.demo(place)

    def lowest_tests(self) -> str:
        """Some of the tests, with the lowest versions, of the oldest Python that is here."""
        place = min(self.folder.glob("lowest-3.*[0-9]"), default=None)
        if place is None:
            raise Failed("there is no environment with the lowest versions")
        pins = ["--constraint", str(place.with_suffix(place.suffix + ".txt"))]
        tools = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "trustme"]
        command([*UV, "pip", "install", "--quiet", "--python", str(place), *pins, *tools])
        tests = [f"tests/{name}" for name in LOWEST_TESTS]
        said = command(
            [str(place / "bin/python"), "-m", "pytest", "-q", "-n", "2", *tests], self.folder / "source"
        )
        return said.strip().splitlines()[-1]

    def audit(self) -> str:
        return audit.run(LOCK)

    def demo(self, place: Path) -> str:
        """In an empty folder."""
        said = command([str(place / "bin" / NAME), *DEMO], self.empty())
        last = said.strip().splitlines()[-1]
        if "0 lost, 0 repeated, 0 stale" not in last:
            raise Failed(said)
        return last

    def environment(self, python: Path, install: list[str], name: str = "environment") -> Path:
        """A new one with this in it."""
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        command([*UV, "venv", "--quiet", "--python", str(python), str(place)])
        command([*UV, "pip", "install", "--quiet", "--python", str(place), *install])
        return place

    def empty(self) -> Path:
        folder = self.folder / "empty"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder


def command(words: list[str], folder: Path | None = None) -> str:
    """What it printed. Raises `Failed` with all it said if it fails, or takes more than ten minutes."""
    environment = {n: v for n, v in os.environ.items() if n not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{' '.join(words)} did not end within 600 s") from error
    if done.returncode:
        raise Failed(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Exits with 1 if a check failed. What cannot be checked here is said, and is no failure."""
    parser = argparse.ArgumentParser(prog="make release-check", description=__doc__)
    parser.add_argument("--no-download", action="store_true", help="Let uv get no Python that is missing.")
    parser.add_argument("--out", type=Path, help="Where the sdist and the wheel are left, if all is good.")
    given = parser.parse_args()
    outcomes = Outcomes()
    with tempfile.TemporaryDirectory(prefix="release-") as folder:
        run = Run(Path(folder).resolve(), outcomes)
        run.all(not given.no_download)
        if outcomes.is_good and given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            for artefact in (run.sdist, run.wheel):
                shutil.copy2(artefact, given.out)
    print(f"\n{outcomes.table()}\n")
    print("release-check: " + ("good" if outcomes.is_good else "FAILED"))
    sys.exit(0 if outcomes.is_good else 1)


if __name__ == "__main__":
    main()
