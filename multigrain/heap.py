"""What the C library keeps of memory that was freed."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Gives it back to the system: compilers free hundreds of megabytes, which a process would
    otherwise hold to its end. Does nothing where the C library is not glibc."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if give_back is not None:
        give_back(0)
