"""Near copies in an index: all pairs of similar items, their clusters, and a page to look at them.

Every pair is found, and the similarities are exact. Near copies are computed where the client runs:
it reads all vectors of the index into a temporary file.
"""

from __future__ import annotations

import base64
import csv
import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from multigrain.text import printable
from multigrain_client.errors import FieldViolation, MissingPackage
from multigrain_client.images import FloatArray
from multigrain_client.index_items import IndexItem
from multigrain_client.json_format import invalid

if TYPE_CHECKING:
    from multigrain.index.clusters import Cluster
    from multigrain.index.pairs import Pairs

PAIRS, CLUSTERS, REPORT = "pairs.csv", "clusters.csv", "report.html"

_THUMBNAIL = 160  # pixels
_SHOWN_CLUSTERS = 500
_SHOWN_MEMBERS = 24

# Called with the fraction done, 0 to 1.
OnFraction = Callable[[float], None]


@dataclass(frozen=True)
class NearCopies:
    """The near copies of an index.

    Attributes:
        items: all items of the index, in order of their ids.
        pairs: rows of ``items``, and their similarities.
        clusters: of the pairs, by complete linkage: every two members are a pair.
    """

    items: Sequence[IndexItem]
    pairs: Pairs
    clusters: Sequence[Cluster]

    def is_equal(self, first: int, second: int) -> bool:
        """Whether the files of two items have the same bytes."""
        one, other = self.items[first].sha256, self.items[second].sha256
        return bool(one) and one == other


def find(
    items: Iterable[IndexItem], min_similarity: float, on_fraction: OnFraction | None = None
) -> NearCopies:
    """Finds all pairs of items that are at least so similar, and clusters them.

    Args:
        items: with vectors.
        min_similarity: above 0, at most 1.
        on_fraction: called while the pairs are searched for.

    Raises:
        InvalidRequest: for another similarity.
        MissingPackage: without threadpoolctl.
    """
    try:
        from multigrain.index.clusters import complete_link
        from multigrain.index.pairs import Pairs, PairSearch
    except ImportError as error:
        raise MissingPackage(
            f"near copies need {error.name}: pip install 'multigrain[near-copies]'"
        ) from error
    if not 0.0 < min_similarity <= 1.0:
        raise invalid([FieldViolation("min_similarity", "must be above 0 and at most 1")])
    kept: list[IndexItem] = []
    with tempfile.TemporaryFile() as file:
        size = _write_vectors(items, kept, file)
        vectors = np.empty((0, 1), np.float32)
        if kept:
            vectors = np.memmap(file, np.float32, "r", shape=(len(kept), size))
        search = PairSearch(vectors, min_similarity)
        parts = []
        for number in range(search.stripes):
            parts.append(search.stripe(number))
            if on_fraction is not None:
                on_fraction(search.fraction_done(number + 1))
    pairs = Pairs.join(parts)
    return NearCopies(kept, pairs, complete_link(pairs))


def write(found: NearCopies, out: Path, root: Path | None = None) -> list[Path]:
    """Writes ``pairs.csv``, ``clusters.csv`` and ``report.html`` into a folder.

    Args:
        found: the near copies.
        out: the folder; created if it does not exist.
        root: folder of the images' paths, for their pictures in the report; None = no pictures.

    Returns:
        the files.

    Raises:
        OSError: if they cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / PAIRS, out / CLUSTERS, out / REPORT]
    with files[0].open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("first", "second", "similarity", "equal_bytes"))
        for first, second, similarity in _each_pair(found.pairs):
            equal = int(found.is_equal(first, second))
            rows.writerow(
                (found.items[first].id, found.items[second].id, f"{similarity:.6f}", equal)
            )
    with files[1].open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("cluster", "id", "path", "least_similarity"))
        for number, cluster in enumerate(found.clusters, 1):
            for row in cluster.members:
                item = found.items[row]
                rows.writerow((number, item.id, item.path, f"{cluster.similarity:.6f}"))
    files[2].write_text(report(found, root), encoding="utf-8")
    return files


def report(found: NearCopies, root: Path | None = None) -> str:
    """A page with the clusters, the largest first, that needs no other file."""
    shown = found.clusters[:_SHOWN_CLUSTERS]
    more = len(found.clusters) - len(shown)
    sections = "".join(_section(found, number, one, root) for number, one in enumerate(shown, 1))
    images = sum(len(cluster.members) for cluster in found.clusters)
    summary = (
        f"{len(found.items):,} images, {len(found.pairs):,} pairs, {len(found.clusters):,} "
        f"clusters with {images:,} images"
    )
    note = f"<p>{more:,} more clusters are in {CLUSTERS}.</p>" if more else ""
    empty = "" if shown else "<p>There are no near copies above this similarity.</p>"
    return _PAGE.format(summary=summary, sections=sections, note=note, empty=empty)


def _write_vectors(items: Iterable[IndexItem], kept: list[IndexItem], file: BinaryIO) -> int:
    """Writes the vectors of items to a file; returns their size."""
    size = 0
    for item in items:
        vector: FloatArray | None = item.vector
        if vector is None:
            raise ValueError(f"item {item.id!r} has no vector")
        size = len(vector)
        file.write(vector.astype(np.float32).tobytes())
        kept.append(
            IndexItem(item.id, item.path, item.labels, item.tags, item.attributes, item.sha256)
        )
    file.flush()
    return size


def _each_pair(pairs: Pairs) -> Iterable[tuple[int, int, float]]:
    order = np.argsort(-pairs.similarity, kind="stable")
    return zip(
        pairs.first[order].tolist(),
        pairs.second[order].tolist(),
        pairs.similarity[order].tolist(),
        strict=True,
    )


def _section(found: NearCopies, number: int, cluster: Cluster, root: Path | None) -> str:
    rows = cluster.members[:_SHOWN_MEMBERS]
    more = len(cluster.members) - len(rows)
    equal = all(found.is_equal(rows[0], row) for row in cluster.members[1:])
    kind = "equal files" if equal else f"least similarity {cluster.similarity:.4f}"
    figures = "".join(_figure(found.items[row], root) for row in rows)
    rest = f"<p>and {more:,} more</p>" if more else ""
    return (
        f"<section><h2>{number}. {len(cluster.members)} images <small>{kind}</small></h2>"
        f'<div class="images">{figures}</div>{rest}</section>'
    )


def _figure(item: IndexItem, root: Path | None) -> str:
    name = escape(printable(item.path or item.id))
    picture = _thumbnail(root / item.path) if root is not None and item.path else ""
    image = f'<img src="{picture}" alt="">' if picture else '<div class="none">no picture</div>'
    return f'<figure>{image}<figcaption title="{name}">{name}</figcaption></figure>'


def _thumbnail(path: Path) -> str:
    """A small picture of an image file as a data URL; empty if it cannot be read."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        return ""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (_THUMBNAIL, _THUMBNAIL))
            small = ImageOps.exif_transpose(image).convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            file = io.BytesIO()
            small.save(file, "JPEG", quality=80)
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Near copies</title>
<style>
:root {{ color-scheme: light dark; --line: #8884; }}
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 16px; }}
h1 {{ font-size: 22px; margin: 8px 0; }}
h2 {{ font-size: 15px; margin: 0 0 8px; }}
small {{ font-weight: normal; opacity: .7; margin-left: 8px; }}
section {{ border-top: 1px solid var(--line); padding: 14px 0; }}
.images {{ display: grid; gap: 10px;
  grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); }}
figure {{ margin: 0; min-width: 0; }}
img, .none {{ width: 100%; aspect-ratio: 1; object-fit: contain; background: #8882;
  border-radius: 6px; }}
.none {{ display: grid; place-items: center; opacity: .6; font-size: 13px; }}
figcaption {{ font-size: 12px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
  direction: rtl; text-align: left; }}
</style></head><body>
<h1>Near copies</h1>
<p>{summary}. Every two images of a cluster are similar.</p>
{empty}{sections}{note}
</body></html>
"""
