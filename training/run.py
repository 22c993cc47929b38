"""One run: its progress, log, checkpoints and kept model, and how it stops and resumes."""

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data import Batch
from inputs import encoder, hub
from system import collectives, console, disk, ranks, speed
from system.console import RunError, Stopped, say
from training import board, checkpoint, run_folder, scores
from training import record as records
from training.checkpoint import State
from training.load import Loaded
from training.scores import Answers


class Run:
    """One run in its folder. Every process has the same state; the main process writes files."""

    def __init__(self, loaded: Loaded, folder: Path, record: dict, state: State):
        self.settings = loaded.settings
        self.folder, self.record, self.state = folder, record, state
        self.checkpoint_file = folder / run_folder.CHECKPOINT
        self.model_folder = folder / run_folder.MODEL
        sentences = record["sentences"]["train"]
        self.steps_per_epoch = math.ceil(sentences / self.settings.batch_size)
        self.steps = self.settings.epochs * self.steps_per_epoch
        self.best_answers: Answers | None = None
        self._signals = console.DeferredSignals()
        # Loss and gradient norm of a step, on the device, and its learning rate.
        self._unread: list[tuple[torch.Tensor, float]] = []
        self._started = loaded.started - state.seconds
        self._saved, self._saved_at = (state.epoch, state.step), time.monotonic()

    # The order in which a run is resumed matters:
    # 1. The folder is locked before anything is read, so that no other process changes the files.
    # 2. Settings, data and model are compared with run.json before anything is written.
    # 3. The whole checkpoint is checked; metrics.jsonl is cut back to its step.
    # 4. The main process loads weights and AdamW's averages, and sends them to all processes.
    # 5. From here signals wait for the end of a step, because there is a state to save.
    # 6. The kept model is written again if a kill came between a checkpoint and the model.

    @classmethod
    @contextlib.contextmanager
    def open(cls, loaded: Loaded) -> Iterator["Run"]:
        """A new run, or the run to resume: steps 1 to 3."""
        with run_folder.claim(loaded.settings, loaded.record) as claimed:
            say(f"writing to {claimed.folder}")
            yield cls(loaded, *claimed)

    @contextlib.contextmanager
    def training(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        optimizer: torch.optim.Optimizer,
    ) -> Iterator[None]:
        """Restore the run: steps 4 to 6. Inside, a signal stops the run with a checkpoint."""
        self._model, self._tokenizer, self._optimizer = model, tokenizer, optimizer
        if ranks.is_main() and self.checkpoint_file.exists():
            checkpoint.restore(self.checkpoint_file, model, optimizer)
        collectives.broadcast_averages(optimizer)
        speed.allocate_averages(optimizer)
        has_board = self.settings.tensorboard and ranks.is_main()
        total = self.settings.epochs * self.record["sentences"]["train"]
        with (
            self._signals,
            console.progress(total, "sentences", "training", self.state.sentences) as self._bar,
            board.opened(self.folder, self.state.history, has_board) as self._show,
        ):
            try:
                self._write_kept_model()
                yield
                # A signal may come after the last batch, after which `watch` does not check.
                self.stop_if_signalled()
            except Stopped:
                self.save()
                # A barrier, because torchrun ends all processes when the first has ended.
                collectives.all_gather(None)
                flags = f"--output-dir {console.quoted(str(self.folder))} --resume"
                say(f"to continue from step {self.step}, repeat the command with {flags}")
                raise
        self.state.seconds = time.monotonic() - self._started

    @property
    def epoch(self) -> int:
        """The number of complete epochs."""
        return self.state.epoch

    @property
    def step(self) -> int:
        """The number of complete steps."""
        return self.state.step

    @property
    def steps_into_epoch(self) -> int:
        """The number of complete steps in the current epoch."""
        return self.state.step - self.state.epoch * self.steps_per_epoch

    def watch(self, loader: DataLoader[Batch], title: str = "") -> Iterator[Batch]:
        """Batches of `loader`, with a bar if `title`; a signal stops the run between batches."""
        self._line_start = self.state.sentences, time.monotonic()
        with console.progress(len(loader), "batches", title, show=bool(title)) as bar:
            for batch in loader:
                self.stop_if_signalled()
                yield batch
                bar.update()

    def stop_if_signalled(self) -> None:
        """Raise Stopped in all processes if one of them got a signal."""
        if number := collectives.highest(self._signals.number):
            raise Stopped(number)

    def end_step(
        self, batch: Batch, loss: torch.Tensor, norm: torch.Tensor, learning_rate: float
    ) -> None:
        """Count a step, log it, and save a checkpoint if it is time."""
        self._unread.append((torch.stack([loss, norm]), learning_rate))
        self.state.step += 1
        self.state.sentences += batch.sentences
        if self.step % self.settings.log_every == 0 or self.step % self.steps_per_epoch == 0:
            self._log_steps(learning_rate)
        self._bar.update(batch.sentences)
        if time.monotonic() - self._saved_at >= 60 * self.settings.checkpoint_minutes:
            self.save()

    def _log_steps(self, learning_rate: float) -> None:
        self._read_losses()
        losses, norms = zip(*self.state.window, strict=True)
        sentences, started = self._line_start
        rate = (self.state.sentences - sentences) / (time.monotonic() - started)
        line = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": sum(losses) / len(losses),
            "learning_rate": learning_rate,
            "grad_norm": norms[-1],
            "samples_per_second": round(rate, 1),
        }
        self._log(line)
        self._bar.set_postfix_str(f"epoch {self.epoch}, loss {line['loss']:.3f}", False)
        self.state.window = []
        self._line_start = self.state.sentences, time.monotonic()

    def _read_losses(self) -> None:
        # Each reading makes Python wait for the device, so only this method reads.
        tensors, rates = zip(*self._unread, strict=True) if self._unread else ((), ())
        values = torch.stack(tensors).tolist() if tensors else []
        first = self.step - len(values) + 1
        for step, (loss, norm), rate in zip(itertools.count(first), values, rates, strict=False):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise RunError(
                    f"step {step}: the loss or its gradient is not finite (learning rate "
                    f"{rate:.3g}); use a lower --learning-rate"
                )
        self.state.window += values
        self._unread = []

    def _log(self, line: dict) -> None:
        self.state.history.append(line)
        if ranks.is_main():
            disk.append_line(self.folder / records.METRICS, line)
        self._show(line)

    def end_epoch(self, metrics: dict[str, float], answers: Answers) -> None:
        """Log an evaluation; save a checkpoint, and then the model if this epoch is the best.

        RunError if the validation loss is not finite.
        """
        loss = float(answers.losses.mean(dtype=float))
        if not math.isfinite(loss):
            raise RunError(
                f"epoch {self.epoch}: the validation loss is not finite; "
                "use a lower --learning-rate"
            )
        line = {"epoch": self.epoch, "step": self.step, "eval_loss": loss}
        self._log(line | {f"eval_{name}": value for name, value in metrics.items()})
        keep = "accuracy" if self.settings.keep == "best" else self.settings.keep
        # If two epochs tie, the earlier one is kept.
        if keep == "last" or metrics[keep] > self.state.best.get(keep, -math.inf):
            self.state.best = {"epoch": self.epoch, **metrics, "loss": loss}
            self.best_answers = answers
        self.state.epoch += 1
        # The checkpoint goes first: after a kill in between, `training` writes the model from it.
        self.save()
        self._write_kept_model()

    def save(self) -> None:
        """Write a checkpoint, unless the last checkpoint has this state."""
        if ranks.is_main() and self._saved != (self.epoch, self.step):
            self._read_losses()
            self.state.seconds = time.monotonic() - self._started
            checkpoint.save(self.checkpoint_file, self.state, self._model, self._optimizer)
            self._saved, self._saved_at = (self.epoch, self.step), time.monotonic()

    def _write_kept_model(self) -> None:
        if not ranks.is_main() or not self.state.best:
            return
        at_epoch_end = self.steps_into_epoch == 0
        if at_epoch_end and self.state.best["epoch"] == self.epoch - 1:
            encoder.save(self._model, self._tokenizer, self.model_folder)
        elif not self.model_folder.is_dir():
            raise RunError(
                f"{self.model_folder}: the kept model is missing; restore the folder from a copy, "
                "or choose a new --output-dir"
            )

    def restore_best(self, model: PreTrainedModel) -> None:
        """Load the saved weights of the kept epoch into `model`."""

        def read() -> None:
            path, labels = str(self.model_folder.absolute()), self.record["labels"]
            kept = encoder.load(path, labels, self.settings.max_length)
            model.load_state_dict(kept.model.state_dict())

        collectives.from_main(read)
        collectives.broadcast_weights(model)

    def add_result(self, answers: Answers, test: dict[str, float] | None) -> None:
        """Add the kept epoch's scores, and its scores on the `test` split, to the record."""
        result = dict(self.state.best)
        if test:
            say(f"test: {{'accuracy': {test['accuracy']}}}")
            result["test_accuracy"] = test["accuracy"]
        result |= scores.summary(result["accuracy"], answers)
        result["seconds"] = round(self.state.seconds, 1)
        self.record = self.record | {"result": result}
        if line := scores.never_predicted_line(answers, self.record["labels"]):
            say(line)

    def finish(self) -> None:
        """Write the result, remove the checkpoint, and print the result."""
        result, sentences = self.record["result"], self.record["sentences"]["validation"]
        if ranks.is_main():
            run_folder.finish(self.folder, self.record, self.state.history)
        say(scores.accuracy_line(result, sentences))
        say(run_folder.result_line(self.folder, result))
        if self.record["replaced"]:
            say(hub.stand_in_line(self.record["replaced"]))


def load_result(folder: Path) -> tuple[dict, encoder.Encoder]:
    """The result of the complete run in `folder`, and its kept model on the CPU."""
    record = records.read(folder)
    kept, length = folder / run_folder.MODEL, record["settings"]["max_length"]
    return record["result"], encoder.load(str(kept.absolute()), record["labels"], length)
