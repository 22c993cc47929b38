"""The README and docs/ say what the program does: their code and commands run, their links lead."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from harness.helpers import CSV, FENCE, PAGES, README, ROOT, ROWS, block, fences, save_tiny
from harness.settings_page import PAGE, settings_page
from test_rooms import program
from torch.nn.functional import cross_entropy

import report
from inputs import encoder_files

DOCS = ROOT / "docs"
PROGRAM = re.compile(r"python (finetune|predict|report)\.py\b.*")
# Blocks that no test can run: they install, need a network or a cluster, or take long. They are run
# by hand.
BY_HAND: set[str] = {"run", "devices", "faults", "nodes", "contribute", "tensorboard", "upload"}


def code_of(language: str) -> list[tuple[str, str, str]]:
    """The blocks of all pages in `language`: name of the page, mark, content."""
    return [(page.name, mark, code) for page, mark, kind, code in fences() if kind == language]


def commands() -> list[str]:
    """Each different line of the pages that runs one of the three programs."""
    lines = (line for *_, code in code_of("bash") for line in code.splitlines())
    return sorted({line.partition("  #")[0] for line in lines if PROGRAM.match(line)})


@pytest.fixture
def folder(trained, small_builtin, tmp_path, monkeypatch) -> Path:
    """A folder with the files that the pages name; the model and data on the Hub are tiny."""
    tiny = save_tiny(tmp_path / "tiny", max_position_embeddings=512)
    monkeypatch.setattr(encoder_files, "_find_builtin", lambda: tiny)
    table = CSV.replace("sentence,label", "text,label")
    pairs = "".join(f'"{text}","{text} too",{label}\n' for text, label in ROWS)
    tickets = "".join(f'{number},"{text}",{label}\n' for number, (text, label) in enumerate(ROWS))
    for name, text in {
        "reviews.csv": table,
        "reviews.txt": "a fine film\na dull film\n",
        "pairs.csv": "premise,hypothesis,label\n" + pairs,
        "tickets.csv": f"Id,Message,Queue\n{tickets}",
        "labelled/train.csv": table,
        "labelled/validation.csv": table,
        "labelled/test.csv": table,
        "no_header.csv": "".join(f'{label},"{text}"\n' for text, label in ROWS),
        "SST-2/train.tsv": "sentence\tlabel\n" + "a fine film\t1\na dull film\t0\n" * 9,
        "SST-2/dev.tsv": "sentence\tlabel\na fine film\t1\na dull film\t0\n",
        "SST-2/test.tsv": "index\tsentence\n0\ta fine film\n1\ta dull film\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in ("first", "second"):
        shutil.copytree(trained.folder, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", commands())
def test_each_command_of_the_pages_does_its_job(folder, in_process, predicted, capfd, command):
    line, _, source = command.partition(" < ")
    _, script, *arguments = shlex.split(line, comments=True)
    runs = sorted(str(path) for path in Path("runs").glob("*"))
    arguments = [path for word in arguments for path in (runs if word == "runs/*" else [word])]
    if script == "finetune.py":
        # This run starts from the model of another run.
        if "--model runs/first" not in command:
            shutil.rmtree("runs")
        run = in_process(*arguments)
        assert run.code == 0 and run.out.startswith("epoch 0: {'accuracy': "), run.err
        return
    if script == "predict.py":
        stdin = Path(source).read_bytes() if source else b""
        run = predicted(*arguments[1:], stdin=stdin, run=arguments[0])
        assert run.code == 0, run.err
        out = run.out
    else:
        Path("runs/first/curves.png").unlink()
        report.main(arguments)
        out = capfd.readouterr().out
    if "--output" in arguments:
        assert Path(arguments[arguments.index("--output") + 1]).stat().st_size > 9
    elif script == "predict.py":
        rows = 40 if "reviews.csv" in arguments else 2
        header, values = ("label\tprobability.*\n", 3) if "--all" in arguments else ("", 1)
        line = rf"(negative|positive)(\t[01]\.\d{{4}}){{{values}}}\n"
        assert re.fullmatch(rf"{header}({line}){{{rows}}}", out)
    elif len(arguments) > 1:
        assert out.startswith("run") and Path("runs/comparison.png").exists()
    else:
        assert Path("runs/first/curves.png").exists()


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{page} {mark}")
        for page, mark, code in code_of("python")
        # tests/test_export.py runs it on an export.
        if mark != "onnxruntime"
    ],
)
def test_the_python_code_of_the_pages_runs_as_it_stands(folder, code):
    names: dict = {}
    with Path("tickets.csv").open("a") as tickets:
        tickets.write("99,,positive\n")
    exec(code, names)
    if "tickets.csv" in code:
        record = json.loads((names["result"].folder / "run.json").read_text())
        # The row without text is dropped.
        assert sum(record["sentences"].values()) == 40
        assert record["labels"] == ["negative", "positive"]
        assert names["result"].model_folder.is_dir()


def test_every_command_of_the_pages_is_run_by_a_test_or_by_hand():
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("*.py"))
    run_by_tests = set(re.findall(r"block\(\"(.+?)\"\)", tests)) | {"ruff"}
    for page, mark, code in code_of("bash"):
        others = [line for line in code.splitlines() if line and not PROGRAM.match(line)]
        assert not others or mark in run_by_tests | BY_HAND, (page, others)
    marks = {mark for _, mark, _ in code_of("bash")}
    assert marks >= BY_HAND and not BY_HAND & run_by_tests


def test_a_block_that_stands_on_two_pages_is_the_same_on_both():
    blocks: dict[str, str] = {}
    for page, mark, code in code_of("bash") + code_of("python"):
        assert not mark or blocks.setdefault(mark, code) == code, (page, mark)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    text = FENCE.sub("", page.read_text("utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "benchmarks" / "README.md"], ids=lambda p: p.name)
def test_every_link_and_picture_of_a_page_leads_to_something_that_is_there(page):
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not link.startswith("https://"):
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_doorway_is_short_and_each_page_is_found_from_it():
    assert len(README.splitlines()) <= 200
    assert len((ROOT / "CONTRIBUTING.md").read_text("utf-8").splitlines()) <= 80
    assert all(f"(docs/{page.name})" in README for page in DOCS.glob("*.md"))


def test_the_page_of_settings_is_made_from_the_constants():
    assert PAGE.read_text("utf-8") == settings_page(), "run python tests/harness/settings_page.py"


def test_the_step_by_hand_runs_and_does_what_it_says(capsys, monkeypatch):
    gradients = []
    step = torch.optim.AdamW.step

    def watch(optimizer, *arguments):
        weight = optimizer.param_groups[0]["params"][-1]
        gradients.append(weight.grad.clone())
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", watch)
    names: dict = {}
    exec(block("by hand"), names)
    out = capsys.readouterr().out
    first, second = (float(loss) for loss in re.findall(r"loss (\d\.\d{4})", out))
    assert abs(first - 0.6931) < 0.1 and second != first
    assert "logits (3, 2)" in out
    assert names["probabilities"].shape == (3, 2)
    assert torch.allclose(names["probabilities"].sum(dim=1), torch.ones(3))
    answers = re.findall(r"^(this is .*): (\w+) \((0\.\d+)\)$", out, re.MULTILINE)
    assert [sentence for sentence, *_ in answers] == names["sentences"]
    assert len(gradients) == 2
    printed, expected = (re.split(r"(\d+\.\d+)", text) for text in (out, block("by hand prints")))
    assert printed[::2] == expected[::2]
    assert [*map(float, printed[1::2])] == pytest.approx([*map(float, expected[1::2])], abs=0.02)

    # Its sentences on the loss by hand, on zero_grad, and on train and eval.
    model, batch, labels = names["model"], names["batch"], names["labels"]
    outputs = model(**batch, labels=labels)
    assert torch.equal(outputs.loss, cross_entropy(outputs.logits, labels))
    weight = model.classifier.weight
    assert weight.grad is None
    outputs.loss.backward()
    once = weight.grad.clone()
    model(**batch, labels=labels).loss.backward()
    assert torch.allclose(weight.grad, 2 * once)


@pytest.mark.parametrize(
    "mark, file", [("run", "requirements.txt"), ("test", "tests/requirements.txt")]
)
def test_each_first_command_sets_up_all_that_it_needs(mark, file):
    command = block(mark).strip()
    assert command.count("\n") == 0
    assert f"pip install -r {file}" in command and "python3 -m venv .venv" in command
    assert (ROOT / file).exists()
    for line in (ROOT / file).read_text().splitlines():
        assert not line or line.startswith(("#", "-r ")) or re.fullmatch(r"[\w-]+==[\w.]+", line)


def test_ci_runs_the_readmes_test_command_as_it_stands():
    script = (ROOT / ".ci" / "run").read_text()
    line = next(line for line in script.splitlines() if line.startswith("command="))
    command = subprocess.run(
        ["bash", "-c", f'{line}; printf "%s" "$command"'], cwd=ROOT, capture_output=True, text=True
    ).stdout
    assert command == block("test").strip()


@pytest.mark.parametrize("page", ["tutorial.md", "architecture.md"])
def test_each_function_that_a_page_names_is_there(page):
    pairs = re.findall(r"`(\w+)`(?: of `\w+`)? in `([\w/]+\.py)`", (DOCS / page).read_text("utf-8"))
    assert len(pairs) >= 12
    for name, file in pairs:
        definition = rf"^ *(def|class) {name}\b"
        assert re.search(definition, (ROOT / file).read_text("utf-8"), re.MULTILINE), name


def test_the_table_of_rooms_lists_every_module_once_and_room_by_room():
    page = (DOCS / "architecture.md").read_text("utf-8")
    listed = re.findall(r"^\| `([\w/]+\.py)` \|", page, re.MULTILINE)
    rooms = ("", "inputs", "training", "outputs", "system")
    modules = [module for module in program() if not module.endswith("__init__.py")]
    assert sorted(listed) == sorted(modules)
    order = [rooms.index(file.rpartition("/")[0]) for file in listed]
    assert order == sorted(order)
    tree = {line.split()[0].rstrip("/") for line in block("tree").splitlines()}
    if not (ROOT / ".git").exists():
        pytest.skip("this copy is not a git repository")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    paths = [path for path in tracked.splitlines() if not path.startswith(".")]
    assert tree == {p.partition("/")[0] for p in paths if "/" in p or p.endswith(".py")}


def messages(source: str) -> set[str]:
    """The fixed parts of each problem and error that the module raises."""
    parts = set()
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    for function in functions:
        nodes = list(ast.walk(function))
        calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        texts = [c.args[1] for c in calls if c.func.id in ("Problem", "_error") and len(c.args) > 1]
        texts += [c.args[0] for c in calls if c.func.id == "RunError"]
        # A list of problems may hold tuples that become a Problem later.
        added = [
            n.args[0] for n in nodes if isinstance(n, ast.Call) and "append" in ast.unparse(n.func)
        ]
        texts += [t.elts[0] for t in added if isinstance(t, ast.Tuple)]
        names = {text.id for text in texts if isinstance(text, ast.Name)}
        assignments = [n for n in nodes if isinstance(n, ast.Assign)]
        texts += [a.value for a in assignments if names & {ast.unparse(t) for t in a.targets}]
        constants = [
            n.value for text in texts for n in ast.walk(text) if isinstance(n, ast.Constant)
        ]
        parts |= {
            part.partition(";")[0].strip(" (:,") for part in constants if isinstance(part, str)
        }
    return {part for part in parts if len(part) > 7}


INPUTS = [
    f"inputs/{name}.py"
    for name in ("files", "encodings", "columns", "delimited", "columnar", "forms", "tables")
]
INPUTS += ["inputs/labels.py", "inputs/splits.py"]


@pytest.mark.parametrize(
    "page, modules",
    [
        ("data.md", ["data.py", *INPUTS]),
        ("data.md", ["inputs/texts.py"]),
        ("models.md", ["inputs/encoder.py", "inputs/encoder_files.py"]),
        ("resume.md", ["training/record.py", "training/run_folder.py"]),
        ("troubleshooting.md", ["training/run.py", "system/disk.py", "system/rendezvous.py"]),
        ("resume.md troubleshooting.md", ["training/checkpoint.py"]),
    ],
)
def test_each_error_of_a_module_is_explained_on_its_page(page, modules):
    page = "".join((DOCS / name).read_text("utf-8") for name in page.split())
    texts = set().union(*(messages((ROOT / module).read_text("utf-8")) for module in modules))
    assert len(texts) > 2 and {text for text in texts if text not in page} == set()


def test_each_private_interface_of_a_library_that_the_program_uses_is_listed():
    page = (DOCS / "architecture.md").read_text("utf-8").partition("## Private interfaces")[2]
    for module, source in program().items():
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Attribute) or not re.match("_[^_]", node.attr):
                continue
            owner = ast.unparse(node.value).split(".")[0]
            if owner in ("self", "cls", "os") or node.attr in ("_replace", "_asdict", "_fields"):
                continue
            row = rf"^\| `[\w.]*\b{node.attr}` \|.*`{module}`"
            assert re.search(row, page, re.MULTILINE), (module, ast.unparse(node))


def test_the_code_passes_ruff():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, str(ROOT)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
