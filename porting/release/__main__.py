"""`python -m porting.release`: build a downloads page, check one, or look at one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from porting import terminal


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m porting.release",
        description="Publish ported weights: a static downloads page with checksums, model cards and parity reports.",
        epilog="Exit codes: 0 done, 1 a check failed or the input is bad, 2 usage.",
    )
    commands = result.add_subparsers(dest="command", required=True)
    about = "write the site of all weights in a folder, at once or not at all"
    build = commands.add_parser("build", help=about, description=f"{about.capitalize()}.")
    add = build.add_argument
    add("--checkpoints", default="checkpoints", metavar="DIR", help="weights and manifests (default: %(default)s)")
    add("--out", required=True, metavar="SITE", help="the site's folder; what no build wrote stays in it")
    add("--base-url", metavar="URL", help="where the site will be, for the code on its pages")
    add("--title", default="Xception weights", help="heading of the page (default: %(default)s)")
    add(
        "--allow-unverified", action="store_true", help="publish weights that nobody compared with TensorFlow, labelled"
    )
    add("--allow-synthetic", action="store_true", help="publish random weights, labelled")
    add("--copy", action="store_true", help="copy weights, where a hard link would do")
    add("--sign-key", metavar="FILE", help="sign SHA256SUMS with this minisign secret key")
    about = "check a site end to end: every file, list, manifest and link"
    verify = commands.add_parser("verify", help=about, description=f"{about.capitalize()}.")
    verify.add_argument("site", metavar="SITE|URL", help="its folder, or its http(s) address")
    verify.add_argument("--public-key", metavar="FILE", help="SHA256SUMS must be signed by this minisign key's owner")
    about = "show a site in a browser on this machine"
    serve = commands.add_parser("serve", help=about, description=f"{about.capitalize()}.")
    serve.add_argument("site", metavar="SITE")
    serve.add_argument("--port", type=int, default=8000, help="0 takes any that is free (default: %(default)s)")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Do as the arguments say; returns the exit code."""
    options = parser()
    arguments = options.parse_args(argv)
    if arguments.command == "serve" and not 0 <= arguments.port < 1 << 16:
        options.error(f"argument --port: expected 0 to 65535, found {arguments.port}")
    if arguments.command == "build" and arguments.base_url is not None:
        from porting.release.snippets import is_address

        if not is_address(arguments.base_url):
            options.error(f"argument --base-url: expected a plain http(s) address, found {arguments.base_url!r}")
    chosen = {"build": _build, "verify": _verify, "serve": _serve}[arguments.command]
    return terminal.run(lambda: chosen(arguments))


def _build(arguments: argparse.Namespace) -> int:
    from porting.release.build import build

    bars = terminal.Bars()
    try:
        built = build(
            Path(arguments.checkpoints),
            Path(arguments.out),
            base_url=arguments.base_url,
            title=arguments.title,
            allow_unverified=arguments.allow_unverified,
            allow_synthetic=arguments.allow_synthetic,
            copy=arguments.copy,
            sign_key=Path(arguments.sign_key) if arguments.sign_key else None,
            progress=bars,
        )
    finally:
        bars.close()
    for text in built.notes:
        terminal.note(f"note: {text}")
    terminal.note(
        f"weights: {built.weights}, files: {built.files}" + ("" if built.changed else "; nothing has changed")
    )
    print(built.site)
    return terminal.DONE


def _verify(arguments: argparse.Namespace) -> int:
    from porting.release.check import verify

    bars = terminal.Bars()
    try:
        found = verify(arguments.site, Path(arguments.public_key) if arguments.public_key else None, bars)
    finally:
        bars.close()
    count = len(found.differences)
    print(f"failed: {found.place}: {count} difference{'s' * (count > 1)}" if count else f"verified: {found.place}")
    for defect in found.differences:
        print(f"  {defect}")
    terminal.note(
        f"weights: {found.weights}, files: {found.files}, bytes: {found.bytes:,}; signature: {found.signature}"
    )
    return terminal.FAILED if found.differences else terminal.DONE


def _serve(arguments: argparse.Namespace) -> int:
    from porting.release.serve import address, server

    with server(Path(arguments.site), arguments.port) as running:
        print(address(running), flush=True)
        terminal.note("Ctrl-C ends it.")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            return terminal.DONE
    return terminal.DONE


if __name__ == "__main__":
    sys.exit(main())
