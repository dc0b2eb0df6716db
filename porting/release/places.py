"""Where a site is: a folder here, or an address. Either gives a file's bytes in pieces, no more than asked for."""

from __future__ import annotations

import http.client
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

_PIECE = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte
_ATTEMPTS = 3


class UnreadableError(Exception):
    """A file of a site that is not there or does not come; its text says why."""


class Place(Protocol):
    """A site's files, by their paths relative to its index."""

    name: str

    def pieces(self, path: str, limit: int) -> Iterator[bytes]:
        """A file's bytes; at most one piece beyond `limit` of them.

        Raises:
            UnreadableError: there is none, or it does not come.
        """

    def found(self, folder: str) -> set[str]:
        """Every path in a folder of the site, as far as one can tell."""


class Folder:
    """A site on this machine."""

    def __init__(self, path: Path) -> None:
        self.root, self.name = path, str(path)

    def pieces(self, path: str, limit: int) -> Iterator[bytes]:
        here = self.root
        try:
            for part in path.split("/"):
                here = here / part
                if here.is_symlink():  # it could lead out of the site, and no build makes one
                    raise UnreadableError("a symbolic link")
            if not stat.S_ISREG(here.stat().st_mode):
                raise UnreadableError("no plain file")
            with here.open("rb") as file:
                taken = 0
                while taken <= limit and (piece := file.read(_PIECE)):
                    taken += len(piece)
                    yield piece
        except FileNotFoundError:
            raise UnreadableError("missing") from None
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from None

    def found(self, folder: str) -> set[str]:
        root = self.root / folder
        return {
            path.relative_to(self.root).as_posix() for path in root.rglob("*") if path.is_symlink() or not path.is_dir()
        }


class Remote:
    """A site at an http(s) address; redirects lead to http(s) alone, and what comes is checked like everything else."""

    def __init__(self, address: str) -> None:
        self.name = address if address.endswith("/") else f"{address}/"
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.UnknownHandler,
        ):
            self._opener.add_handler(handler())

    def pieces(self, path: str, limit: int) -> Iterator[bytes]:
        # Once bytes were handed on, a broken line is the file's fault as far as this check can tell.
        for attempt in range(1, _ATTEMPTS + 1):
            taken = 0
            try:
                request = urllib.request.Request(f"{self.name}{path}", headers={"Accept-Encoding": "identity"})
                with closing(self._opener.open(request, timeout=_TIMEOUT)) as response:
                    while taken <= limit and (piece := response.read(_PIECE)):
                        taken += len(piece)
                        yield piece
                return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 or attempt == _ATTEMPTS:
                    raise UnreadableError("missing" if error.code in (404, 410) else f"HTTP {error.code}") from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                if taken or attempt == _ATTEMPTS:
                    raise UnreadableError(f"does not come: {getattr(error, 'reason', None) or error}") from None

    def found(self, folder: str) -> set[str]:
        return set()  # a web server need not tell
