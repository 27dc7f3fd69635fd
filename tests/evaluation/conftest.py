"""Tiny networks far from their initialisation, and packed text that lives in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from armillary.contracts import BOS, EOS
from armillary.model.network import LanguageNetwork
from armillary.registry import make
from armillary.tokens.packed import PackedSplit

SHAPES = {
    "gpt": {"d_model": 8, "n_layers": 1, "n_heads": 2, "max_length": 24},
    "llama": {"d_model": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1},
}


@pytest.fixture(scope="session")
def network_of() -> Callable[..., LanguageNetwork]:
    """(objective, vocabulary, backbone, seed) → a network in float64."""

    def build(objective: Any, n_vocab: int, backbone: str = "gpt", seed: int = 0) -> LanguageNetwork:
        torch.manual_seed(seed)
        network = LanguageNetwork(
            make("backbones", backbone, SHAPES[backbone]),
            n_vocab,
            n_extra=objective.n_extra_embeddings,
            is_told_targets="target_positions" in objective.needs,
        )
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        return network.double().eval().requires_grad_(False)

    return build


@pytest.fixture(scope="session")
def held_out_of() -> Callable[..., Any]:
    """Documents, as lists of tokens → (packed, split): each is framed by bos and eos."""

    def build(documents: Sequence[Sequence[int]], *, isolated: bool = False) -> Any:
        ids = [token for document in documents for token in (BOS, *document, EOS)]
        lengths = np.array([len(document) + 2 for document in documents])
        columns = [np.cumsum(lengths) - lengths, lengths - 1, lengths]
        split = PackedSplit(np.array(ids, np.uint16), np.array([0]), np.stack(columns, 1), window=len(ids) - 1)
        about = {
            "corpus_fingerprint": "0" * 64,
            "boundary": "end_of_text",
            "is_lossless": True,
            "tokenizer_sha256": "1" * 64,
            "isolate_documents": isolated,
            "splits": {"test": {"n_documents": len(documents), "text_sha256": "0" * 64}},
        }
        return SimpleNamespace(split=lambda name: split, about=about), "test"

    return build
