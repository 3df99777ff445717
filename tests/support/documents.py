"""The documents: their fenced blocks, links, headings and code spans. No I/O but reading them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

_FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,})(?P<kind>[^`\n]*)$")
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\((?P<target>[^)\s]+)\)")
_SPAN = re.compile(r"(?<!`)(`+)(?!`)(?P<code>.+?)(?<!`)\1(?!`)", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: the first word behind the fence, what is in it, and its first line's number."""

    kind: str
    code: str
    line: int


def blocks(text: str) -> list[Block]:
    """In their order. Raises ``ValueError`` for one that is not closed."""
    found: list[Block] = []
    lines: list[str] = []
    opened: tuple[re.Match[str], int] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        match = _FENCE.match(line)
        if opened is None:
            if match:
                opened, lines = (match, number), []
        elif match and match["mark"].startswith(opened[0]["mark"]) and not match["kind"].strip():
            kind = (opened[0]["kind"].split() or [""])[0]
            found.append(Block(kind, "\n".join(lines) + "\n", opened[1] + 1))
            opened = None
        else:
            lines.append(line.removeprefix(opened[0]["indent"]))
    if opened is not None:
        raise ValueError(f"line {opened[1]}: the block is not closed")
    return found


def prose(text: str) -> str:
    """The text without its fenced blocks, which become empty lines."""
    lines = text.splitlines()
    for block in blocks(text):
        end = block.line + block.code.count("\n")
        lines[block.line - 2 : end] = [""] * (end - block.line + 2)
    return "\n".join(lines)


def links(text: str) -> list[str]:
    """The targets of its links and images."""
    return [match["target"] for match in _LINK.finditer(_SPAN.sub(_kept_length, prose(text)))]


def _kept_length(match: re.Match[str]) -> str:
    return "x" * len(match[0])


def spans(text: str) -> list[str]:
    """Its code spans, each on one line."""
    return [" ".join(match["code"].split()) for match in _SPAN.finditer(prose(text))]


def anchors(text: str) -> set[str]:
    """The names of its headings, as in links: lower case, blanks as hyphens, no punctuation."""
    found: set[str] = set()
    for match in re.finditer(r"^#{1,6} +(.*?) *#*$", prose(text), re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match[1]).lower()
        name = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


def commands(code: str) -> Iterator[list[str]]:
    """The simple commands of shell code, as words; without comments, prompts and here-documents."""
    code = re.sub(r"<<-?\s*'?(\w+)'?(.*)\n(?:.*\n)*?\s*\1\n", r"\2\n", code.replace("\\\n", " "))
    for line in code.splitlines():
        lexer = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for token in [*lexer, ";"]:
            if re.fullmatch(r"[|&;]+", token):
                if words:
                    yield words
                words = []
            else:
                words.append(token)
