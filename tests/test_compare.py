"""The table of runs shows differing settings, joins seeds, and lists the best run first."""

from harness.helpers import make_history

from outputs import compare


def make_run(folder, accuracy: float | None, seconds: float = 60.0, **settings: object):
    """An untrained run; a run without an accuracy is not complete."""
    record = {"settings": {"model": "m", "data": "d", "seed": 1, "batch_size": 32} | settings}
    # A random subset of the training data is different for each seed.
    fingerprints = {"files": {"train": "x"}, "model": "y", "data": settings.get("seed")}
    record |= {"fingerprints": fingerprints, "result": None}
    if accuracy:
        record["result"] = {"epoch": 0, "accuracy": accuracy, "seconds": seconds}
    return compare.Run(folder, record, make_history(60, 3))


def test_the_table_of_runs_shows_different_settings_joins_seeds_and_lists_the_best_first(tmp_path):
    runs = [
        make_run(tmp_path / "a", 0.90, 120, learning_rate=3e-5),
        make_run(tmp_path / "b", 0.91, 180, learning_rate=1e-5, seed=2, output_dir="b"),
        make_run(tmp_path / "c", 0.93, 60, learning_rate=1e-5, seed=3, tensorboard=True),
        make_run(tmp_path / "d", None, learning_rate=1e-4, class_weights="balanced"),
    ]
    assert compare.table(runs).splitlines() == [
        "run   learning_rate  class_weights  seeds  accuracy         minutes",
        "b, c  1e-05          –              2 3    0.9200 ± 0.0141  2.0 ± 1.4",
        "a     3e-05          –              1      0.9000           2.0",
        "d     0.0001         balanced       1      0.8667           –          not complete",
    ]
    # Two different data sets can have the same name.
    changed = make_run(tmp_path / "e", 0.5)
    changed.record["fingerprints"]["files"] = {"train": "another"}
    header, *lines = compare.table([make_run(tmp_path / "f", 0.6), changed]).splitlines()
    assert header.split() == ["run", "data", "seeds", "accuracy", "minutes"]
    first, second = (line.split()[1:3] for line in lines)
    assert first[0] == second[0] == "d" and first[1] != second[1]
    same = make_run(tmp_path / "g", 0.5, seed=2, data="/elsewhere/d")
    assert len(compare.table([make_run(tmp_path / "f", 0.6), same]).splitlines()) == 2
    same_seed = make_run(tmp_path / "h", 0.6)
    assert "±" not in compare.table([make_run(tmp_path / "f", 0.6), same_seed])


def test_macro_f1_has_a_column_if_any_run_recorded_macro_f1(tmp_path):
    old, new = make_run(tmp_path / "old", 0.9), make_run(tmp_path / "new", 0.8, epochs=2)
    assert "macro_f1" not in compare.table([old, old._replace(folder=tmp_path / "other")])
    new.record["result"]["macro_f1"] = 0.75
    lines = compare.table([old, new]).splitlines()
    assert [line.split() for line in lines] == [
        ["run", "epochs", "seeds", "accuracy", "macro_f1", "minutes"],
        ["old", "–", "1", "0.9000", "–", "1.0"],
        ["new", "2", "1", "0.8000", "0.7500", "1.0"],
    ]
