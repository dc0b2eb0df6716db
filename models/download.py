"""Published weights from a URL into PyTorch's own cache folder: resumed, checked, and never half written."""

from __future__ import annotations

import hashlib
import re
import urllib.parse
from pathlib import Path

from models.connection import Fault, Retry, TransferError, document
from models.errors import ModelError
from models.scratch import give_name, scratch_file
from models.transfer import Transfer, forget_lock, locked, transfer_checked

LARGEST_DOCUMENT = 16 << 20  # bytes of a manifest or an index; those of 500 files have less than one megabyte
_RETRY = Retry()
_SHORT_RETRY = Retry(attempts=2, pause=0.5, timeout=15.0)  # of documents, which someone waits for
NOT_THERE = (403, 404, 410)  # what servers say of a file that they do not have

# torch.hub's convention: the digest's first characters end the name. Eight are ours; older published files have nine.
DIGEST_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")


def is_url(text: str) -> bool:
    """Whether `text` is an address and not a path."""
    return text.startswith(("http://", "https://"))


def cache_folder() -> Path:
    """Where torch.hub keeps weights: `checkpoints` in $TORCH_HOME/hub, or as `torch.hub.set_dir` says."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def sha256(path: Path) -> str:
    """The digest that `sha256sum` prints."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def fetch_document(url: str, limit: int = LARGEST_DOCUMENT) -> bytes:
    """A short document, whole, in memory.

    Raises:
        TransferError: as `models.connection.document`.
    """
    return document(url, limit, _SHORT_RETRY)


def cannot(error: TransferError) -> ModelError:
    """What a user is told of a file that did not come."""
    again = "run this again to go on from there, or " if error.again else ""
    return ModelError(f"{error.url}: cannot be fetched: {error.text}; {again}fetch it by hand and pass its path")


def write_whole(path: Path, content: bytes) -> None:
    """Let a small file appear under its name, whole.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with scratch_file(path.parent) as file:
        file.write(content)
        file.flush()
        Path(file.name).chmod(0o644)
        give_name(file, path)


def receive(url: str, target: Path, size: int | None, digest: str | None, listed_in: str) -> None:
    """Have the file at `url` as `target`, unless it is there: downloaded beside it, checked, and only then named.

    What is there already is not read: whoever opens it checks it.

    Args:
        size: bytes that it must have, where they are known.
        digest: its sha256, or the first digits of it, where they are known.
        listed_in: where size and digest are from, for messages.

    Raises:
        ModelError: it cannot be fetched, or is another file than was listed.
        OSError: the folder cannot be written.
    """

    def check(part: Path) -> None:
        found = sha256(part)
        length = part.stat().st_size
        claims = [("size", f"{length} bytes", f"{size} bytes", size in (None, length) and length > 0)]
        if digest:
            claims.append(("sha256", found[: max(8, len(digest))], digest, found.startswith(digest)))
        for what, actual, expected, right in claims:
            if not right:
                raise ModelError(
                    f"{url}: {what}: expected {expected} (from {listed_in}), found {actual}; "
                    "the file there is damaged or was changed, and is not used"
                )

    lock = _lock(target)
    if target.exists():
        forget_lock(lock)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with locked(lock):
        if target.exists():
            return
        try:
            transfer_checked(Transfer(url, part, size), check, _RETRY, None)
        except TransferError as error:
            raise cannot(error) from None
        part.replace(target)


def _lock(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _keep_manifest(url: str, target: Path) -> None:
    """Bring the manifest at `url`; without one, the weights can do."""
    try:
        content = fetch_document(url)
    except TransferError as error:
        web_page = error.kind is Fault.UNSUPPORTED and error.subject == "Content-Type"  # what some answer for no file
        if error.status in NOT_THERE or web_page:
            return
        raise cannot(error) from None
    write_whole(target, content)


def fetch(url: str) -> Path:
    """The file at `url`, from the cache or the network; its manifest comes with it where the server has one.

    A name that ends in a digest is checked against it before the file is kept, and is its name in the cache; the others
    lie in folders named after their addresses, since many files are called `model.pth`.

    Raises:
        ModelError: no such file, no network, the transfer was cut short, or the digest differs.
    """
    parts = urllib.parse.urlsplit(url)
    name = urllib.parse.unquote(parts.path).rpartition("/")[2]
    if not name or name.startswith(".") or not name.isprintable() or "\\" in name:
        raise ModelError(f"{url}: expected the address of a file")
    in_name = DIGEST_IN_NAME.search(name)
    folder = cache_folder()
    target = (folder if in_name else folder / hashlib.sha256(url.encode()).hexdigest()[:16]) / name
    if target.exists():
        forget_lock(_lock(target))
        return target
    manifest_url = parts._replace(path=parts.path.removesuffix(Path(name).suffix) + ".json").geturl()
    try:
        _keep_manifest(manifest_url, target.with_suffix(".json"))
        receive(url, target, None, in_name.group(1) if in_name else None, "its name")
    except OSError as error:
        raise cache_error(error) from error
    return target


def cache_error(error: OSError) -> ModelError:
    """What a user is told of a cache that cannot be written."""
    reason = error.strerror or str(error)
    return ModelError(f"{cache_folder()}: the cache cannot be written: {reason}; name another folder in TORCH_HOME")
