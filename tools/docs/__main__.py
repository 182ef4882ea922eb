"""Writes the generated blocks of the documentation and the OpenAPI document, or checks them."""

from __future__ import annotations

import argparse
import sys

from tools.docs import openapi
from tools.docs.blocks import rendered_pages
from tools.docs.markdown import ROOT
from tools.docs.subjects import SUBJECTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    stale = []
    generated = {**rendered_pages(ROOT / "docs", SUBJECTS), openapi.PATH: openapi.document()}
    for page, text in generated.items():
        if page.exists() and page.read_text(encoding="utf-8") == text:
            continue
        stale.append(str(page.relative_to(ROOT)))
        if arguments.write:
            page.write_text(text, encoding="utf-8")
    if stale and arguments.check:
        sys.exit(f"generated documentation is out of date, run `make docs`: {', '.join(stale)}")


if __name__ == "__main__":
    main()
