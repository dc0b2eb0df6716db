"""The manifest: its schema, what survives a second port of the same file, and labels."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import porting
from porting import manifest as module
from porting.errors import ErrorKind, PortingError
from porting.manifest import SCHEMA_VERSION, UNVERIFIED, VERIFIED, manifest_path, merged, read_labels, read_manifest
from porting.parity import Float32Result, LayerResult, Trace
from porting.proof import Proof
from porting.runs import Run

# Every field that a manifest has, and its type; other commands, and `models`, read them.
SCHEMA: dict[str, Any] = {
    "schema_version": int,
    "arch": str,
    "num_classes": int,
    "variant": {"folded": bool, "dtype": str, "bn_eps": float},
    "head": {"kind": str, "activation": (str, type(None)), "background_dropped": bool, "layers": [str]},
    "labels": (list, type(None)),
    "source": {"kind": str, "name": str, "digest": str, "synthetic": bool},
    "mapped": int,
    "unread": [{"name": str, "reason": str}],
    "parity": {"verdict": str},
    "notes": [str],
    "files": [{"name": str, "format": str, "bytes": int, "sha256": str}],
    "content_digest": str,
    "versions": dict,
    "preprocessing": {
        "input_size": [int],
        "interpolation": str,
        "crop_pct": float,
        "mean": [float],
        "std": [float],
        "source": str,
    },
    "licence": str,
    "upstream": str,
}
PARITY = {
    "verdict": str,
    "reference": str,
    "precision": str,
    "runs": [{"size": [int], "output_stride": int, "input": str}],
    "bound": float,
    "worst": {"layer": str, "error": float},
    "float32": {"factor": float, "worst": {"layer": str, "error": float, "noise": float}},
}


def differences(value: Any, schema: Any, at: str = "manifest") -> list[str]:
    """Where a value is not of its schema: exactly these keys, exactly these types."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [f"{at}: no object"]
        odd = [f"{at}.{key}" for key in value.keys() ^ schema.keys()]
        return odd + [
            d for key in value.keys() & schema.keys() for d in differences(value[key], schema[key], f"{at}.{key}")
        ]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{at}: no list"]
        return [d for index, item in enumerate(value) for d in differences(item, schema[0], f"{at}[{index}]")]
    allowed = schema if isinstance(schema, tuple) else (schema,)
    return [] if type(value) in allowed else [f"{at}: {type(value).__name__}"]


@pytest.fixture(scope="module")
def ported(
    synthetic_source: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    result = porting.port(
        synthetic_source("xception41"), "xception41", out=tmp_path_factory.mktemp("out"), verify=False
    )
    return result.path, result.manifest


def proof() -> Proof:
    lighter = Float32Result(4e-7, 3e-7)
    layer = LayerResult("a/Conv2D", "a.conv", (1, 2, 2, 3), 3e-15, (0, 0, 0, 1), 1.0, 1.0, 1e-10, lighter)
    return Proof((Trace(Run((299, 299), float32=True), (layer,)),), "Keras")


def test_the_schema(ported: tuple[Path, dict[str, Any]]) -> None:
    path, manifest = ported
    written = json.loads(manifest_path(path).read_bytes())
    assert written == manifest == read_manifest(manifest_path(path))
    assert differences(written, SCHEMA) == []
    assert differences({"verdict": VERIFIED, **json.loads(json.dumps(proof().summary()))}, PARITY) == []


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"num_classes": "1000"},
        {"mapped": True},
        {"unread": [{"name": "x"}]},
        {"source": None},
        {"labels": 1},
    ],
)
def test_the_schema_is_exact(ported: tuple[Path, dict[str, Any]], change: dict[str, Any]) -> None:
    assert len(differences(ported[1] | change, SCHEMA)) == 1


def test_every_field_is_documented() -> None:
    def fields(schema: Any) -> set[str]:
        if isinstance(schema, list):
            return fields(schema[0])
        return (
            {*schema, *(name for inner in schema.values() for name in fields(inner))}
            if isinstance(schema, dict)
            else set()
        )

    documented = set(re.findall(r"`(\w+)`", module.__doc__ or ""))
    assert fields(SCHEMA) | fields(PARITY) <= documented
    assert SCHEMA_VERSION == 1


def test_the_facts_of_a_synthetic_port(ported: tuple[Path, dict[str, Any]]) -> None:
    path, manifest = ported
    assert manifest["arch"] == "xception41"
    assert (manifest["num_classes"], manifest["mapped"]) == (1000, 422)
    assert manifest["head"]["background_dropped"] is True
    assert manifest["parity"] == {"verdict": UNVERIFIED}
    assert manifest["files"][0]["name"] == path.name
    assert manifest["files"][0]["bytes"] == path.stat().st_size
    assert manifest["files"][0]["sha256"][:8] in path.name
    assert manifest["preprocessing"]["input_size"] == [3, 299, 299]
    assert (manifest["licence"], manifest["upstream"]) == ("unknown", "unknown")


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"text"', "{}", '{"schema_version": 1}', "[" * 100_000, "\xff", '{"a": NaN'],
)
def test_a_broken_manifest_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_bytes(text.encode("latin-1"))
    assert read_manifest(tmp_path / "m.json") is None


def test_no_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path / "m.json") is None


@pytest.mark.parametrize("gone", ["parity", "source", "labels", "licence", "upstream", "content_digest"])
def test_a_manifest_that_lacks_a_field_is_none(tmp_path: Path, ported: tuple[Path, dict[str, Any]], gone: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({key: value for key, value in ported[1].items() if key != gone}))
    assert read_manifest(path) is None
    path.write_text(json.dumps(ported[1]))
    assert read_manifest(path) == ported[1]


@pytest.mark.parametrize("version", [2, 99, "1", None, 1.5])
def test_another_schema_is_refused(tmp_path: Path, version: object) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"schema_version": version}))
    with pytest.raises(PortingError) as raised:
        read_manifest(tmp_path / "m.json")
    assert raised.value.kind is ErrorKind.UNSUPPORTED
    assert "Upgrade" in raised.value.remedy


def test_a_newer_manifest_is_not_overwritten(
    synthetic_source: Callable[[str], Path], ported: tuple[Path, dict[str, Any]]
) -> None:
    path = manifest_path(ported[0])
    before = path.read_bytes()
    newer = json.dumps(ported[1] | {"schema_version": 2})
    path.write_text(newer)
    try:
        with pytest.raises(PortingError, match="schema version 2"):
            porting.port(synthetic_source("xception41"), "xception41", out=path.parent, verify=False)
        assert path.read_text() == newer
    finally:
        path.write_bytes(before)


# --- a second manifest of the same file -------------------------------------------------------------------------------


@pytest.fixture
def old(ported: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return copy.deepcopy(ported[1])


def test_without_an_old_one_the_new_one_stands(old: dict[str, Any]) -> None:
    assert merged(old, None) == old
    assert merged(old, copy.deepcopy(old)) == old


def test_a_verdict_is_raised_and_never_lowered(old: dict[str, Any]) -> None:
    verified = old | {"parity": {"verdict": VERIFIED, **proof().summary()}}
    assert merged(verified, old)["parity"] == verified["parity"]
    assert merged(old, verified)["parity"] == verified["parity"]
    newer = copy.deepcopy(verified)
    newer["parity"]["worst"]["error"] = 5e-15
    assert merged(newer, verified)["parity"] == newer["parity"]
    longer = copy.deepcopy(verified)
    longer["parity"]["runs"].append({"size": [65, 65], "output_stride": 32, "input": "image"})
    assert merged(verified, longer)["parity"] == longer["parity"] == merged(longer, verified)["parity"]
    other = copy.deepcopy(verified)
    other["parity"]["runs"] = [{"size": [64, 80], "output_stride": 32, "input": "image"}]
    assert merged(other, longer)["parity"] == other["parity"]


def test_synthetic_weights_stay_synthetic(old: dict[str, Any]) -> None:
    synthetic = old | {"source": {**old["source"], "name": "synthetic:3", "synthetic": True}}
    assert merged(old, synthetic)["source"] == synthetic["source"]
    assert merged(synthetic, old)["source"] == synthetic["source"]


def test_labels_licence_and_upstream_stay_until_others_are_given(old: dict[str, Any]) -> None:
    given = old | {"labels": ["a", "b"], "licence": "MIT", "upstream": "https://example.org"}
    assert merged(old, given) == given
    other = old | {"labels": ["c", "d"], "licence": "Apache-2.0", "upstream": "https://example.com"}
    assert merged(other, given) == other


def test_a_manifest_of_another_file_gives_nothing(old: dict[str, Any]) -> None:
    other = old | {
        "content_digest": "0" * 64,
        "parity": {"verdict": VERIFIED, **proof().summary()},
        "labels": ["a"],
        "licence": "MIT",
        "source": {**old["source"], "synthetic": True},
    }
    assert merged(old, other) == old


def test_nothing_given_is_changed(old: dict[str, Any]) -> None:
    verified = old | {"parity": {"verdict": VERIFIED}, "labels": ["a"]}
    before = copy.deepcopy((old, verified))
    merged(old, verified)
    assert (old, verified) == before


# --- labels -----------------------------------------------------------------------------------------------------------

FORMS = {
    "lines": "tench\ngoldfish\n\n great white shark \n",
    "list": '["tench", "goldfish", "great white shark"]',
    "pairs": ' [["n01440764", "tench"], ["n01443537", "goldfish"], ["n01484850", "great white shark"]]',
    "imagenet": '{"0": ["n01", "tench"], "2": ["n03", "great white shark"], "1": ["n02", "goldfish"]}',
    "object": '{"0": "tench", "1": "goldfish", "2": "great white shark"}',
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_in_every_form(tmp_path: Path, form: str) -> None:
    (tmp_path / "labels").write_text(FORMS[form], encoding="utf-8")
    assert read_labels(tmp_path / "labels", 3) == ["tench", "goldfish", "great white shark"]


def test_imagenets_own_labels() -> None:
    path = Path(__file__).parent / "data" / "imagenet_class_index.json"
    labels = read_labels(path, 1000)
    assert (labels[0], labels[999]) == ("tench", "toilet_tissue")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"a\nb\n", ErrorKind.MISMATCH),
        (b"a\nb\nc\nd\n", ErrorKind.MISMATCH),
        (b"", ErrorKind.MISMATCH),
        (b'["a", "b"', ErrorKind.CORRUPT),
        (b'["a", "b", 3]', ErrorKind.CORRUPT),
        (b'{"0": "a", "1": "b", "3": "c"}', ErrorKind.CORRUPT),
        (b"[]", ErrorKind.CORRUPT),
        (b"[[], [], []]", ErrorKind.CORRUPT),
        (b"\xff\xfe", ErrorKind.CORRUPT),
        (b"[" * 100_000, ErrorKind.CORRUPT),
    ],
)
def test_other_labels_are_refused(tmp_path: Path, content: bytes, kind: ErrorKind) -> None:
    (tmp_path / "labels").write_bytes(content)
    with pytest.raises(PortingError) as raised:
        read_labels(tmp_path / "labels", 3)
    assert raised.value.kind is kind
    assert raised.value.remedy


def test_labels_that_are_not_there_are_missing(tmp_path: Path) -> None:
    with pytest.raises(PortingError) as raised:
        read_labels(tmp_path / "labels", 3)
    assert raised.value.kind is ErrorKind.MISSING
