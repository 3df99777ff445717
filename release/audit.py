"""Known vulnerabilities of the locked versions, by `pip-audit`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .outcome import Failed, NotRun

SERVICES = ("pypi", "osv")
"""Both have the Python Packaging Advisory Database; either may be out of reach."""


def verdict(report: str) -> str:
    """What pip-audit's JSON says, as a note.

    Raises `Failed` for a vulnerability, `NotRun` where the service knows none of the packages: then it has
    not answered, or is an index without advisories.
    """
    packages = json.loads(report)["dependencies"]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, "
        f"mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for package in packages
        for flaw in package.get("vulns", ())
    ]
    if found:
        raise Failed("\n".join(found))
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        raise NotRun(f"the service knows none of the {len(packages)} packages")
    note = f"no known vulnerability in {len(packages) - len(skipped)} packages"
    return note + (f"; not known to the service: {', '.join(skipped)}" if skipped else "")


def run(lock: Path) -> str:
    """Asks one service after the other. Raises as `verdict` does; `NotRun` if none can be reached."""
    reasons = []
    for service in SERVICES:
        words = ["-m", "pip_audit", "--requirement", str(lock), "--no-deps", "--disable-pip"]
        words += ["--format", "json", "--progress-spinner", "off", "--vulnerability-service", service]
        try:
            done = subprocess.run(
                [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False
            )
            return f"{service}: {verdict(done.stdout)}"
        except (subprocess.TimeoutExpired, json.JSONDecodeError):
            reasons.append(f"{service} cannot be reached")
        except NotRun as reason:
            reasons.append(f"{service}: {reason}")
    raise NotRun("; ".join(reasons))
