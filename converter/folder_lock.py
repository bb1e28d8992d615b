"""Folder lock: one run at a time writes into a folder. Used by awq_checkpoint.py and kv_calibration.py."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from backend.errors import CheckpointError


def lock_folder(folder: Path, option: str) -> int:
    """A file descriptor that holds the folder for this process, which may end in any way, until it is closed.

    option  with which another folder is chosen
    Raises CheckpointError where another process holds it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise CheckpointError(f"{folder} is being written by another run; wait until that has ended, or choose another "
                              f"{option}") from None
    except OSError:  # a file system without locks
        pass
    return descriptor
