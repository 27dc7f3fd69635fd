"""What flows between rooms, what each part promises, what a sampler sees.

Glossary of shapes: B rows of a batch, L positions a network sees, T tokens of a row that can be scored (a row holds
T+1), V real vocabulary size, D width, H heads, R rows of a cache, n selected rows.
t = 0 is clean, t = 1 fully corrupted. `log_p` is normalised, `logits` are not. Units are nats.
"""

from armillary.contracts.flow import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, Batch, Given, Layout, Loss, State
from armillary.contracts.parts import (
    Backbone,
    BackbonePart,
    Cache,
    Head,
    Network,
    Objective,
    OrderedObjective,
    Source,
    Tokenizer,
    TokenizerPart,
)
from armillary.contracts.views import AnyOrder, Blocks, Denoise, Latent, NextToken, ParallelSampler

__all__ = [
    "AnyOrder",
    "BOS",
    "Backbone",
    "BackbonePart",
    "Batch",
    "Blocks",
    "Cache",
    "Denoise",
    "EOS",
    "Given",
    "Head",
    "Latent",
    "Layout",
    "Loss",
    "Network",
    "NextToken",
    "Objective",
    "OrderedObjective",
    "PAD",
    "ParallelSampler",
    "SPECIAL_TOKENS",
    "Source",
    "State",
    "Tokenizer",
    "TokenizerPart",
    "UNK",
]
