"""Makes docs/settings.md from the constants: `python tests/harness/settings_page.py`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "settings.md"
INTRODUCTION = """\
# Settings

This page lists every setting of `finetune.py`. Each is a constant at the top of the file, and
a flag of the same name:

```bash
python finetune.py --batch-size 16 --learning-rate 2e-5 --output-dir runs/small-batches
```

- A setting that is on or off has two flags, such as `--compile` and `--no-compile`.
- From Python, a setting is a keyword argument: `finetune(batch_size=16)`.
- All wrong settings are reported at once, before anything is loaded.
- A flag cannot set None: leave the flag out.
- The last column says if the value may change when a run is [resumed](resume.md). "Rounding" means
  yes, but sums are rounded differently, and dropout sets different values to zero.

This page is made from the comments in `finetune.py` by `python tests/harness/settings_page.py`.

| constant and flag | default | meaning | allowed values | may change on resume |
|---|---|---|---|---|
"""


def settings_page() -> str:
    """The whole page."""
    import finetune
    from training import settings

    comments = settings.comments(Path(finetune.__file__))
    may_change = {
        settings.RESULT: "no",
        settings.ROUNDING: "rounding",
        settings.NOTHING: "yes",
    }
    lines = []
    for name, field in settings.ROWS.items():
        constant, rule = name.upper(), field.metadata
        cells = [
            f"`{constant}`<br>`{settings.flag(name)}`",
            f"`{getattr(finetune, constant)}`",
            comments[constant],
            rule["description"],
            may_change[rule["affects"]],
        ]
        lines.append(f"| {' | '.join(cells)} |\n")
    return INTRODUCTION + "".join(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(settings_page(), "utf-8")
