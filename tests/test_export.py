"""export.py writes ONNX models that answer as PyTorch does, whole or not at all."""

import contextlib
import errno
import io
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from google.protobuf.message import DecodeError
from harness.helpers import CSV, NEGATIVE, POSITIVE, ROOT, block
from test_speed import BUCKETS, DISENTANGLED, load

import export
from inputs import batches, encoder
from outputs import classifier as classifiers
from outputs import onnx_export
from system import console
from system.console import InputError, RunError

TEXTS = [*POSITIVE, "a " * 300, *NEGATIVE, "x"]


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> SimpleNamespace:
    """The page's command, run on a copy of `trained` that has an old and a partial export."""
    top = tmp_path_factory.mktemp("exported")
    folder = shutil.copytree(trained.folder, top / "runs" / "first")
    for name in ("onnx", "onnx.partial"):
        (folder / name).mkdir()
        (folder / name / "old.txt").write_text("old")
    program, script, *arguments = shlex.split(block("onnx"))
    assert (program, script) == ("python", "export.py")
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(top)
        patch.setattr(console, "stop_on_signals", lambda: None)
        export.main(arguments)
    return SimpleNamespace(top=top, run=folder, out=out.getvalue())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- The export of a run ----


def test_an_export_replaces_an_earlier_one_and_has_all_that_a_runtime_needs(exported, trained):
    files = ["config.json", "model.onnx", "model_int8.onnx", "tokenizer.json"]
    assert names(exported.run / "onnx") == [*files, "tokenizer_config.json"]
    assert not (exported.run / "onnx.partial").exists()
    assert names(exported.run / "model") == names(trained.model_folder)
    session = onnxruntime.InferenceSession(exported.run / "onnx" / "model.onnx")
    shapes = {tensor.name: tensor.shape for tensor in session.get_inputs()}
    assert shapes == {key: ["batch", "sequence"] for key in ("input_ids", "attention_mask")}


def test_the_table_has_the_accuracy_of_the_run_and_no_difference_in_float32(exported, trained):
    header, *lines = exported.out.splitlines()
    assert header.split(maxsplit=3)[:3] == ["accuracy", "sentences/s", "MB"]
    rows = {name: [float(cell) for cell in cells] for name, *cells in map(str.split, lines)}
    assert list(rows) == ["PyTorch", "model.onnx", "model_int8.onnx"]
    pytorch, float32, int8 = rows.values()
    assert pytorch[0] == float32[0] == round(trained.metrics["accuracy"], 4)
    assert pytorch[4] == 0 and float32[4] < 1e-5 < int8[4] < 0.2
    assert pytorch[3] == float32[3] == 0 and int8[3] in range(4)
    sizes = [(exported.run / "onnx" / name).stat().st_size / 1e6 for name in list(rows)[1:]]
    assert [float32[2], int8[2]] == pytest.approx(sizes, abs=0.05)
    assert int8[2] < float32[2] / 3 and all(row[1] > 0 for row in rows.values())


def test_the_pages_code_without_torch_gives_the_answers_of_predict_py(exported, classifier):
    code = block("onnxruntime")
    assert len([line for line in code.splitlines() if line]) <= 20
    guard = "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers'))\n"
    command = [sys.executable, "-c", guard + code]
    out = subprocess.run(
        command, cwd=exported.top, capture_output=True, text=True, check=True
    ).stdout
    texts = ["a warm , funny and moving film", "a dull , lifeless mess"]
    classes, probabilities = classifiers.answer(classifier, texts)
    for line, number, row in zip(out.splitlines(), classes, probabilities, strict=True):
        label, probability = line.split()
        assert label == classifier.labels[number]
        assert float(probability) == pytest.approx(row.max(), abs=1e-4)


@pytest.mark.parametrize("name, limit", [("model.onnx", 1e-4), ("model_int8.onnx", 0.2)])
def test_the_tokenizer_of_an_export_cuts_and_pads_as_in_training(exported, classifier, name, limit):
    import tokenizers

    folder = exported.run / "onnx"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    session = onnxruntime.InferenceSession(folder / name)
    encoded = tokenizer.encode_batch(TEXTS)
    assert {len(e.ids) for e in encoded} == {classifier.max_length}
    inputs = {
        "input_ids": np.array([e.ids for e in encoded]),
        "attention_mask": np.array([e.attention_mask for e in encoded]),
    }
    logits = torch.from_numpy(session.run(["logits"], inputs)[0])
    classes, probabilities = classifiers.answer(classifier, TEXTS)
    assert logits.softmax(dim=-1).numpy() == pytest.approx(probabilities, abs=limit)
    # The label of a text that is far from all training texts is a matter of rounding.
    known = [number for number, text in enumerate(TEXTS) if text in POSITIVE + NEGATIVE]
    assert logits.argmax(dim=-1)[known].tolist() == classes[known].tolist()


def test_the_tokenizer_of_an_export_does_not_depend_on_its_earlier_use(
    exported, classifier, tmp_path
):
    folder = exported.run / "onnx"
    encoder.forget_padding(classifier.tokenizer)
    onnx_export.write(tmp_path, Written(folder / "model.onnx"), classifier, False)
    assert (tmp_path / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()


# ---- Failures ----


class Written:
    """A stand-in for an exported program, which is already in a file."""

    def __init__(self, file: Path):
        self.file = file

    def save(self, target: Path) -> None:
        shutil.copy(self.file, target)


@pytest.fixture
def copy(exported, tmp_path, monkeypatch) -> Path:
    """A copy of the run, with its export, which export.py can repeat in a moment."""
    program = Written(exported.run / "onnx" / "model.onnx")
    monkeypatch.setattr(onnx_export, "export", lambda *_: program)
    monkeypatch.setattr(console, "stop_on_signals", lambda: None)
    return shutil.copytree(exported.run, tmp_path / "copy")


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        # This is the error if the disk is full during the inference of shapes.
        (DecodeError("Wire format was corrupt"), "a temporary file is truncated"),
    ],
)
def test_a_failed_write_keeps_the_old_export_and_leaves_no_partial_one(
    copy, monkeypatch, error, reason
):
    before = names(copy), names(copy / "onnx")

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(onnx_export, "quantize_dynamic", fail)
    with pytest.raises(RunError, match=rf"onnx could not be written \({reason}\); make space"):
        export.main([str(copy), "--int8"])
    assert (names(copy), names(copy / "onnx")) == before
    export.main([str(copy)])
    assert "model_int8.onnx" not in names(copy / "onnx")


def test_a_model_that_answers_differently_than_pytorch_is_not_published(copy, monkeypatch):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model" / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"].flip(0)
    save_file(weights, copy / "model" / "model.safetensors", {"format": "pt"})
    shutil.rmtree(copy / "onnx")
    with pytest.raises(
        RunError, match=r"the exported model is wrong: a probability differs by 0\.\d"
    ):
        export.main([str(copy)])
    assert not [name for name in names(copy) if name.startswith("onnx")]


def test_a_model_that_onnxruntime_cannot_run_is_not_published(copy, tmp_path, monkeypatch):
    (tmp_path / "damaged.onnx").write_bytes(b"not a model")
    monkeypatch.setattr(onnx_export, "export", lambda *_: Written(tmp_path / "damaged.onnx"))
    before = names(copy), (copy / "onnx" / "model.onnx").read_bytes()
    with pytest.raises(RunError, match="onnxruntime cannot run the exported model"):
        export.main([str(copy)])
    assert (names(copy), (copy / "onnx" / "model.onnx").read_bytes()) == before


def test_a_run_with_changed_data_is_refused(copy):
    record = json.loads((copy / "run.json").read_text())
    for name in ("train.csv", "dev.csv"):
        (copy / name).write_text(CSV)
    record["settings"]["data"] = str(copy)
    (copy / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"has changed since the run was started; restore a copy$"):
        export.main([str(copy)])


def test_missing_packages_and_a_folder_without_a_run_are_reported_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        export.main([str(tmp_path)])
    packages, run = map(str, caught.value.problems)
    pinned = " ".join(export.PACKAGES)
    assert packages == f"onnx, onnxscript, onnxruntime: not installed; use `pip install {pinned}`"
    assert run == f"{tmp_path}: run.json is missing; name the folder of a run"
    assert f"`pip install {pinned}`" in (ROOT / "docs" / "predict.md").read_text()
    assert {*export.PACKAGES} <= {*(ROOT / "tests" / "requirements.txt").read_text().split()}
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(
        InputError, match=r"run\.json cannot be read \(unexpected content\)"
    ) as caught:
        export.main([str(tmp_path)])
    assert "--output-dir" not in str(caught.value)


# ---- The program ----


def test_help_and_a_wrong_argument_are_answered_before_the_slow_imports(tmp_path):
    code = """
import sys, export
for argument in ("--frobnicate", sys.argv[1], "--help"):
    try:
        export.main([argument])
    except (export.InputError, SystemExit) as error:
        print(type(error).__name__)
print(sorted({"torch", "transformers", "datasets", "onnx", "onnxruntime"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = out.splitlines()
    assert (*lines[:2], *lines[-2:]) == ("InputError", "InputError", "SystemExit", "[]"), out


@pytest.mark.long
def test_the_program_prints_only_its_own_lines(exported):
    command = [sys.executable, str(ROOT / "export.py"), "runs/first"]
    done = subprocess.run(command, cwd=exported.top, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr
    lines = done.stderr.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("exporting "))
    assert [line.split()[0] for line in lines[start:]] == ["exporting", "written"]


# ---- Families ----

V3 = DISENTANGLED | BUCKETS | {"type_vocab_size": 0}
FAMILIES = [
    ("distilbert", {}, True),
    ("bert", {}, True),
    ("roberta", {}, False),
    ("electra", {}, True),
    ("mpnet", {}, False),
    ("modernbert", {}, False),
    ("deberta-v2", V3, True),
]


def plain(kind: str, options: dict, folder: Path) -> classifiers.Classifier:
    """A random model whose answers depend on all of its input."""
    model = load(kind, folder, options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return classifiers.Classifier(model, tokenizer, 512, "fp32", ["a", "b"], None)


@pytest.mark.long
@pytest.mark.parametrize("kind, options, pairs", FAMILIES, ids=[kind for kind, *_ in FAMILIES])
def test_each_family_answers_as_pytorch_does_at_any_length_and_batch_size(
    kind, options, pairs, tmp_path
):
    classifier = plain(kind, options, tmp_path)
    onnx_export.export(classifier, pairs).save(tmp_path / "model.onnx")
    forward = onnx_export._forward(tmp_path / "model.onnx")
    random, logits, expected = np.random.default_rng(0), [], []
    for lengths in ([1], [300], [2, 9], [17, 3, 40, 1, 5], [*range(290, 256, -1)]):
        rows = [{"input_ids": random.integers(1000, 2000, length)} for length in lengths]
        for row in rows if pairs else ():
            row["token_type_ids"] = random.integers(0, 2, len(row["input_ids"]))
        (inputs,) = batches.collate(rows, classifier.tokenizer.pad_token_id, None)
        with torch.inference_mode():
            expected.append(classifier.model(**inputs).logits)
        logits.append(forward(inputs))
    logits, expected = torch.cat(logits), torch.cat(expected)
    assert (logits - expected).abs().max() < 1e-3 * expected.std(dim=0).min()


@pytest.mark.long
def test_a_model_that_pytorch_cannot_export_is_refused_in_one_line(tmp_path):
    classifier = plain("bert", {"chunk_size_feed_forward": 4}, tmp_path)
    with pytest.raises(InputError, match="this bert model cannot be exported") as caught:
        onnx_export.export(classifier, False)
    assert "\n" not in str(caught.value)
