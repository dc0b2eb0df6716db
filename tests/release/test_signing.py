"""SHA256SUMS signed in minisign's format, and what a wrong signature, key or password comes to."""

from __future__ import annotations

from pathlib import Path

import minisign
import pytest

from porting import PortingError
from porting.release import check, signing
from porting.release.build import build
from tests.release import samples

# The example of py-minisign's own documentation, which the minisign tool made.
PUBLIC = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
SIGNATURE = b"""untrusted comment: signature from minisign secret key
RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=
trusted comment: timestamp:1555779966\tfile:test
QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==
"""


def keys(folder: Path, name: str = "release", password: str = "") -> tuple[Path, Path]:
    """A secret and a public key, in files as the minisign tool writes them."""
    pair = minisign.KeyPair.generate()
    secret, public = folder / f"{name}.key", folder / f"{name}.pub"
    public.write_bytes(bytes(pair.public_key) + b"\n")
    if password:
        pair.secret_key.encrypt(password, opslimit=32768, memlimit=1 << 20)
    secret.write_bytes(bytes(pair.secret_key) + b"\n")
    return secret, public


@pytest.fixture
def ported(weights: Path) -> Path:
    samples.add(weights, "xception41")
    return weights


def test_a_signature_of_the_minisign_tool_is_understood(tmp_path: Path) -> None:
    key = tmp_path / "test.pub"
    key.write_text(PUBLIC)
    assert signing.check(b"test", SIGNATURE, key) is None
    assert signing.check(b"tesT", SIGNATURE, key) is not None
    key.write_text(f"untrusted comment: minisign public key\n{PUBLIC}\n")
    assert signing.check(b"test", SIGNATURE, key) is None


def test_a_signed_site_passes_with_its_key_alone(ported: Path, tmp_path: Path) -> None:
    secret, public = keys(tmp_path)
    _, another = keys(tmp_path, "another")
    site = build(ported, tmp_path / "site", sign_key=secret).site
    found = check.verify(str(site), public)
    assert (found.differences, found.signature) == ((), "checked")
    assert check.verify(str(site)).signature == "there, but no public key was given"
    assert "incompatible key" in str(check.verify(str(site), another).differences)
    assert public.read_text().splitlines()[1] in (site / "index.html").read_text(encoding="utf-8")
    before = (site / "SHA256SUMS.minisig").read_bytes()
    assert not build(ported, site, sign_key=secret).changed
    assert (site / "SHA256SUMS.minisig").read_bytes() == before, "no time is in it"


def test_what_is_changed_after_signing_is_seen(ported: Path, tmp_path: Path) -> None:
    secret, public = keys(tmp_path)
    site = build(ported, tmp_path / "site", sign_key=secret).site
    signature = site / "SHA256SUMS.minisig"
    whole = signature.read_bytes()
    signature.write_bytes(whole.replace(b"file:SHA256SUMS", b"file:SHA256SUMs"))
    assert "signature verification failed" in str(check.verify(str(site), public).differences[0])
    signature.write_bytes(b"nothing\n")
    assert "expected a signature of SHA256SUMS" in str(check.verify(str(site), public).differences[0])
    signature.unlink()
    assert str(check.verify(str(site), public).differences[0]).startswith("SHA256SUMS.minisig: expected a signature")
    signature.write_bytes(whole)
    (site / "SHA256SUMS").write_bytes((site / "SHA256SUMS").read_bytes().replace(b"0", b"1"))
    assert "signature verification failed" in str(check.verify(str(site), public).differences[0])


def test_a_build_without_the_key_keeps_a_signature_as_long_as_it_is_right(ported: Path, tmp_path: Path) -> None:
    site = build(ported, tmp_path / "site").site
    secret, public = keys(tmp_path)
    with minisign.SecretKey.from_file(secret) as key:  # as `minisign -Sm SHA256SUMS` does, elsewhere
        (site / "SHA256SUMS.minisig").write_bytes(bytes(key.sign((site / "SHA256SUMS").read_bytes())) + b"\n")
    assert not build(ported, site).changed
    assert check.verify(str(site), public).differences == ()
    samples.add(ported, "xception65", 1)
    assert (
        "the site is no longer signed: SHA256SUMS has changed, and there was no --sign-key" in build(ported, site).notes
    )
    assert not (site / "SHA256SUMS.minisig").exists()


def test_a_password_comes_from_the_environment(ported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, public = keys(tmp_path, password="correct horse")
    monkeypatch.delenv(signing.PASSWORD_VARIABLE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(PortingError, match=f"Set {signing.PASSWORD_VARIABLE}"):
        build(ported, tmp_path / "site", sign_key=secret)
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "battery staple")
    with pytest.raises(PortingError, match="wrong password"):
        build(ported, tmp_path / "site", sign_key=secret)
    assert not (tmp_path / "site").exists()
    monkeypatch.setenv(signing.PASSWORD_VARIABLE, "correct horse")
    assert check.verify(str(build(ported, tmp_path / "site", sign_key=secret).site), public).differences == ()


def test_what_is_no_key_is_refused_before_any_work(ported: Path, tmp_path: Path, mixed_site: Path) -> None:
    wrong = tmp_path / "wrong"
    for data in (b"", b"x\ny\n", b"\0" * 5000):
        wrong.write_bytes(data)
        with pytest.raises(PortingError, match="wrong: corrupt"):
            build(ported, tmp_path / "site", sign_key=wrong)
        with pytest.raises(PortingError, match="wrong: corrupt"):
            signing.check(b"", SIGNATURE, wrong)
    with pytest.raises(PortingError, match="none: missing"):
        build(ported, tmp_path / "site", sign_key=tmp_path / "none")
    assert not (tmp_path / "site").exists()


def test_without_the_package_one_is_told_what_to_install(
    ported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, _ = keys(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "minisign", None)
    with pytest.raises(PortingError, match=r"pip install -e \".\[sign\]\""):
        build(ported, tmp_path / "site", sign_key=secret)
    assert build(ported, tmp_path / "site").changed, "nothing else needs it"
