"""latest.json: what has been measured on this machine, part by part, and when."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .stage import POSTGRES, REDIS


class Results:
    """Parts that are measured replace those of before; another machine, or another size, begins anew."""

    def __init__(self, path: Path, machine: dict[str, Any], size: str) -> None:
        self._path = path
        about = {"machine": machine, "size": size, "postgres": POSTGRES, "redis": REDIS}
        before = json.loads(path.read_text()) if path.exists() else {}
        same = {name: before.get("about", {}).get(name) for name in about} == about
        self.found: dict[str, Any] = before if same else {"about": {**about, "parts": {}}}

    def add(self, part: str, figures: dict[str, Any], seconds: float) -> None:
        """The members of one part; the file is written at once."""
        self.found |= figures
        self.found["about"]["parts"][part] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 1),
            "load_average": round(os.getloadavg()[0], 1),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.found, indent=1) + "\n")
