"""The status page: one HTML file, which may load nothing and talk to nobody but this worker."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from importlib import resources

COMMON_HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of the page and of its data."""


@functools.cache
def status_page() -> bytes:
    """The file."""
    return resources.files(__package__).joinpath("status_page.html").read_bytes()


@functools.cache
def page_headers() -> Mapping[str, str]:
    """By their hashes the browser runs this script and this style, and none that somebody slipped in."""
    policy = {
        "default-src": "'none'",
        "script-src": _hashes("script"),
        "style-src": _hashes("style"),
        "connect-src": "'self'",
        "img-src": "data:",  # the icon
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    directives = "; ".join(f"{name} {value}" for name, value in policy.items())
    return {**COMMON_HEADERS, "Content-Security-Policy": directives, "X-Frame-Options": "DENY"}


def _hashes(tag: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), status_page(), re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
