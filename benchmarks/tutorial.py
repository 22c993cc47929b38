"""The tutorial's loop, from which this project started, with as few changes as run today.

python benchmarks/tutorial.py      DistilBERT on SST-2 from the Hub; speed.py measures `train`

AdamW is torch's, as transformers no longer has one. Names on the Hub have owners. The metric is
this project's, as evaluate's own would run code from the Hub.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import AutoTokenizer, DistilBertForSequenceClassification

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


class SST2Dataset(Dataset):
    def __init__(self, encodings: dict[str, Sequence], labels: Sequence[int]):
        self.encodings = encodings
        self.labels = labels

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = {key: torch.tensor(values[index]) for key, values in self.encodings.items()}
        item["labels"] = torch.tensor(self.labels[index])
        return item

    def __len__(self) -> int:
        return len(self.labels)


def train(
    model: torch.nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    """One epoch."""
    model.train()
    for batch in loader:
        optimizer.zero_grad()
        input_ids = batch["input_ids"].to(device)
        attention_mask = batch["attention_mask"].to(device)
        labels = batch["labels"].to(device)
        outputs = model(input_ids, attention_mask=attention_mask, labels=labels)
        outputs[0].backward()
        optimizer.step()


def evaluate(model: torch.nn.Module, loader: DataLoader, device: torch.device) -> dict[str, float]:
    from training.scores import load_accuracy

    metric = load_accuracy()
    model.eval()
    for batch in loader:
        input_ids = batch["input_ids"].to(device)
        attention_mask = batch["attention_mask"].to(device)
        labels = batch["labels"].to(device)
        outputs = model(input_ids, attention_mask=attention_mask, labels=labels)
        predictions = outputs.logits.argmax(dim=-1)
        metric.add_batch(predictions=predictions.cpu(), references=labels.cpu())
    return metric.compute()


def main() -> None:
    from datasets import load_dataset

    sst2 = load_dataset("nyu-mll/glue", "sst2")
    tokenizer = AutoTokenizer.from_pretrained("google-bert/bert-base-uncased")
    loaders = {}
    for split in ("train", "validation"):
        encodings = tokenizer(list(sst2[split]["sentence"]), truncation=True, padding=True)
        # BERT's tokenizer returns these, and DistilBERT takes none.
        encodings.pop("token_type_ids", None)
        dataset = SST2Dataset(encodings, sst2[split]["label"])
        loaders[split] = DataLoader(dataset, batch_size=16, shuffle=True)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    model = DistilBertForSequenceClassification.from_pretrained(
        "distilbert/distilbert-base-uncased"
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    for epoch in range(3):
        train(model, loaders["train"], optimizer, device)
        print(f"epoch {epoch}: {evaluate(model, loaders['validation'], device)}")


if __name__ == "__main__":
    main()
