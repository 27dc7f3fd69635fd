"""A compiled step of decoding gives what an eager one gives. In a process of its own: the shape checks of the other
tests cannot be compiled."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import torch
from armillary.backbones.bijective import Bijective
from armillary.backbones.gpt import Gpt
from armillary.backbones.llama import Llama
from armillary.backbones.perigee import Perigee
from armillary.model.network import LanguageNetwork
from armillary.model.next_token import CachedNextToken

torch.set_num_threads(1)
shapes = {
    "gpt": Gpt(d_model=32, n_layers=2, n_heads=2, max_length=64),
    "llama": Llama(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2),
    "perigee": Perigee(model_dim=32, num_layers=2, num_heads=2, oscillator_count=4, window=4),
    "bijective": Bijective(d_model=32, n_layers=2, n_heads=2, coupling="affine"),
}
for name, shape in shapes.items():
    for n_slots in (1, 3):
        torch.manual_seed(0)
        network = LanguageNetwork(shape, 50).eval().requires_grad_(False)
        views = [CachedNextToken(network, n_slots, 40, compiled=compiled) for compiled in (False, True)]
        prompts = [[1, 7, 8, 9][: 2 + i] for i in range(n_slots)]
        slots = list(range(n_slots))
        eager, compiled = (view.start(slots, prompts) for view in views)
        for _ in range(30):
            torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
            tokens = eager.argmax(1)
            eager, compiled = (view.advance(slots, tokens) for view in views)
        if n_slots > 1:  # a row has ended: the others go on, and the step that sees all rows is not used
            eager, compiled = (view.advance(slots[1:], tokens[1:]) for view in views)
            torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
print("equal")
"""


@pytest.mark.slow
def test_compiled_steps_equal_eager_ones() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
