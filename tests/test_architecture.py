from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import musicgpt_async

PACKAGE = "musicgpt_async"
ROOT = Path(musicgpt_async.__file__).parent

# Layers from the top: each may import those below it, and its own if it says so.
LAYERS = (
    ("cli", "testing", "otel"),
    ("task_queue",),
    ("__init__",),
    ("session",),
    ("batch",),
    ("_engine",),
    ("webhooks", "journal"),
    ("job",),
    ("events",),
    ("_io",),
    ("_rules",),
    ("models",),
    ("errors", "_version"),
)
# Packages whose modules may import each other; circles between them are forbidden too.
TOGETHER = {"_engine", "_rules", "cli"}
# One kind of IO in several files: the first knows the second.
PAIRS = {
    ("_io.upload", "_io.content"),
    ("_io.sources", "_io.content"),
    ("_io.download", "_io.partial_file"),
    ("_io.database", "_io.database_errors"),
    ("_io.database", "_io.journal_file"),
    ("_io.database", "_io.schema"),
    ("_io.database", "_io.statements"),
    ("_io.database", "_io.job_rows"),
    ("_io.database", "_io.processes"),
    ("_io.database", "_io.file_engine"),
    ("_io.transactions", "_io.file_engine"),
    ("_io.job_table", "_io.file_engine"),
    ("_io.notifications", "_io.file_engine"),
    ("_io.statements", "_io.schema"),
    ("_io.journal_file", "_io.database_errors"),
    ("_io.journal_file", "_io.schema"),
    ("_io.transactions", "_io.database"),
    ("_io.transactions", "_io.database_errors"),
    ("_io.transactions", "_io.statements"),
    ("_io.forwarding", "_io.job_rows"),
    ("_io.forwarding", "_io.notifications"),
    ("_io.forwarding", "_io.statements"),
    ("_io.forwarding", "_io.transactions"),
    ("_io.account_connection", "_io.database"),
    ("_io.account_connection", "_io.file_engine"),
    ("_io.account_statements", "_io.statements"),
    ("_io.account_table", "_io.account_statements"),
    ("_io.account_table", "_io.notifications"),
    ("_io.job_table", "_io.job_rows"),
    ("_io.job_table", "_io.processes"),
    ("_io.job_table", "_io.statements"),
    ("_io.job_table", "_io.transactions"),
}
# The emulator does not import the client, and only these modules import it.
EMULATOR = "emulator"
KNOW_THE_EMULATOR = {"cli", "testing", EMULATOR}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}

Imports = dict[str, set[str]]


def module_name(path: Path, root: Path) -> str:
    """The dotted name of a file below the package, the package itself as ``__init__``."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported(tree: ast.AST, module: str, known: set[str], *, is_package: bool) -> Iterator[str]:
    """Every module of the package that a file imports: at its top, lazily, or for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from filter(None, (below(alias.name, known) for alias in node.names))
        elif isinstance(node, ast.ImportFrom):
            start = absolute(node, module, is_package=is_package)
            for alias in node.names:
                found = below(f"{start}.{alias.name}", known) or below(start, known)
                if found:
                    yield found
        # What the face imports when it is asked for, it names above, for type checkers.
        elif isinstance(node, ast.Call) and is_dynamic(node) and module != "__init__":
            name = node.args[0]
            assert isinstance(name, ast.Constant), f"{module} imports what only it knows"
            found = below(str(name.value), known)
            if found:
                yield found


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """The absolute name of what ``from … import`` names."""
    if not node.level:
        return node.module or ""
    here = [PACKAGE, *([] if module == "__init__" else module.split("."))]
    drop = node.level - (1 if is_package else 0)
    return ".".join([*here[: len(here) - drop], *([node.module] if node.module else [])])


def is_dynamic(node: ast.Call) -> bool:
    """Whether a call imports by name: ``import_module("…")`` or ``__import__("…")``."""
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name in ("import_module", "__import__") and bool(node.args)


def below(name: str, known: set[str]) -> str | None:
    """The name within the package, ``None`` for anything else."""
    if name == PACKAGE:
        return "__init__"
    inside = name.removeprefix(f"{PACKAGE}.")
    return inside if inside != name and inside in known else None


def imports_of(root: Path) -> Imports:
    """Module → the modules of the package that it imports."""
    files = {module_name(path, root): path for path in sorted(root.rglob("*.py"))}
    graph: Imports = {}
    for module, path in files.items():
        tree = ast.parse(path.read_text("utf-8"), str(path))
        is_package = path.name == "__init__.py"
        graph[module] = set(imported(tree, module, set(files), is_package=is_package)) - {module}
    return graph


def component(module: str) -> str:
    """The module or package below the root that a module belongs to."""
    return module.partition(".")[0]


def level(module: str) -> int:
    """Return the depth of a module's layer."""
    return next(
        number for number, components in enumerate(LAYERS) if component(module) in components
    )


def faults(graph: Imports) -> list[str]:
    """Describe each import that goes up, sideways or to the emulator."""
    found = []
    for module, targets in graph.items():
        for target in targets:
            ours, theirs = component(module), component(target)
            if EMULATOR in (ours, theirs):
                if ours == EMULATOR and theirs != EMULATOR:
                    found.append(f"the emulator's {module} knows the client's {target}")
                elif ours not in KNOW_THE_EMULATOR:
                    found.append(f"{module} knows the emulator's {target}")
            elif level(target) < level(module):
                found.append(f"{module} climbs to {target}")
            elif (module, target) in PAIRS:
                continue
            elif level(target) == level(module) and (ours != theirs or ours not in TOGETHER):
                found.append(f"{module} imports its neighbour {target}")
    return found


def circle(graph: Imports) -> list[str]:
    """Return a circle of imports, or an empty one."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.fixture(scope="module")
def graph() -> Imports:
    """The imports of the library as it is."""
    return imports_of(ROOT)


def test_every_module_has_its_layer(graph: Imports) -> None:
    """A new package is added to the layers before it is built."""
    components = {name for layer in LAYERS for name in layer} | {EMULATOR}
    assert {component(module) for module in graph} <= components
    assert sum(map(len, graph.values())) > 50


def test_imports_go_downward_only(graph: Imports) -> None:
    """No module imports one above it or, if modules are separate, one beside it."""
    assert faults(graph) == []


def test_no_imports_close_a_circle(graph: Imports) -> None:
    """Not even inside functions or for types alone."""
    assert circle(graph) == []


def test_no_module_is_a_drawer_for_odds_and_ends(graph: Imports) -> None:
    """A module's name says what is in it."""
    names = {part for module in graph for part in module.split(".")}
    assert not FORBIDDEN_NAMES & {name.strip("_") for name in names}


def test_a_class_name_occurs_once() -> None:
    """A name in a traceback, a log or a search means one class."""
    modules: dict[str, list[str]] = defaultdict(list)
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                modules[node.name].append(module_name(path, ROOT))
    assert {name: found for name, found in modules.items() if len(found) > 1} == {}


TIME = re.compile(
    "TIMEOUT|INTERVAL|DELAY|GRACE|PAUSE|LEASE|DEADLINE|SECONDS|MINUTE|WAIT|AGE$|HOLD$|DURATION"
    "|RETRY_AFTER|SKEW|SPACING|RECHECK|REFUSED_TIME|RETRIES|SPEED_WINDOW|RATE_WINDOW|BEAT"
)


def constants(path: Path) -> Iterator[tuple[str, str]]:
    """Return name and comment of each number, and tuple of numbers, in a module.

    The comment is on the same line, in the line above, or a string below.
    """
    lines = path.read_text("utf-8").splitlines()
    body = ast.parse("\n".join(lines)).body
    for node, below in zip(body, [*body[1:], None], strict=True):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
            continue
        values = [each.value for each in ast.walk(node.value) if isinstance(each, ast.Constant)]
        is_plain = all(
            isinstance(each, (ast.Constant, ast.Tuple, ast.UnaryOp, ast.BinOp, ast.expr_context))
            for each in ast.walk(node.value)
            if not isinstance(each, (ast.operator, ast.unaryop))
        )
        if not is_plain or not values or {type(each) for each in values} - {int, float}:
            continue
        comment = lines[node.lineno - 1].partition("#")[2] + lines[node.end_lineno - 1]
        above = node.lineno - 2
        while above >= 0 and lines[above].startswith("#"):
            comment += lines[above]
            above -= 1
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            comment += str(below.value.value)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for name in (
            each.id for t in targets for each in ast.walk(t) if isinstance(each, ast.Name)
        ):
            yield name, comment


def test_constants_of_time_say_their_unit() -> None:
    """In the name, or in a comment beside it: no reader has to guess between s and ms."""
    unit = re.compile("second|minute|millisecond", re.IGNORECASE)
    silent = [
        f"{module_name(path, ROOT)}.{name}"
        for path in ROOT.rglob("*.py")
        for name, comment in constants(path)
        if TIME.search(name) and not unit.search(name + comment)
    ]
    assert silent == []


def test_the_rules_have_no_io_no_clock_and_no_await() -> None:
    """They are values in and values or errors out."""
    forbidden = {
        "asyncio", "aiofiles", "aiohttp", "anyio", "os", "socket",
        "subprocess", "tempfile", "threading", "time", "urllib.request",
    }  # fmt: skip
    for path in (ROOT / "_rules").glob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        nodes = list(ast.walk(tree))
        plain = (node.names for node in nodes if isinstance(node, ast.Import))
        names = {alias.name for aliases in plain for alias in aliases}
        names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not forbidden & names, path.name
        waits = (ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith)
        assert not any(isinstance(node, waits) for node in ast.walk(tree)), path.name
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called = {call.attr for call in calls if isinstance(call, ast.Attribute)}
        assert not {"now", "utcnow", "today", "read_text", "read_bytes"} & called, path.name
        assert "open" not in {call.id for call in calls if isinstance(call, ast.Name)}, path.name


def test_only_the_command_prints() -> None:
    """A library is silent: what it has to say goes to events and logs."""
    for path in ROOT.rglob("*.py"):
        if component(module_name(path, ROOT)) in ("cli", EMULATOR):
            continue
        calls = (
            node
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Call)
        )
        assert not any(isinstance(c.func, ast.Name) and c.func.id == "print" for c in calls), path


BAD = {
    "climbs": ("_rules/hosts.py", "from musicgpt_async._io import http", "climbs"),
    "climbs in a function": ("models.py", "def f():\n    import musicgpt_async.job", "climbs"),
    "climbs relatively": ("_rules/hosts.py", "from ..session import MusicGPTSession", "climbs"),
    "climbs by name": ("job.py", "__import__('musicgpt_async.batch')", "climbs"),
    "climbs for types": (
        "events.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from musicgpt_async import job",
        "climbs",
    ),
    "uses the face": ("session.py", "from musicgpt_async import Stem", "climbs"),
    "uses a neighbour": ("_io/http.py", "from musicgpt_async._io import upload", "its neighbour"),
    "uses the journal": ("webhooks.py", "import musicgpt_async.journal", "its neighbour"),
    "uses the emulator": ("session.py", "from musicgpt_async.emulator import Emulator", "emulator"),
    "emulates the client": ("emulator/vendor.py", "from musicgpt_async import models", "client"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "line", "words"), BAD.values(), ids=BAD)
def test_a_bad_import_is_found(file: str, line: str, words: str, tmp_path: Path) -> None:
    """Put into a copy of the tree, each kind of bad import is seen and named."""
    for path in ROOT.rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), "utf-8")
    clean = faults(imports_of(tmp_path))
    with (tmp_path / file).open("a", encoding="utf-8") as out:
        out.write(f"\n{line}\n")
    (fault,) = set(faults(imports_of(tmp_path))) - set(clean)
    assert words in fault


def test_a_circle_is_found(tmp_path: Path) -> None:
    """Two modules of one package that import each other, one of them lazily."""
    (tmp_path / "_rules").mkdir()
    (tmp_path / "_rules" / "a.py").write_text("from musicgpt_async._rules import b\n")
    (tmp_path / "_rules" / "b.py").write_text("def f():\n    from . import a\n")
    graph = imports_of(tmp_path)
    assert set(circle(graph)) == {"_rules.a", "_rules.b"}
