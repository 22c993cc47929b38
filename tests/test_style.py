"""Comments, docstrings, messages, names and pages keep what a machine can check of the style."""

import ast
import io
import itertools
import re
import tokenize
from pathlib import Path

import pytest
from harness.helpers import PAGES, ROOT

OPENER = re.compile(r"(?:^|[.;:!?]\s)(?:Of|By|Where|What|That|And|But|Else)\s")
BANNED = {"found", "what", "how", "told", "said", "wanted", "asked", "most", "words", "given"}
# `what` is a field of Problem.
ALLOWED = {"system/console.py: what"}


def faults(path: str, source: str) -> set[str]:
    """Each sentence of a comment or string with a wrong opener, and each banned name."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    prose = [t.string for t in tokens if t.type in (tokenize.COMMENT, tokenize.STRING)]
    texts = [re.sub(r"\s+", " ", text.lstrip("rbf#\"' ")) for text in prose]
    nodes = list(ast.walk(ast.parse(source)))
    names = [n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    names += [n.arg for n in nodes if isinstance(n, ast.arg)]
    names += [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    wrong = {*filter(OPENER.search, texts), *(BANNED & set(names))}
    return {f"{path}: {text}" for text in wrong} - ALLOWED


def test_no_sentence_is_turned_round_and_no_name_is_a_riddle():
    program = [*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py")]
    files = [path for path in program if path != Path(__file__)]
    wrong = [faults(str(path.relative_to(ROOT)), path.read_text("utf-8")) for path in files]
    assert len(files) > 90 and sorted(itertools.chain(*wrong)) == []


def test_no_sentence_of_a_page_is_turned_round():
    for page in PAGES:
        text = re.sub(
            r"```.*?```|`[^`]*`|^\|.*?$|^#+ ", "", page.read_text("utf-8"), flags=re.S | re.M
        )
        parts = re.split(r"\n\s*\n|\n- |\n\d\. ", text)
        assert [part for part in parts if OPENER.search(part.strip())] == [], page


@pytest.mark.parametrize(
    "source",
    [
        "# Of epochs that tie the first is kept.",
        "x = 1  # Done. What is left is cached.",
        'def f():\n    """Where it fails, raise."""',
        'say("By default nothing is written")',
        "what = 1",
        "def f(given): pass",
        "for found in (): pass",
    ],
)
def test_a_breach_of_the_style_is_found(source):
    assert faults("a.py", source)
