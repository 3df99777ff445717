"""The container engine, by its command: images that tests build, containers that they start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from writebehind_worker.testing.servers import missing

ROOT = Path(__file__).parents[2]
PYTHON_IMAGE = os.environ.get("WRITEBEHIND_TEST_PYTHON_IMAGE", "python:3.11-slim-bookworm")
REDIS_IMAGE = os.environ.get("WRITEBEHIND_TEST_REDIS_IMAGE", "redis:7.0-bookworm")
POSTGRES_IMAGE = os.environ.get("WRITEBEHIND_TEST_POSTGRES_IMAGE", "postgres:15-bookworm")
WORKER_IMAGE = "writebehind:test"


def docker(*arguments: str, timeout: float = 60, check: bool = True, stdin: str | None = None) -> str:
    """What it prints, both streams; AssertionError with all of that if it fails."""
    done = subprocess.run(
        ["docker", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        input=stdin,
        check=False,
    )
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout.strip()


def need_engine(*images: str) -> None:
    """Skips without an engine, or without an image that cannot be fetched; fails in CI."""
    if shutil.which("docker") is None:
        missing("no docker command: install a container engine")
    try:
        docker("version")
    except (AssertionError, subprocess.TimeoutExpired) as error:
        missing(f"the container engine does not answer: {error}")
    for image in images:
        try:
            docker("image", "inspect", image)
        except AssertionError:
            try:
                docker("pull", image, timeout=300)
            except (AssertionError, subprocess.TimeoutExpired) as error:
                missing(f"no image {image}: {error}")


def build_worker() -> str:
    """The image of this very source; an engine that has built it before takes a second."""
    need_engine(PYTHON_IMAGE)
    build(WORKER_IMAGE, ROOT / "deploy/docker/Dockerfile", BASE_IMAGE=PYTHON_IMAGE)
    return WORKER_IMAGE


def build(tag: str, file: Path, context: Path = ROOT, **arguments: str) -> None:
    """With the host's network: an index of packages may be reached from there alone."""
    given = [part for name, value in arguments.items() for part in ("--build-arg", f"{name}={value}")]
    command = ["build", "--network", "host", "--file", str(file), "--tag", tag, *given, str(context)]
    docker(*command, timeout=600)


@contextmanager
def running(image: str, *command: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """A container's id; it is removed with its volumes."""
    container = docker("run", "--detach", *options, image, *command)
    try:
        yield container
    except BaseException:
        print(docker("logs", "--tail", "200", container, check=False))  # pytest shows it
        raise
    finally:
        docker("rm", "--force", "--volumes", container, check=False)
