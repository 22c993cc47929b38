"""The config of an encoder → a learning rate, from published recipes or by the width."""

import math

from transformers import PreTrainedConfig

Rates = dict[tuple[float, float], float]

ANY = math.inf
# RoBERTa and XLM-R; MiniLM was distilled from both, with width 384.
ROBERTA = {(384, ANY): 5e-5, (768, ANY): 2e-5, (ANY, ANY): 1e-5}
# For each model_type: (at most this width, at most this many layers): rate; the first that fits.
# docs/models.md names the source of each rate.
FAMILIES: dict[str, Rates] = {
    # `builtin` has 384 and 6, MiniLM 384 and 12.
    "bert": {(384, 6): 1e-4, (512, ANY): 5e-5, (768, ANY): 3e-5, (ANY, ANY): 2e-5},
    "distilbert": {(ANY, ANY): 3e-5},
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    # The authors lower the rate from layer to layer; these are the means over the layers.
    "electra": {(256, ANY): 7e-5, (768, ANY): 2.5e-5, (ANY, ANY): 1.5e-5},
    # DeBERTa-v3 has the architecture of v2.
    "deberta-v2": {
        (384, ANY): 4.5e-5,
        (768, 6): 4.5e-5,
        (768, ANY): 1.5e-5,
        (1024, ANY): 7e-6,
        (1536, 24): 4e-6,
        (ANY, ANY): 3e-6,
    },
    # ModernBERT and Ettin.
    "modernbert": {(768, ANY): 8e-5, (1024, ANY): 3e-5, (ANY, ANY): 1e-5},
}
# A wider model gets a lower rate, within the rates above at the same widths.
OTHERS: Rates = {(512, ANY): 5e-5, (768, ANY): 3e-5, (1024, ANY): 1e-5, (ANY, ANY): 5e-6}


def choose(config: PreTrainedConfig) -> float:
    """The highest learning rate of a run that fine-tunes a model with this config."""
    # Only the text part of a model for texts and images has these sizes.
    text = config.get_text_config()
    # Perceiver names no width; the last row fits any model.
    width = getattr(text, "hidden_size", ANY)
    layers = getattr(text, "num_hidden_layers", ANY)
    rates = FAMILIES.get(text.model_type, OTHERS)
    return next(rate for size, rate in rates.items() if width <= size[0] and layers <= size[1])
