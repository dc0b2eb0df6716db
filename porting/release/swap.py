"""A folder takes another one's place at once: whoever looks, and whenever a crash comes, it is the old or the new.

The new folder, the stage, is made beside the site. What lies in the site and was not written by a build (a CNAME, a
.git) gets a second name in the stage; then the two folders exchange their names in one step, and what is left of the
old one is taken away, file by file, each of them either listed as a build's own or in the new site too. Source of the
step: renameat2(2), RENAME_EXCHANGE; where a file system lacks it, two renames stand in, and `recover` mends what a
crash between them leaves.
"""

from __future__ import annotations

import ctypes
import errno
import filecmp
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from porting.errors import Defect, ErrorKind, PortingError
from porting.release.index import INDEX, SUMS, written

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_LACKING = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM)
_RECORD = frozenset({INDEX, SUMS})
_UNFINISHED = ".unfinished"  # in a stage that is being written: nothing in it is anybody else's


def stage_of(site: Path) -> Path:
    return site.with_name(f".{site.name}.release-stage")


def aside_of(site: Path) -> Path:
    """Where the old site waits while the new one takes its place, if that takes two steps."""
    return site.with_name(f".{site.name}.release-old")


def open_stage(site: Path) -> Path:
    """An empty folder beside the site, to make the next one in."""
    stage = stage_of(site)
    stage.mkdir()
    (stage / _UNFINISHED).touch()
    if site.is_dir():
        shutil.copystat(site, stage)
    return stage


def recover(site: Path) -> list[str]:
    """Clear away what a build left that did not come to its end; returns what the user should hear of."""
    notes = []
    aside = aside_of(site)
    if aside.is_dir() and not site.exists():
        aside.rename(site)
    for left in (aside, stage_of(site)):
        if left.is_dir():
            notes += discard(left, site)
    return notes


def close_stage(stage: Path) -> None:
    """Take an unfinished stage away."""
    if (stage / _UNFINISHED).exists():
        for path in sorted(stage.iterdir(), key=lambda path: path.name == _UNFINISHED):  # the mark last
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        stage.rmdir()


def commit(stage: Path, site: Path) -> list[str]:
    """Let the stage become the site; returns what the user should hear of.

    Raises:
        PortingError: output, where the site holds a file of somebody else's under a name that a build writes.
    """
    _carry(site, stage)
    _sync(stage)
    (stage / _UNFINISHED).unlink()
    if not site.exists():
        stage.rename(site)
    elif not _exchange(stage, site):
        aside = aside_of(site)
        site.rename(aside)
        stage.rename(site)
        aside.rename(stage)
    _sync(site.parent)
    return discard(stage, site) if stage.exists() else []


def same(stage: Path, site: Path) -> bool:
    """Whether every file of the stage is, as the same file, in the site, and no other was written there before."""
    new = {path.relative_to(stage).as_posix() for path in _leaves(stage)} - {_UNFINISHED}
    old = {path for path in written(site) if (site / path).exists()}
    return new == old and all((stage / path).samefile(site / path) for path in new)


def _walk(folder: Path, topdown: bool = True) -> Iterator[tuple[str, list[str], list[str]]]:
    """os.walk, but a folder that cannot be read is an error, not an empty folder."""

    def fail(error: OSError) -> None:
        raise error

    return os.walk(folder, topdown, fail)


def _leaves(folder: Path) -> Iterator[Path]:
    """Everything below that is no folder; links are not followed."""
    for place, folders, files in _walk(folder):
        yield from (Path(place) / name for name in files)
        yield from (Path(place) / name for name in folders if (Path(place) / name).is_symlink())


def _parents(paths: Collection[str]) -> set[str]:
    return {parent.as_posix() for path in paths for parent in PurePosixPath(path).parents}


def _carry(site: Path, stage: Path) -> None:
    """Give what is not a build's own a second name in the stage."""
    if not site.is_dir():
        return
    ours = written(site)
    taken = []
    our_folders = _parents(ours)
    for place, folders, _ in _walk(site):
        for name in folders:
            here = Path(place) / name
            there = stage / here.relative_to(site)
            if not here.is_symlink() and here.relative_to(site).as_posix() not in our_folders and not there.exists():
                there.mkdir(parents=True)
                shutil.copystat(here, there)
    for path in _leaves(site):
        name = path.relative_to(site).as_posix()
        target = stage / name
        if name in ours:
            continue
        if os.path.lexists(target):
            taken.append(Defect(name, "a file that no build wrote", "nothing, or a file of this site's"))
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        _second_name(path, target)
    if taken:
        raise PortingError(ErrorKind.OUTPUT, site, taken, "Move it away, or choose another folder with --out.")


def _second_name(path: Path, target: Path) -> None:
    if path.is_symlink():
        target.symlink_to(path.readlink())
        return
    try:
        os.link(path, target)
    except OSError:  # a file system without links, or somebody else's file
        shutil.copy2(path, target)


def discard(old: Path, site: Path) -> list[str]:
    """Take away what a build left behind, but nothing that is not in the site and that no build wrote.

    What came into the old folder while the new one took its place moves into the site. Returns notes.
    """
    if (old / _UNFINISHED).exists():
        close_stage(old)
        return []
    ours = written(old)
    kept = []
    for folder, folders, files in _walk(old, topdown=False):
        for path in [Path(folder) / name for name in [*files, *folders]]:
            name = path.relative_to(old).as_posix()
            if path.is_dir() and not path.is_symlink():
                with suppress(OSError):  # not empty: something just came into it
                    path.rmdir()
            elif name in _RECORD & ours:
                continue  # last: they say which files are a build's own
            elif name in ours or _same_file(path, site / name):
                path.unlink()
            elif not os.path.lexists(site / name):
                (site / name).parent.mkdir(parents=True, exist_ok=True)
                path.rename(site / name)
            else:
                kept.append(name)
    place = old
    if kept:
        numbered = (site.with_name(f"{site.name}.kept-{number}") for number in range(1, 10_000))
        place = next(found for found in numbered if not found.exists())
        old.rename(place)
    else:
        (old / _UNFINISHED).touch()  # from here on, nothing in it is anybody else's
    for name in sorted(_RECORD & ours):
        (place / name).unlink(missing_ok=True)
    if kept:
        return [f"{', '.join(sorted(kept))}: changed while the site was built; the earlier one is kept in {place}"]
    (old / _UNFINISHED).unlink()
    with suppress(OSError):
        old.rmdir()
    return []


def _same_file(one: Path, other: Path) -> bool:
    if not os.path.lexists(other):
        return False
    if os.path.samestat(one.lstat(), other.lstat()):
        return True
    if one.is_symlink() or other.is_symlink():
        return one.is_symlink() and other.is_symlink() and one.readlink() == other.readlink()
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def _exchange(one: Path, other: Path) -> bool:
    """Two names change places in one step; False where this system or file system has no such step."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _LACKING:
        return False
    raise OSError(code, os.strerror(code))


def _sync(folder: Path) -> None:
    """Bring a folder and all that was written to its file system to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            failed = ctypes.CDLL(None, use_errno=True).syncfs(descriptor)
        except (AttributeError, OSError):
            os.sync()
            return
        if failed:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)
