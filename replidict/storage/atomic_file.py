"""Creates a file that appears under its name only when it is complete, and never replaces another one."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replidict.storage.directory import remove, sync


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Path]]:
    """A context manager that gives the path at which to write and sync the file, and the path that it then gets.

    Raises `FileExistsError`, also at the end; `ValueError` if the path can't be that of a file; and `OSError`.
    """
    target = _target(path)
    if os.path.lexists(target):
        raise _exists(target)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        yield temporary, target
        _publish(temporary, target)
    finally:
        remove(temporary)


def _target(path: str | os.PathLike[str]) -> Path:
    try:
        target = Path(path)
    except TypeError:
        target = Path()
    if not target.name:
        raise ValueError(
            f"path={os.fspath(path) if isinstance(path, Path) else path!r}: must be the path of a file to be made"
        )
    return target.absolute()


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "a backup never replaces a file: give another path, or remove it", str(target))


def _publish(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)  # unlike a rename, this never replaces what somebody else has made meanwhile
    except FileExistsError:
        raise _exists(target) from None
    except OSError:  # a file system without links
        if os.path.lexists(target):
            raise _exists(target) from None
        temporary.rename(target)
    sync(target.parent)
