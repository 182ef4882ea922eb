"""What all pages share: head, style, and the headers that keep anything else out."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from multigrain_server.status.markup import Child, Markup, element, join

REFRESH_SECONDS = 5

_STYLE = files(__package__).joinpath("style.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: No script, no frame, no form, nothing from elsewhere: an injected element would do nothing.
SECURITY_HEADERS: tuple[str, ...] = (
    f"Content-Security-Policy: default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options: nosniff",
    "Referrer-Policy: no-referrer",
    "Cache-Control: no-store",
)

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='4' fill='%230b7285'/%3E"
    "%3Cpath d='M3 4c3 7 5 8 10 8' fill='none' stroke='white' stroke-width='2'/%3E%3C/svg%3E"
)


def document(title: str, *body: Child, path: str, live: bool) -> str:
    """A whole page.

    Args:
        title: of the page.
        body: what is in it.
        path: of the page, for the link that stops or starts its refreshing.
        live: whether it loads itself anew every REFRESH_SECONDS.
    """
    refresh = (
        element("a", f"Refreshes every {REFRESH_SECONDS} s. Pause", href=f"{path}?live=0")
        if live
        else element("a", "Paused. Refresh again", href=path)
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", http_equiv="refresh", content=REFRESH_SECONDS) if live else None,
        element("title", title),
        element("link", rel="icon", href=_ICON),
        element("style", Markup(_STYLE)),
    )
    page = element(
        "html",
        head,
        element("body", *body, element("footer", element("p", refresh))),
        lang="en",
    )
    return join(Markup("<!doctype html>"), page)
