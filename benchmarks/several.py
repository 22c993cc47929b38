"""Training speed of one process, and of two processes that share each batch.

python benchmarks/several.py            three rounds, 8 minutes on two cores
python benchmarks/several.py --quick    one short round, two minutes

DistilBERT's size, 128 sentences a step, one thread a process. torchrun starts one process and two
in turns. Sentences are chosen as in speed.py. Results are written to benchmarks/results/.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from contenders import project_batches, project_settings, project_tokens, train_steps
from measure import machine
from speed import spread
from work import HERE, WARM_UP, make_sentences, new_model

BATCH_SIZE = 128


def in_processes(number: int, steps: int, folder: str) -> dict:
    """The measurements of `number` processes that train together."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += [str(number), __file__, "--worker", folder, str(steps)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    if done.returncode:
        processes = "1 process" if number == 1 else f"{number} processes"
        sys.exit(f"error: {processes}: training failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: str, steps: int) -> dict:
    """In each process: the rate of all processes together, and the largest share of tokens."""
    import datasets
    import torch

    import data
    import finetune
    from inputs.batches import share_out
    from system import collectives, ranks, rendezvous, speed

    rendezvous.join(sys.argv[1:])
    settings, model = project_settings(BATCH_SIZE, "fp32"), new_model()
    speed.prepare(model, settings.device, settings.precision)
    tokens = project_tokens(datasets.load_from_disk(folder), settings)
    batches = project_batches(tokens, steps, settings)
    loader = data.make_loader(tokens, batches, settings, fill_empty=True)
    optimizer = finetune.make_optimizer(model, settings)
    speed.allocate_averages(optimizer)
    replica = collectives.data_parallel(model)
    ticks, token_counts = [], []
    optimizer.register_step_post_hook(lambda *_: ticks.append(time.perf_counter()))
    train_steps(replica, optimizer, loader, settings)
    for batch in batches[WARM_UP:]:
        shares = share_out(tokens.lengths[batch], ranks.world_size())
        token_counts.append([int(tokens.lengths[batch][share].sum()) for share in shares])
    seconds = ticks[-1] - ticks[WARM_UP - 1]
    result = {
        "sentences_per_second": steps * BATCH_SIZE / seconds,
        "seconds_a_step": seconds / steps,
        "largest_share": sum(map(max, token_counts)) / sum(map(sum, token_counts)),
        "gradient_bytes": 4 * sum(p.numel() for p in model.parameters() if p.requires_grad),
        "threads": torch.get_num_threads(),
    }
    rendezvous.leave()
    return result


def table(rounds: list[dict]) -> str:
    """One line for each number of processes, then the ratio of their rates."""
    lines = [f"{'processes':10}{'sentences/s':>20}{'s a step':>20}"]
    for number in ("1", "2"):
        results = [each[number] for each in rounds]
        rate = spread([result["sentences_per_second"] for result in results])
        seconds = spread([result["seconds_a_step"] for result in results], 2)
        lines.append(f"{number:10}{rate:>20}{seconds:>20}")
    rates = [[each[n]["sentences_per_second"] for n in ("1", "2")] for each in rounds]
    ratios = [rate_of_two / rate_of_one for rate_of_one, rate_of_two in rates]
    megabytes = rounds[0]["2"]["gradient_bytes"] / 1e6
    lines.append(
        f"two are {spread(ratios, 2)} times as fast as one; {megabytes:.0f} MB of gradients"
    )
    return "\n".join(lines) + "\n"


def main(quick: bool) -> None:
    rounds, steps = [], 4 if quick else 12
    with tempfile.TemporaryDirectory() as folder:
        make_sentences().save_to_disk(folder)
        for number in range(1 if quick else 3):
            rounds.append({str(n): in_processes(n, steps, folder) for n in (1, 2)})
            print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    print(table(rounds), end="")
    result = {"machine": machine(), "rounds": rounds, "table": table(rounds).splitlines()}
    file = HERE / "results" / f"several{'-quick' * quick}.json"
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"written to {file}", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        result = measure(sys.argv[2], int(sys.argv[3]))
        if int(os.environ["RANK"]) == 0:
            print(json.dumps(result))
    else:
        parser = argparse.ArgumentParser(
            description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--quick", action="store_true")
        main(parser.parse_args().quick)
