"""The layout: imports point one way, and modules and functions stay short."""

import ast
import graphlib
from collections.abc import Callable, Iterator

import pytest
from harness.helpers import ROOT

# A room may import from itself and from the lines above it, but not from a room on its line.
ORDER = [
    ["system"],
    ["inputs"],
    ["data"],
    ["training"],
    ["outputs"],
    ["report", "predict", "export"],
    ["finetune"],
]
RANKS = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
NOT_THE_PROGRAM = ("tests", "benchmarks")
MAX_LINES, MAX_COLUMNS, MAX_FUNCTION_LINES = 300, 100, 60

# The text of each module, by its path from the root.
Sources = dict[str, str]


def program() -> Sources:
    """All modules of the program."""
    folders = (f for f in ROOT.iterdir() if f.is_dir() and not f.name.startswith("."))
    files = [*ROOT.glob("*.py")]
    for folder in folders:
        if folder.name in RANKS:
            files += folder.rglob("*.py")
        elif folder.name not in NOT_THE_PROGRAM:
            files += folder.glob("*.py")
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in sorted(files)}


def room_of(module: str) -> str:
    return module.partition("/")[0].removesuffix(".py")


# ---- Imports ----


def imports(source: str, with_functions: bool = True) -> Iterator[tuple[ast.stmt, str]]:
    """Each import with its full dotted name; `from inputs import hub` is inputs.hub."""
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not with_functions:
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def wrong_imports(sources: Sources) -> list[str]:
    """One line for each import that does not point to an earlier room or into its own."""
    elsewhere = {*map(room_of, sources), *NOT_THE_PROGRAM} - RANKS.keys()
    problems = []
    for module, source in sources.items():
        for node, name in imports(source):
            own, target = room_of(module), name.split(".")[0]
            if target in RANKS and own in RANKS:
                is_right = target == own or RANKS[target] < RANKS[own]
            else:
                # The name of a relative import is empty before its first dot.
                is_right = target not in elsewhere | RANKS.keys() | {""}
            if not is_right:
                problems.append(f"{module}, line {node.lineno}: `{ast.unparse(node)}`")
    return problems


def import_cycle(sources: Sources) -> list[str]:
    """The modules of an import cycle, in its order; empty if there is none."""
    imported: dict[str, set[str]] = {}
    for module, source in sources.items():
        names = (name.split(".") for _, name in imports(source, with_functions=False))
        targets = {"/".join(parts[:2]) + ".py" for parts in names}
        imported[module] = {name for name in targets & sources.keys()}
    try:
        graphlib.TopologicalSorter(imported).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_imports_point_one_way_through_the_rooms_inside_functions_too():
    problems = wrong_imports(program())
    assert not problems, "these point against the order of the rooms:\n" + "\n".join(problems)


def test_modules_have_no_import_cycle():
    cycle = import_cycle(program())
    assert not cycle, " imports ".join(reversed(cycle))


def test_every_module_lies_in_a_known_room_and_every_room_is_there():
    rooms = set(map(room_of, program()))
    assert rooms == RANKS.keys()
    assert not [module for module in program() if module.count("/") > 1]


# ---- Size and form ----


def too_long(sources: Sources) -> list[str]:
    """One line for each module or function with too many lines, and each wide line of the page."""
    problems = []
    for module, source in sources.items():
        lines = source.splitlines()
        if len(lines) > MAX_LINES:
            problems.append(f"{module}: {len(lines)} lines, at most {MAX_LINES}")
        if module == "finetune.py":
            problems += [
                f"{module}, line {number}: {len(line)} columns, at most {MAX_COLUMNS}"
                for number, line in enumerate(lines, 1)
                if len(line) > MAX_COLUMNS
            ]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    limit = f"at most {MAX_FUNCTION_LINES}"
                    problems.append(f"{module}, {node.name}: {length} lines, {limit}")
    return problems


def global_statements(sources: Sources) -> list[str]:
    """One line for each `global` statement."""
    return [
        f"{module}, line {node.lineno}: `{ast.unparse(node)}`"
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Global)
    ]


def without_purpose(sources: Sources) -> list[str]:
    """One line for each docstring without a one-line purpose, and each filled __init__.py."""
    problems = []
    for module, source in sources.items():
        if module.endswith("__init__.py"):
            if source:
                problems.append(f"{module}: must be empty")
            continue
        first, *others = (ast.get_docstring(ast.parse(source)) or "").split("\n")
        if not first.endswith(".") or (others and others[0]):
            problems.append(f"{module}: the docstring must open with its purpose on one line")
    return problems


def test_modules_and_functions_are_short():
    problems = too_long(program())
    assert not problems, "\n".join(problems)


def test_no_function_changes_a_variable_of_its_module_by_global():
    problems = global_statements(program())
    assert not problems, "\n".join(problems)


def test_each_module_states_its_purpose_in_one_line_and_packages_re_export_nothing():
    problems = without_purpose(program())
    assert not problems, "\n".join(problems)


# ---- The checks themselves ----

LATE = "def late():\n    from training.run import Run\n"
TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import report\n"


@pytest.mark.parametrize(
    "check, sources, expected",
    [
        (wrong_imports, {"inputs/hub.py": LATE}, "inputs/hub.py, line 2: `from training.run "),
        (wrong_imports, {"training/run.py": TYPES}, "training/run.py, line 3: `import report`"),
        (wrong_imports, {"data.py": "from outputs import plots"}, "`from outputs import plots`"),
        (wrong_imports, {"predict.py": "import numpy, report"}, "`import numpy, report`"),
        (wrong_imports, {"system/disk.py": "import finetune as page"}, "`import finetune as page`"),
        (wrong_imports, {"inputs/hub.py": "from . import files"}, "`from . import files`"),
        (wrong_imports, {"report.py": "from tests.harness import warm"}, "report.py, line 1"),
        (
            wrong_imports,
            {"report.py": "from extra import x", "extra/x.py": "import data"},
            "extra/x.py, line 1: `import data`",
        ),
        (
            import_cycle,
            {
                "inputs/a.py": "from inputs import b",
                "inputs/b.py": "from inputs.c import d",
                "inputs/c.py": "try:\n    import inputs.a\nexcept ImportError:\n    pass",
            },
            "inputs/c.py",
        ),
        (too_long, {"inputs/hub.py": "x = 1\n" * 301}, "inputs/hub.py: 301 lines"),
        (too_long, {"finetune.py": "x = 1\n" * 301}, "finetune.py: 301 lines"),
        (too_long, {"finetune.py": f"x = 1  # {'y' * 92}"}, "finetune.py, line 1: 101 columns"),
        (
            too_long,
            {"data.py": "class A:\n    def f(self):\n" + 60 * "        x = 1\n"},
            "data.py, f: 61 lines",
        ),
        (global_statements, {"data.py": "def f():\n    global x"}, "data.py, line 2: `global x`"),
        (without_purpose, {"data.py": "x = 1"}, "data.py: "),
        (without_purpose, {"data.py": '"""Two lines\nof it."""'}, "data.py: "),
        (without_purpose, {"inputs/__init__.py": "from inputs import hub"}, "inputs/__init__.py"),
    ],
)
def test_a_broken_layout_is_reported(check: Callable[[Sources], list[str]], sources, expected):
    assert any(expected in problem for problem in check(sources))


def test_an_allowed_layout_has_no_problems():
    allowed = {
        "system/disk.py": '"""Disk."""\nimport os\nfrom system import ranks',
        "data.py": '"""Data.\n\nMore of it."""\nfrom inputs import hub\nimport system.disk',
        "finetune.py": '"""Page."""\nimport report, data, predict\nfrom training.run import Run',
        "system/ranks.py": '"""Ranks."""\ndef f():\n    from system import disk',
        "inputs/__init__.py": "",
    }
    for check in (wrong_imports, import_cycle, too_long, global_statements, without_purpose):
        assert check(allowed) == []
