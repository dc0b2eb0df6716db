"""A downloads page of small files, and a server on this machine that shows it and fails on demand."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def tiny(classes: int = 6, fill: float = 0.0) -> dict[str, Tensor]:
    """As few tensors as are recognised as the weights of xception."""
    return {
        "conv1.weight": torch.full((2, 2), fill),
        "block12.skip.weight": torch.zeros(1),
        "fc.weight": torch.zeros(classes, 2),
        "padding": torch.rand(100_000),
    }


def listed(site: Path, path: str) -> dict[str, Any]:
    content = (site / path).read_bytes()
    return {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def write_index(site: Path, *entries: Mapping[str, Any], sums: bool = True) -> None:
    """The page's index.json and SHA256SUMS."""
    index = {"schema_version": 1, "title": "Weights", "base_url": None, "weights": list(entries)}
    (site / "index.json").write_text(json.dumps(index))
    (site / "SHA256SUMS").unlink(missing_ok=True)
    if sums:
        paths = sorted(path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file())
        (site / "SHA256SUMS").write_text("".join(f"{listed(site, path)['sha256']}  {path}\n" for path in paths))


def offer(site: Path, state: Mapping[str, Tensor], classes: int = 6, **changes: Any) -> dict[str, Any]:
    """An entry of the index, its weights and their manifest written."""
    folder = site / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "new"
    torch.save(dict(state), temporary)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    path = temporary.rename(folder / f"xception-{digest[:8]}.pth")
    variant = {"folded": False, "dtype": "float32", "bn_eps": 1e-3}
    manifest = {
        "schema_version": 1,
        "arch": "xception",
        "num_classes": classes,
        "variant": variant,
        "head": {"kind": "dense", "activation": "softmax"},
        "labels": [f"kind {number}" for number in range(classes)],
        "source": {"synthetic": False},
        "files": [{"name": path.name, "format": "pth", "bytes": path.stat().st_size, "sha256": digest}],
        "preprocessing": {
            "input_size": [3, 71, 71], "interpolation": "bilinear", "crop_pct": 1.0,
            "mean": [0.5] * 3, "std": [0.5] * 3,
        },
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(manifest))
    return {
        "stem": path.stem,
        "arch": "xception",
        "num_classes": classes,
        "variant": variant,
        "synthetic": False,
        "verdict": "verified",
        "content_digest": digest,
        "manifest": listed(site, f"weights/{path.stem}.json"),
        "files": [{"format": "pth", **listed(site, f"weights/{path.name}")}],
        **changes,
    }


def flip(path: Path, position: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1
    path.write_bytes(content)


@dataclass
class Server:
    """What it was asked, and how it is to fail.

    `cuts` are the bytes after which the next answers of weights break off; `ranges` says whether it knows of parts.
    """

    url: str
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    kind: str = ""

    def names(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _ in self.asked]


@contextmanager
def serving(site: Path) -> Iterator[Server]:
    """The folder on a loopback address, for as long as the context lasts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Range")))
            path = site / self.path.lstrip("/").partition("?")[0]
            if not path.is_file():
                self.send_error(404)
                return
            body = path.read_bytes()
            tag = f'"{hashlib.sha256(body).hexdigest()}"'
            start = 0
            if state.ranges and self.headers.get("Range") and self.headers.get("If-Range") == tag:
                start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("Content-Type", state.kind or "application/octet-stream")
            self.send_header("ETag", tag)
            self.end_headers()
            whole = body[start:]
            self.wfile.write(whole[: state.cuts.pop(0)] if state.cuts and path.suffix == ".pth" else whole)

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that hang up are part of the tests."""

    with Quiet(("127.0.0.1", 0), Handler) as httpd:
        state = Server(f"http://127.0.0.1:{httpd.server_port}")
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            httpd.shutdown()
            thread.join()
