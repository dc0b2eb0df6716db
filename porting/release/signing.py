"""Signatures over SHA256SUMS in minisign's format, which the minisign tool checks too.

Source: https://jedisct1.github.io/minisign/. The same key and the same list give the same signature: no time is in it.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from porting.errors import Defect, ErrorKind, PortingError
from porting.release.index import SUMS

if TYPE_CHECKING:
    from minisign import SecretKey

MAX_BYTES = 4096  # of a key or a signature
PASSWORD_VARIABLE = "PORTING_SIGN_PASSWORD"


@dataclass(frozen=True)
class Signer:
    """A key that is ready to sign; `public` is what checks it, as one line of base64."""

    key: SecretKey
    public: str

    def sign(self, sums: bytes) -> bytes:
        """The signature of a list of checksums, as a file's bytes."""
        comment = f"signature of {SUMS}"
        return bytes(self.key.sign(sums, untrusted_comment=comment, trusted_comment=f"file:{SUMS}\thashed")) + b"\n"


@contextmanager
def signer(path: Path | None) -> Iterator[Signer | None]:
    """The secret key in a file, decrypted, until the context ends; None without one.

    Its password comes from $PORTING_SIGN_PASSWORD, or is asked for on a terminal.

    Raises:
        PortingError: missing (the file, or the package), corrupt, or a wrong password.
    """
    if path is None:
        yield None
        return
    data = _read(path)
    minisign = _package()
    try:
        key = minisign.SecretKey.from_bytes(data)
    except minisign.Error as error:
        raise PortingError(
            ErrorKind.CORRUPT, path, [f"no minisign secret key: {error}"], "Make one: minisign -G."
        ) from None
    with key:
        try:
            if key.is_encrypted():
                key.decrypt(_password(path))
        except minisign.Error as error:
            raise PortingError(ErrorKind.MISMATCH, path, [str(error)], "Give the key's password.") from None
        yield Signer(key, key.get_public_key().to_base64().decode())


def _password(path: Path) -> str:
    given = os.environ.get(PASSWORD_VARIABLE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise PortingError(
            ErrorKind.MISSING, path, ["its password, and no terminal to ask on"], f"Set {PASSWORD_VARIABLE}."
        )
    return getpass.getpass(f"Password of {path}: ")


def check(sums: bytes, signature: bytes, public_key: Path) -> Defect | None:
    """What is wrong with a signature; None where the key's owner signed these very checksums.

    Raises:
        PortingError: missing or corrupt, about the public key.
    """
    data = _read(public_key)
    minisign = _package()
    try:
        key = (
            minisign.PublicKey.from_bytes(data)
            if b"\n" in data.strip()
            else minisign.PublicKey.from_base64(data.strip())
        )
    except minisign.Error as error:
        raise PortingError(
            ErrorKind.CORRUPT, public_key, [f"no minisign public key: {error}"], "Name a .pub file."
        ) from None
    try:
        key.verify(sums, minisign.Signature.from_bytes(signature))
    except minisign.Error as error:
        return Defect(f"{SUMS}.minisig", str(error), f"a signature of {SUMS} by the key in {public_key}")
    return None


def _package() -> Any:
    try:
        import minisign
    except ImportError:
        raise PortingError(
            ErrorKind.MISSING, "py-minisign", ["the package is not installed"], 'pip install -e ".[sign]"'
        ) from None
    return minisign


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PortingError(ErrorKind.MISSING, path, [error.strerror or str(error)], "Name the key's file.") from None
    if len(data) > MAX_BYTES:
        raise PortingError(ErrorKind.CORRUPT, path, [f"more than {MAX_BYTES} bytes: no key"], "Name the key's file.")
    return data
