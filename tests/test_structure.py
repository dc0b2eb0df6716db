"""The shape of the project: imports go one way, heavy packages stay out of light modules, and files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_LINES = 320
# A file may be longer than that where cutting it would scatter one meaning; here is which, and why.
LONG_FILES = {
    "tests/models/test_networks.py": "one subject: what a built network offers, from heads and maps to timm beside it",
}
RULES = {"porting.rules", "porting.keras_rules", "porting.tables"}  # they know of nothing but each other
# How files come over the network and where unfinished ones lie, for sources and weights alike.
TRANSFER = {"models.connection", "models.scratch", "models.transfer"}
TENSORFLOW_IMPORT = "porting.reference.tensorflow_import"
TENSORFLOW_SIDE = {
    f"porting.reference.{name}"
    for name in (
        *("worker", "aligned", "original", "synthesis"),
        *("executed_graph", "graph_loading", "graph_operations", "graph_points"),
    )
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for folder in ("porting", "models") for path in (ROOT / folder).rglob("*.py")}


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Every module that a file names in an import, wherever it stands; those for type checkers alone left out."""
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for part in node.body
        for child in ast.walk(part)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else str(node.module)


def graph() -> dict[str, set[str]]:
    return {name: set(imported(ast.parse(path.read_text()), SOURCES)) for name, path in SOURCES.items()}


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def is_forbidden(name: str, target: str) -> bool:
    """Whether this import goes against the house's one direction."""
    if inside(target, "tensorflow") or inside(target, "keras"):
        return name != TENSORFLOW_IMPORT
    if target == TENSORFLOW_IMPORT or target in TENSORFLOW_SIDE:
        return name not in TENSORFLOW_SIDE
    ours = inside(target, "porting") or inside(target, "models")
    if inside(name, "models"):
        return inside(target, "porting")
    if inside(name, "porting.sources"):
        return ours and not inside(target, "porting.sources") and target not in {"porting.errors", *TRANSFER}
    if name == "porting.errors" or name in RULES:
        return ours and target not in RULES
    return target in COMMANDS


def violations(found: Mapping[str, set[str]]) -> set[str]:
    return {f"{name} imports {to}" for name, targets in found.items() for to in targets if is_forbidden(name, to)}


def has_command(path: Path) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(path.read_text()).body)


COMMANDS = {
    module_name(path) for path in (ROOT / "porting").glob("*.py") if has_command(path) and path.name != "__main__.py"
}
COMMANDS |= {f"porting.{path.parent.name}" for path in (ROOT / "porting").glob("*/__main__.py")}


# --- imports ----------------------------------------------------------------------------------------------------------


def test_the_files_are_found() -> None:
    assert len(SOURCES) > 40
    assert {"porting", "porting.sources", "porting.rules", "models", "models.layers"} <= SOURCES.keys()
    assert "porting.sources.base" in graph()["porting.sources.bundle"]
    assert "tensorflow" in graph()[TENSORFLOW_IMPORT]


def test_imports_go_one_way() -> None:
    assert violations(graph()) == set()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("models.layers", "porting.rules"),
        ("porting.sources.bundle", "porting.rules"),
        ("porting.sources.bundle", "models"),
        ("porting.rules", "porting.errors"),
        ("porting.plan", "tensorflow"),
        ("porting.reference.original", "keras.layers"),
        ("porting.pipeline", TENSORFLOW_IMPORT),
        ("porting.reference.client", "porting.reference.aligned"),
        ("porting.pipeline", "porting.convert"),
    ],
)
def test_an_import_that_goes_another_way_is_seen(name: str, target: str) -> None:
    found = graph()
    assert violations(found | {name: found[name] | {target}}) == {f"{name} imports {target}"}


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside a function count: they hide a cycle, they do not remove it."""
    own = {name: {target for target in targets if target in SOURCES} for name, targets in graph().items()}
    TopologicalSorter(own).prepare()
    with pytest.raises(CycleError):
        TopologicalSorter(own | {"porting.errors": {"porting.pipeline"}}).prepare()


def modules_after(*imports: str) -> set[str]:
    code = f"import sys, {', '.join(imports)}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in done.stdout.split()}


HEAVY = {"torch", "tensorflow", "keras", "h5py"}


def test_light_modules_import_nothing_heavy() -> None:
    light = ("porting", "porting.sources", "porting.plan", "porting.recognition", *sorted(COMMANDS))
    assert modules_after(*light) & HEAVY == set()


def loaded_by(*arguments: str) -> set[str]:
    """What `porting.convert` has loaded when it ends, by a command line."""
    code = (
        "import sys\nfrom porting.convert import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('loaded:', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in done.stdout.rpartition("loaded:")[2].split()}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--src", "x"], ["--src", "/no/such/file", "--arch", "xception65"]], ids=" ".join
)
def test_what_needs_no_weights_loads_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(*arguments) & (HEAVY | {"numpy"}) == set()


def test_a_source_that_is_there_loads_numpy(tmp_path: Path) -> None:
    """The control."""
    (tmp_path / "empty.h5").touch()
    assert "numpy" in loaded_by("--src", str(tmp_path / "empty.h5"), "--arch", "xception65")


def test_the_pipeline_imports_torch_and_not_tensorflow() -> None:
    """Negative control of the test above; and TensorFlow stays in its own process."""
    assert modules_after("porting.pipeline", "porting.proof") & HEAVY == {"torch"}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(ast.parse(SOURCES[name].read_text()))


def test_no_file_is_long_without_a_reason() -> None:
    paths = (path for folder in ("porting", "models", "tests") for path in (ROOT / folder).rglob("*.py"))
    lengths = {str(path.relative_to(ROOT)): path.read_bytes().count(b"\n") for path in paths}
    assert "tests/test_structure.py" in lengths
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES and name not in LONG_FILES} == {}


def test_the_list_of_commands_is_complete() -> None:
    assert {"porting.convert", "porting.inspect"} <= COMMANDS
    done = subprocess.run([sys.executable, "-m", "porting"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[2] for line in done.stdout.splitlines() if line.startswith("  python -m ")}
    assert listed == COMMANDS
