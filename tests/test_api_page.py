"""docs/api.md has every public name, call and setting, as the code has them now."""

from __future__ import annotations

import dataclasses
import re

import pytest
from tests.support.api_page import PAGE, page

import writebehind
from writebehind import Settings


def test_the_page_is_what_the_code_says() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "run `python -m tests.support.api_page`"


@pytest.mark.parametrize("name", writebehind.__all__)
def test_every_public_name_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE.read_text()


def test_every_setting_and_public_call_is_on_the_page() -> None:
    lines = PAGE.read_text().splitlines()
    for field in dataclasses.fields(Settings):
        assert any(line.startswith(f"  - `{field.name}: ") and line.count("`: ") for line in lines)
    for name in ("WriteBehind", "Batch", "Receipt", "Table"):
        start = next(i for i, line in enumerate(lines) if line.startswith(f"- **`{name}`**"))
        block = lines[start + 1 : next(i for i in range(start + 1, len(lines)) if lines[i][:2] != "  ")]
        found = [re.match(r"  - `(\w+)", line) for line in block]
        calls = {n for n in dir(getattr(writebehind, name)) if n[0] != "_"}
        shown = {match[1] for match in found if match}
        assert shown <= calls
        assert {n for n in calls if callable(getattr(getattr(writebehind, name), n))} <= shown


def test_what_is_missing_or_does_not_exist_is_found() -> None:
    text = PAGE.read_text()
    for change in (
        text.replace("- **`Receipt`**", "- **`Recipe`**"),
        text.replace("  - `put(", "  - `putt(", 1),
        text.replace("  - `ttl: ", "  - `life: "),
        text.replace("signatures: Batch Atomic Receipt", "signatures: Batch Atomic"),
    ):
        assert change != text
        assert page(change) != change


def test_a_name_that_has_no_place_goes_to_the_last_section(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lock:
        """Something new."""

        def acquire(self, timeout: float = 1.0) -> bool:
            """Waits."""
            return True

    monkeypatch.setattr(writebehind, "Lock", Lock, raising=False)
    monkeypatch.setattr(writebehind, "__all__", [*writebehind.__all__, "Lock"])
    written = page(PAGE.read_text())
    assert "  - `acquire(timeout: float = 1.0) -> bool`: Waits." in written.split("## More")[1]
    assert page(written) == written
