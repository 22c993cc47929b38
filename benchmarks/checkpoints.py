"""The time that checkpoints cost in a run at DistilBERT's size.

python benchmarks/checkpoints.py            an epoch of SST-2 with the default settings, 15 minutes
python benchmarks/checkpoints.py --quick    2,000 sentences, a checkpoint every six seconds

Runs finetune.py's own main on random weights, times each write, and reads the last checkpoint back.
Files are written to a new folder in the current one, results to benchmarks/results/.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import machine
from work import HERE, SST2, new_model

PARTS = ("checkpoint", "kept model")


def make_input(folder: Path) -> Path | str:
    """Saves a random model of DistilBERT's size; returns SST-2's folder, or one of random texts."""
    import transformers

    from inputs.encoder_files import find_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(find_model("builtin"))
    new_model().save_pretrained(folder / "distilbert")
    tokenizer.save_pretrained(folder / "distilbert")
    if (SST2 / "train.tsv").exists():
        return SST2
    counts = json.loads((HERE / "sst2_lengths.json").read_text())
    random = np.random.default_rng(0)
    names = [word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii()]
    vocabulary = np.array(names)
    for name, size in (("train", None), ("dev", 872)):
        lengths = random.permutation(np.repeat(np.arange(len(counts)), counts))[:size]
        texts = [" ".join(random.choice(vocabulary, length - 2)) for length in lengths]
        rows = [f"{number % 2},{text}" for number, text in enumerate(texts)]
        (folder / f"{name}.csv").write_text("\n".join(["label,text", *rows]))
    return folder


def timed(function: Callable, size_of: Callable[..., int], writes: list[dict]) -> Callable:
    def write(*arguments: object) -> None:
        started = time.perf_counter()
        function(*arguments)
        seconds = time.perf_counter() - started
        writes.append({"seconds": seconds, "mb": size_of(*arguments) / 1e6})

    return write


def measure(quick: bool) -> dict:
    """The writes of one run, the run's seconds, and the seconds to read its last checkpoint."""
    import finetune
    from inputs import encoder
    from training import checkpoint, program, run_folder
    from training.settings import from_flags

    writes: dict[str, list[dict]] = {part: [] for part in PARTS}
    result: dict = {"writes": writes}
    finish = run_folder.finish
    # Model and optimizer of the last checkpoint, to be restored from it.
    saved: list = []

    def size_of_checkpoint(path: Path, _: object, *tensors: object) -> int:
        saved[:] = tensors
        return path.stat().st_size

    def read_then_finish(folder: Path, record: dict, history: list[dict]) -> None:
        result["seconds"] = time.perf_counter() - started
        result["read_seconds"] = -time.perf_counter()
        checkpoint.read_state(folder / run_folder.CHECKPOINT)
        checkpoint.restore(folder / run_folder.CHECKPOINT, *saved)
        result["read_seconds"] += time.perf_counter()
        finish(folder, record, history)

    checkpoint.save = timed(checkpoint.save, size_of_checkpoint, writes["checkpoint"])
    encoder.save = timed(
        encoder.save,
        lambda *arguments: sum(file.stat().st_size for file in arguments[-1].iterdir()),
        writes["kept model"],
    )
    run_folder.finish = read_then_finish
    with tempfile.TemporaryDirectory(dir=".") as temporary:
        folder = Path(temporary)
        flags = ["--model", str(folder / "distilbert"), "--data", str(make_input(folder))]
        flags += ["--epochs", "1", "--output-dir", str(folder / "run"), "--resume"]
        flags += ["--max-train-samples", "2000", "--checkpoint-minutes", "0.1"] * quick
        settings = program.read_settings(from_flags, vars(finetune), flags)
        started = time.perf_counter()
        finetune.main(settings)
    result["minutes"] = settings.checkpoint_minutes
    return result


def table(result: dict) -> str:
    """For each part: number of writes, size, seconds, and share of the run's time."""
    lines = [f"{'':12}{'writes':>8}{'MB':>8}{'s each':>18}{'of the run':>12}"]
    for part in PARTS:
        each = [write["seconds"] for write in result["writes"][part]]
        spread = f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})"
        share, size = sum(each) / result["seconds"], result["writes"][part][-1]["mb"]
        lines.append(f"{part:12}{len(each):>8}{size:>8.0f}{spread:>18}{share:>12.2%}")
    lines.append(
        f"run: {result['seconds']:.0f} s, a checkpoint each {result['minutes']:g} minutes "
        f"and at the epoch's end; read back in {result['read_seconds']:.1f} s"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    result = measure(quick)
    print(table(result), end="")
    record = {"machine": machine(), "found": result, "table": table(result).splitlines()}
    file = HERE / "results" / f"checkpoints{'-quick' * quick}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)
