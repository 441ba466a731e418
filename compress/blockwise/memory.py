"""Memory that is given back when it is freed."""

import ctypes
import sys

M_MMAP_THRESHOLD = -3  # of glibc's <malloc.h>
LARGE_BYTES = 4 << 20  # smaller ones come and go by the thousand: mapping each anew would take a third of the time


def return_large_blocks() -> None:
    """Have glibc map large blocks one by one, so that a freed one leaves the process at once.

    By default the threshold grows with what is freed, up to 32 MB, and activations of several sizes leave a heap full of
    holes. Elsewhere nothing is done.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
