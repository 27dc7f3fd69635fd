"""Decoding at batch 1 with a cache, ours and transformers' `generate`, on the LLaMA `tiny` of training_speed.

Usage: python benchmarks/decoding_speed.py [--rounds 7]

Prompt of 32 tokens, 256 new ones, greedy, no early end; weights in fp32 or bf16, random. Prefill is in the time; what
compiling costs once is not (about ten seconds).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from contest import KEPT_ALLOCATOR, SYSTEM_ALLOCATOR, compete, show, work, write
from training_speed import SHAPES, peer

PROMPT, NEW = 32, 256
OURS, PEER = "armillary", "generate"


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--worker"]:
        who, precision, mode, allocator = arguments[1].split("/")
        contender = {OURS: ours, PEER: generate}[who]
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        work(lambda: contender(dtype, mode == "compiled"), allocator)
        return
    n_rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 7
    readings: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        mine = f"{OURS}/{precision}/compiled/{KEPT_ALLOCATOR}"
        others = [f"{OURS}/{precision}/eager/{KEPT_ALLOCATOR}"]
        others += [f"{PEER}/{precision}/eager/{allocator}" for allocator in (SYSTEM_ALLOCATOR, KEPT_ALLOCATOR)]
        others += [f"{PEER}/{precision}/compiled/{KEPT_ALLOCATOR}"]
        readings[precision] = compete(__file__, [mine, *others], n_rounds)
        show(readings[precision], mine)
    print(write("decoding_speed", readings, "python benchmarks/decoding_speed.py " + " ".join(arguments)))


def ours(dtype: torch.dtype, compiled: bool) -> Iterator[int]:
    """The left-to-right engine over the cached view: what `armillary sample` runs."""
    from armillary.model.next_token import CachedNextToken
    from armillary.samplers.left_to_right import LeftToRight

    network = _network().to(dtype).eval().requires_grad_(False)
    settings = LeftToRight(temperature=0, max_new_tokens=NEW)
    view = CachedNextToken(network, n_slots=1, capacity=PROMPT + NEW, compiled=compiled)
    words: Any = Words(SHAPES["tiny"]["n_vocab"])
    while True:
        n_tokens = settings.generate(view, [_prompt()], [0], words)[0].n_tokens
        assert n_tokens == NEW
        yield n_tokens


def generate(dtype: torch.dtype, compiled: bool) -> Iterator[int]:
    """compiled: with the static cache that `generate` can be compiled with, its forward pass compiled."""
    model: Any = peer("tiny").to(dtype).eval()
    if compiled:
        model.generation_config.cache_implementation = "static"
        model.forward = torch.compile(model.forward)
    model.generation_config.eos_token_id = None
    prompt = torch.tensor([_prompt()])
    while True:
        out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
        yield out.shape[1] - PROMPT


def _network() -> torch.nn.Module:
    from armillary import recipe
    from armillary.assemble import build, parts

    found = parts.resolve(recipe.raw("lumi-tiny", ["model.tied=true"]))
    network = build.network(found, SHAPES["tiny"]["n_vocab"])
    with torch.no_grad():
        network.embedding.weight[2].zero_()  # eos is never the likeliest
    return network


def _prompt() -> list[int]:
    return torch.randint(4, 1_000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()


class Words:
    """The engine asks a tokenizer what each token spells; reading it costs the same whatever it says."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        self.markers: dict[str, int] = {}

    def token_bytes(self, token: int) -> bytes:
        return b"word "


if __name__ == "__main__":
    main()
