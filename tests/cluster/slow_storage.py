"""A storage that a run may name as ``slow://...``: a folder to which each file takes long to be written.

It is no part of Esper: the suite puts it into the pods by ConfigMaps, as anybody may add a storage to fsspec.
"""

import os
import time
from typing import Any

from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem


class SlowFileSystem(DirFileSystem):  # type: ignore[misc]
    """Files below ``SLOW_FOLDER``; each takes ``SLOW_SECONDS`` to be written."""

    protocol = "slow"

    def __init__(self, **options: Any) -> None:
        super().__init__(os.environ["SLOW_FOLDER"], LocalFileSystem(auto_mkdir=True), **options)

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        """Write a file, slowly."""
        time.sleep(float(os.environ["SLOW_SECONDS"]))
        super().pipe_file(path, value, **options)
