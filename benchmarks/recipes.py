"""The recipes of accuracy.py: settings of finetune.py, training rows, and changes."""

# Settings that differ from finetune.py's defaults. `held_out` 10 holds out one sentence in ten, and
# `rows` is a key of ROWS in rows.py. The keys of CHANGES are not settings.
BASE = {"model": "builtin", "keep": "last", "held_out": 10, "precision": "fp32"}
# Quick looks compare recipes over few steps, and hold out more sentences, because the accuracies of
# two models on 688 sentences differ by a point by chance.
MANY_HELD_OUT = 3
FULL = {"epochs": 1, "held_out": MANY_HELD_OUT}
QUICK = FULL | {"max_train_samples": 10_000}
RECIPES = {
    "tutorial": {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 1e-5,
        "constant_rate": True,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
    },
    "one pass": {"epochs": 1},
    "one pass bf16": {"epochs": 1, "precision": "bf16"},
    "two passes": {"epochs": 2},
    # Half of the rows of `one pass`.
    "short pass": {"epochs": 1, "max_train_samples": 29_688, "freeze_embeddings": True},
    "built-in defaults": {"data": "builtin", "keep": "best"},
    "10k": QUICK,
    "10k rate 2e-4": QUICK | {"learning_rate": 2e-4},
    "10k no dropout": QUICK | {"dropout": 0.0},
    "10k frozen embeddings": QUICK | {"freeze_embeddings": True},
    "10k probed head": QUICK | {"probed_head": 2_000},
    "10k head 2": QUICK | {"head_rate": 2.0},
    "10k layers 0.9": QUICK | {"layer_decay": 0.9},
    "10k smoothing": QUICK | {"label_smoothing": 0.1},
    "10k cosine": QUICK | {"cosine_rate": True},
    "10k averaged": QUICK | {"averaged": 0.25},
    "10k long late": QUICK | {"long_late": 0.5},
    "10k sentences 4": QUICK | {"rows": "sentences 4"},
    "10k no near-duplicates": QUICK | {"rows": "no near-duplicates"},
    "10k half r-drop": QUICK | {"half_r_drop": 1.0},
    "10k masked words first": QUICK | {"masked_pass": 1e-4},
    "10k batch 16": QUICK | {"batch_size": 16},
    "10k rate 5e-5": QUICK | {"learning_rate": 5e-5},
    "10k bf16": QUICK | {"precision": "bf16"},
    # All 43,126 rows that are not of the held-out third.
    "43k": FULL,
    "43k no dropout": FULL | {"dropout": 0.0},
    "43k half r-drop": FULL | {"half_r_drop": 1.0},
    "43k bf16": FULL | {"precision": "bf16"},
    "one pass no dropout": {"epochs": 1, "dropout": 0.0},
    "half no dropout": {"epochs": 1, "max_train_samples": 29_688, "dropout": 0.0},
    "short no dropout": {"epochs": 1, "max_train_samples": 31_000, "dropout": 0.0},
}
