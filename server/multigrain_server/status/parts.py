"""Pieces that several pages use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from multigrain_server.jobs.job import Job
from multigrain_server.status.markup import Child, Markup, element, join

_LONGEST = 240


def shortened(value: str, longest: int = _LONGEST) -> str:
    """The beginning of a text that a client may have made as long as it liked."""
    return value if len(value) <= longest else value[: longest - 1] + "…"


def section(title: str, *children: Child, note: str = "") -> Markup:
    """A part of a page under a heading, which names it to a screen reader."""
    name = title.lower().replace(" ", "-")
    return element(
        "section",
        element("h2", title, element("small", note) if note else None, id=name),
        *children,
        aria_labelledby=name,
    )


def badge(state: str) -> Markup:
    """A state: a word, and a colour beside it."""
    return element("span", state.lower(), class_=f"badge {state.lower()}")


def job_link(job: Job) -> Markup:
    """The job's name, or its id, as a link to its page."""
    return element("a", shortened(job.request.name or job.job_id, 80), href=job_path(job.job_id))


def job_path(job_id: str) -> str:
    return f"/jobs/{quote(job_id, safe='')}"


@dataclass(frozen=True)
class Column:
    """Of a table; ``number``: its cells are numbers, and stand below each other."""

    name: str
    number: bool = False


def table(caption: str, columns: Sequence[Column], rows: Iterable[Sequence[Child]]) -> Markup:
    """A table that scrolls by itself where the screen is narrow. The first cell of a row names
    it; the caption is for screen readers."""
    kinds = ["number" if column.number else None for column in columns]
    head = [
        element("th", column.name, scope="col", class_=kind)
        for column, kind in zip(columns, kinds, strict=True)
    ]
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(
                element("td", cell, class_=kind)
                for cell, kind in zip(row[1:], kinds[1:], strict=True)
            ),
        )
        for row in rows
    ]
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", *head)),
            element("tbody", *body),
        ),
        class_="scroll",
        role="region",
        aria_label=caption,
        tabindex=0,
    )


def columns(*names: str) -> list[Column]:
    """Columns by name; "#" before one makes it a column of numbers."""
    return [Column(name.removeprefix("#"), name.startswith("#")) for name in names]


def meter(label: str, share: float, said: str) -> Markup:
    """A bar of what is used, with the figures as text."""
    share = min(1.0, max(0.0, share))
    return element(
        "div",
        element("dt", label),
        element(
            "dd",
            element("meter", said, value=f"{share:.3f}", high=0.85, max=1, aria_label=label),
            element("span", said),
        ),
        class_="meter",
    )


def facts(pairs: Iterable[tuple[str, Child]]) -> Markup:
    """Names and values."""
    return element(
        "dl",
        *(
            element("div", element("dt", name), element("dd", value))
            for name, value in pairs
            if value not in ("", None)
        ),
        class_="facts",
    )


def more(number: int, what: str) -> Markup:
    """Says that a list was cut; nothing if it was not."""
    return element("p", f"and {number} more {what}", class_="muted") if number else join()
