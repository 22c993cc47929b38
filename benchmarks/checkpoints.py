"""What it costs that a run cannot be lost: the time of its checkpoints, at DistilBERT's size.

python benchmarks/checkpoints.py            an epoch of SST-2 with the default settings, 15 minutes
python benchmarks/checkpoints.py --quick    2,000 sentences, a checkpoint each six seconds

Runs finetune.py's own main, on random weights, with a clock around what is written; then reads the
last checkpoint back. Written is to a folder made in the current one. Results go to
benchmarks/results/.
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
    """A checkpoint of DistilBERT's size with random weights; SST-2, or words of its lengths."""
    import transformers

    from inputs.encoder_files import find_model

    tokenizer = transformers.AutoTokenizer.from_pretrained(find_model("builtin"))
    new_model().save_pretrained(folder / "distilbert")
    tokenizer.save_pretrained(folder / "distilbert")
    if (SST2 / "train.tsv").exists():
        return SST2
    counts = json.loads((HERE / "sst2_lengths.json").read_text())
    random = np.random.default_rng(0)
    words = np.array([word for word in tokenizer.get_vocab() if word.isalpha() and word.isascii()])
    for name, size in (("train", None), ("dev", 872)):
        lengths = random.permutation(np.repeat(np.arange(len(counts)), counts))[:size]
        rows = [f"{i % 2},{' '.join(random.choice(words, n - 2))}" for i, n in enumerate(lengths)]
        (folder / f"{name}.csv").write_text("\n".join(["label,text", *rows]))
    return folder


def timed(real: Callable, size_of: Callable[..., int], writes: list[dict]) -> Callable:
    def write(*arguments: object) -> None:
        started = time.perf_counter()
        real(*arguments)
        seconds = time.perf_counter() - started
        writes.append({"seconds": seconds, "mb": size_of(*arguments) / 1e6})

    return write


def measure(quick: bool) -> dict:
    """All writes of one run, its seconds, and those of reading the last checkpoint."""
    import finetune
    from inputs import encoder
    from training import checkpoint, program, run_folder
    from training.settings import from_flags

    writes: dict[str, list[dict]] = {part: [] for part in PARTS}
    found: dict = {"writes": writes}
    finish = run_folder.finish
    saved: list = []  # The model and the optimizer of the last checkpoint.

    def size_of_checkpoint(path: Path, _: object, *tensors: object) -> int:
        saved[:] = tensors
        return path.stat().st_size

    def read_then_finish(folder: Path, record: dict, history: list[dict]) -> None:
        found["seconds"] = time.perf_counter() - started
        found["read_seconds"] = -time.perf_counter()
        checkpoint.read_state(folder / run_folder.CHECKPOINT)
        checkpoint.restore(folder / run_folder.CHECKPOINT, *saved)
        found["read_seconds"] += time.perf_counter()
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
    found["minutes"] = settings.checkpoint_minutes
    return found


def table(found: dict) -> str:
    """How often each part was written, how large it is, how long it took, and its share."""
    lines = [f"{'':12}{'writes':>8}{'MB':>8}{'s each':>18}{'of the run':>12}"]
    for part in PARTS:
        each = [write["seconds"] for write in found["writes"][part]]
        spread = f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})"
        share, size = sum(each) / found["seconds"], found["writes"][part][-1]["mb"]
        lines.append(f"{part:12}{len(each):>8}{size:>8.0f}{spread:>18}{share:>12.2%}")
    lines.append(
        f"run: {found['seconds']:.0f} s, a checkpoint each {found['minutes']:g} minutes and at the "
        f"epoch's end; read back in {found['read_seconds']:.1f} s"
    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    found = measure(quick)
    print(table(found), end="")
    result = {"machine": machine(), "found": found, "table": table(found).splitlines()}
    file = HERE / "results" / f"checkpoints{'-quick' * quick}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)
