"""A store as it lies on disk, opened to be looked at; nothing is written."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from sglang_ext.cache.store.admission import WriteHours
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.recovery import Recovered, recover
from sglang_ext.cache.store.segment_files import SegmentFiles
from sglang_ext.cache.store.segments import Segments, Space

__all__ = ["Survey", "survey"]

_ANY_SIZE_BYTES = 1 << 62


@dataclass(frozen=True)
class Survey:
    """What there is.

    Attributes:
        segments: with their slots in use.
        unusable: numbers of segments that are not, each with what is wrong.
        recovered: the pages, and what does not match.
    """

    segments: Segments
    unusable: list[tuple[int, str]]
    recovered: Recovered


@contextlib.contextmanager
def survey(folder: StoreFolder, *, direct: bool, threads: int) -> Iterator[Survey]:
    """Look at a store for the time of a ``with``.

    Args:
        folder: of the store, loaded.
        direct: ask for O_DIRECT.
        threads: as for `recover`.

    Raises:
        OSError: the disk fails outside of a page.
        StoreFolderError: a file is a link, somebody else's, or open to others.
    """
    files = SegmentFiles(folder, direct=direct, read_only=True)
    good, unusable = files.open_all()
    segments = Segments(Space(_ANY_SIZE_BYTES))
    for segment, size in good:
        segments.insert(segment, size)
    try:
        recovered = recover(folder, segments, WriteHours(None), threads=threads)
        for number in files.mended:
            name = str(folder.segment_path(number).relative_to(folder.path))
            recovered.damage.append((name, "its header is damaged; a server will mend it"))
        yield Survey(segments, unusable, recovered)
    finally:
        files.close_all(segments)
