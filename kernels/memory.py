"""Where the memory of temporary tensors comes from."""

import torch


def keep_freed_memory() -> None:
    """Makes glibc's malloc hand freed tensors of up to 32 MB out again, instead of giving them back to the system.

    What is given back has to be mapped anew, page by page, which costs several times what is computed in it. glibc
    gives back every block above a threshold that starts at 128 kB and rises, to 32 MB at most, to the largest such
    block that was freed; free memory at the end of the heap it keeps up to twice that. So it is shown one block of that
    size, which is never touched. On other systems nothing happens.
    """
    torch.empty((32 << 20) - (64 << 10), dtype=torch.uint8, device="cpu")
