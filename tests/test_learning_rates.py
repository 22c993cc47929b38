"""Left alone, the learning rate suits the family and the size of the encoder."""

import re

import pytest
import transformers
from harness.checks import check_done
from harness.helpers import ROOT, copy_tokenizer

from inputs import encoder_files, learning_rates

PAGE = (ROOT / "docs" / "models.md").read_text("utf-8")
# Name of the encoder, width, layers, rate.
ROWS = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \| ([\d.e-]+) \|", PAGE, re.MULTILINE)
TYPES = {
    "`builtin`": "bert",
    "BERT": "bert",
    "MiniLM": "bert",
    "multilingual": "xlm-roberta",
    "DistilBERT": "distilbert",
    "RoBERTa": "roberta",
    "ELECTRA": "electra",
    "DeBERTa": "deberta-v2",
    "ModernBERT": "modernbert",
    "Ettin": "modernbert",
}


def type_of(name: str) -> str:
    """The model_type of an encoder of the page, by the first word of its name."""
    return TYPES[re.split("[ -]", name)[0]]


def rate_of(model_type: str, width: int, layers: int) -> float:
    """The rate for a config with these sizes, under the names that its family has for them."""
    config = transformers.AutoConfig.for_model(model_type)
    config.hidden_size, config.num_hidden_layers = width, layers
    return learning_rates.choose(config)


def test_each_encoder_of_the_page_gets_the_rate_of_the_page():
    chosen = {
        name: rate_of(type_of(name), int(width), int(layers)) for name, width, layers, _ in ROWS
    }
    assert chosen == {name: float(rate) for name, *_, rate in ROWS} and len(chosen) == 27


def test_the_page_lists_each_rate_of_each_family():
    families = learning_rates.FAMILIES
    # RoBERTa and XLM-R share their rates.
    listed = {(str(families[type_of(name)]), float(rate)) for name, *_, rate in ROWS}
    assert listed == {(str(rates), rate) for rates in families.values() for rate in rates.values()}


def test_the_default_and_the_builtin_model_keep_their_rates():
    builtin = transformers.AutoConfig.from_pretrained(encoder_files.find_model("builtin"))
    assert learning_rates.choose(builtin) == 1e-4
    # DistilBERT calls its sizes dim and n_layers.
    assert learning_rates.choose(transformers.DistilBertConfig()) == 3e-5


@pytest.mark.parametrize(
    "width, layers, top, decay",
    [(256, 12, 3e-4, 0.8), (768, 12, 1e-4, 0.8), (1024, 24, 5e-5, 0.9)],
)
def test_electra_gets_the_mean_of_the_rates_of_its_layers(width, layers, top, decay):
    # As in google-research/electra, model/optimization.py.
    rates = [top * decay ** (layers + 2 - layer) for layer in range(1, layers + 1)]
    assert rate_of("electra", width, layers) == pytest.approx(sum(rates) / layers, rel=0.07)


def test_an_unknown_family_gets_a_rate_by_width_that_known_families_have_there():
    row = re.search(r"^\| taken \| (.+) \|$", PAGE, re.MULTILINE)[1]
    ranges = [(0, 512), (512, 768), (768, 1024), (1024, 4096)]
    for (low, high), rate in zip(ranges, map(float, row.split(" | ")), strict=True):
        assert rate_of("mpnet", low + 1, 12) == rate_of("mpnet", high, 12) == rate
        known = [float(rate) for _, width, _, rate in ROWS if low < int(width) <= high]
        assert min(known) <= rate <= max(known)


def test_a_config_that_names_no_width_gets_the_lowest_rate_instead_of_a_traceback():
    assert learning_rates.choose(transformers.PerceiverConfig()) == 5e-6


def test_a_run_prints_and_records_the_rate_of_its_encoder(in_process, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0)
    ids |= {"cls_token_id": 101, "sep_token_id": 102}
    config = transformers.ModernBertConfig(
        vocab_size=30522, num_attention_heads=2, max_position_embeddings=64, **sizes, **ids
    )
    transformers.ModernBertForMaskedLM(config).save_pretrained(tmp_path / "model")
    copy_tokenizer(tmp_path / "model")
    flags = ["--data", "builtin", "--max-train-samples", "32", "--epochs", "1"]
    run = in_process("--model", "model", *flags, "--output-dir", "run")
    record = check_done(run, tmp_path / "run")
    assert "learning rate 8e-05, " in run.err
    assert record["settings"]["learning_rate"] == 8e-5
    assert record["asked"]["learning_rate"] is None
