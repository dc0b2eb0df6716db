"""A preview of a site on this machine alone."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from porting.errors import Defect, ErrorKind, PortingError
from porting.release.index import PAGE


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = {  # noqa: RUF012 - as the class above has it
        ".html": "text/html; charset=utf-8",
        ".json": "application/json",
        ".md": "text/markdown; charset=utf-8",
        "": "application/octet-stream",
    }

    def list_directory(self, path: Any) -> None:
        self.send_error(HTTPStatus.NOT_FOUND)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")  # a preview shows what is there now
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nobody asked for a log."""


def server(site: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server of a site on the loopback interface, bound and not yet running; port 0 takes any that is free.

    Raises:
        PortingError: missing, where there is no site; output, where the port is taken.
    """
    if not (site / PAGE).is_file():
        raise PortingError(ErrorKind.MISSING, site, [Defect(PAGE, "missing")], "Build the site first: release build.")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(_Handler, directory=str(site.absolute())))
    except OSError as error:
        raise PortingError(
            ErrorKind.OUTPUT, site, [f"port {port}: {error.strerror or error}"], "Choose another one with --port."
        ) from None


def address(running: ThreadingHTTPServer) -> str:
    """Where a server's site is."""
    return f"http://127.0.0.1:{running.server_address[1]}/"
