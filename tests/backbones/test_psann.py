"""Both PSANN bases under every positional encoding and every kind of wave: shared/specs, "must hold" 1 to 5."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from armillary import recipe
from armillary.backbones import _psann
from armillary.contracts import Layout
from armillary.model.network import LanguageNetwork
from armillary.model.next_token import CachedNextToken
from armillary.nn.alibi import slopes, with_distance
from armillary.nn.attention import Attention
from armillary.nn.convolution import DepthwiseConvolution
from armillary.nn.sight import look
from armillary.refusal import Refusal
from armillary.registry import make
from armillary.training.optimizers.muon import is_hidden_matrix

V, L = 11, 12
ENCODINGS = ("rope", "alibi", "sinusoidal")
BASES = {
    "respsann": ("respsann", {}),
    "interleaved": ("waveresnet", {"wave_dilation_growth": 2}),
    "replaced": ("waveresnet", {"wave": "replace", "wave_kernel": 5}),
    "off": ("waveresnet", {"wave": "off"}),
}
EACH = list(itertools.product(BASES, ENCODINGS))
each = pytest.mark.parametrize(("base", "encoding"), EACH, ids=lambda x: x)


def made(base: str, encoding: str = "rope", n_vocab: int = V, **more) -> LanguageNetwork:
    torch.manual_seed(0)
    name, fields = BASES[base]
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "positional_encoding": encoding, **fields, **more}
    return LanguageNetwork(make("backbones", name, shape), n_vocab)


def far(network: LanguageNetwork) -> LanguageNetwork:
    """From its initialisation, where mistakes hide."""
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@each
def test_no_position_sees_its_future_and_all_of_its_past_is_used(base, encoding):
    network = far(made(base, encoding).double().eval())
    tokens = drawn(1, L)
    before = network(tokens, Layout())
    for t in (1, 5, L - 1):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % V
        moved = (network(changed, Layout()) - before).abs().amax((0, 2))
        assert moved[:t].max() == 0 and moved[t:].min() > 1e-9


def test_a_convolution_that_is_centred_under_a_causal_layout_is_seen(monkeypatch):
    """The fault of the published wave, planted."""
    forward = DepthwiseConvolution.forward

    def centred(self, x, sight, state=None):
        return forward(self, x, replace(sight, layout=replace(sight.layout, direction="full")), state)

    monkeypatch.setattr(DepthwiseConvolution, "forward", centred)
    for base in ("interleaved", "replaced"):
        with pytest.raises(AssertionError):
            test_no_position_sees_its_future_and_all_of_its_past_is_used(base, "rope")


@each
@pytest.mark.parametrize(("dtype", "tie"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_cached_greedy_decoding_is_the_uncached_one(base, encoding, dtype, tie):
    network = far(made(base, encoding).eval()).to(dtype)
    prompts = [drawn(n, seed=n).tolist() for n in (1, 7, 3)]
    view = CachedNextToken(network, 4, 20)
    slots, rows = [0, 3, 1], [list(prompt) for prompt in prompts]
    log_p = view.start(slots, prompts)
    for _ in range(10):
        for i, row in enumerate(rows):  # both go on with the same token, so that every step counts
            best = network(torch.tensor([row]), Layout())[0, -1]
            mine = int(log_p[i].argmax())
            assert best.max() - best[mine] < tie
            row.append(mine)
        log_p = view.advance(slots, torch.tensor([row[-1] for row in rows]))


@each
@torch.no_grad()
def test_blocks_in_one_pass_are_block_after_block_behind_the_cache(base, encoding):
    network = far(made(base, encoding).double().eval())
    clean, noisy = drawn(2, L), drawn(2, L, seed=2)
    for block in (1, 4, 5):
        together = network.hidden(torch.cat([noisy, clean], 1), Layout("blocks", block=block))[:, :L]
        cache = network.allocate(2, L)
        for start in range(0, L, block):
            part = slice(start, start + block)
            alone = network.hidden(noisy[:, part], Layout("full"), cache=cache.tentative())
            torch.testing.assert_close(together[:, part], alone, rtol=0, atol=1e-12)
            network.hidden(clean[:, part], Layout("full"), cache=cache)


@each
def test_checkpointing_changes_neither_the_loss_nor_a_gradient(base, encoding):
    network = made(base, encoding, sine_params={"freq_init_std": 0.2}).train()
    tokens, found, calls = drawn(3, L), [], []
    network.backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for recomputes in (False, True):
        network.backbone.blocks.recomputes = recomputes
        network.zero_grad()
        loss = network.head.nll(network.hidden(tokens[:, :-1], Layout()).flatten(0, 1), tokens[:, 1:].flatten()).mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in network.parameters())])
    assert len(calls) == 1 + 2  # kept; then forward and, in the backward pass, again
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@each
def test_the_loss_at_the_start_is_that_of_guessing(base, encoding):
    for width, tied in ((32, True), (256, False), (256, True)):
        shape = made(base, encoding, d_model=width, n_layers=4).backbone.shape
        network = LanguageNetwork(shape, 500, tied=tied)
        tokens = torch.randint(500, (2, 33))
        rows = network.hidden(tokens[:, :-1], Layout()).flatten(0, 1)
        loss = network.head.nll(rows, tokens[:, 1:].flatten()).mean()
        assert abs(loss - math.log(500)) < 0.1 * math.log(500)
    written = [m.weight.std() for name, m in network.named_modules() if name.endswith((".o", ".down", ".out"))]
    assert all(abs(std / (0.02 * len(written) ** -0.5) - 1) < 0.1 for std in written)


def test_sinusoids_are_as_large_as_the_embedding_they_are_added_to():
    x = 0.02 * torch.randn(2, L, 16, dtype=torch.float64)
    encoded, _, turn = _psann.ENCODINGS["sinusoidal"](x, look(Layout(), L, x.device), 2)
    torch.testing.assert_close((encoded - x).norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)
    assert turn is None


def test_every_option_changes_the_function():
    sines = [{"amp_init": 0.7}, {"freq_init": 2.0}, {"damp_init": 0.3}, {"phase_init": 0.5}, {"freq_init_std": 0.3}]
    options = [
        {},
        {"positional_encoding": "alibi"},
        {"positional_encoding": "sinusoidal"},
        {"d_mlp": 24},
        {"n_heads": 4},
    ]
    options += [{"sine_params": fields} for fields in sines]
    waves = [{}, {"wave": "replace"}, {"wave_kernel": 5}, {"wave_dilation_growth": 2}]
    cases = [("respsann", o) for o in options] + [("waveresnet", o) for o in options + waves[1:]]
    tokens, outs = drawn(2, L), {}
    for case, (name, fields) in enumerate(cases):
        torch.manual_seed(0)
        network = LanguageNetwork(make("backbones", name, {"d_model": 16, "n_layers": 2, "n_heads": 2} | fields), V)
        with torch.no_grad():
            for parameter in network.parameters():  # as large as trained ones: at first all is nearly linear
                if parameter.dim() > 1:
                    parameter.mul_(20)
            outs[case] = network(tokens, Layout())
    for a, b in itertools.combinations(outs, 2):
        assert (outs[a] - outs[b]).abs().max() > 1e-4, (cases[a], cases[b])
    # Without its wave it is the other base, weight for weight.
    torch.testing.assert_close(made("off")(tokens, Layout()), made("respsann")(tokens, Layout()), rtol=0, atol=0)


def test_what_cannot_be_is_refused():
    for name, fields, word in (
        ("respsann", {"d_model": 12, "n_heads": 4}, "rope"),
        ("respsann", {"d_model": 12, "n_heads": 5}, "multiple of n_heads"),
        ("respsann", {"wave": "off"}, "unknown key 'wave'"),
        ("waveresnet", {"wave_kernel": 4}, "odd"),
        ("waveresnet", {"wave": "off", "wave_kernel": 5}, "no meaning"),
        ("waveresnet", {"wave": "replace", "d_mlp": 8}, "d_mlp"),
        ("waveresnet", {"sine_params": {"amplitude": 1.0}}, "sine_params.amplitude"),
    ):
        with pytest.raises(Refusal, match=word):
            make("backbones", name, fields)
    for encoding in ("alibi", "sinusoidal"):  # heads of any width
        assert made("respsann", encoding, d_model=15, n_heads=5)(drawn(1, 4), Layout()).isfinite().all()
    off = recipe.override({}, ["model.backbone.wave=off"])["model"]["backbone"]
    assert make("backbones", "waveresnet", off).wave == "off"


def test_muon_takes_the_matrices_and_leaves_the_kernel():
    named = dict(made("interleaved").named_parameters())
    hidden = {name.rsplit(".", 2)[-2] for name, p in named.items() if is_hidden_matrix(name, p)}
    assert hidden == {"q", "k", "v", "o", "up", "down", "out"}
    assert {p.dim() for name, p in named.items() if "sine" in name or "beta" in name} == {1}


def test_the_slopes_are_those_of_the_paper():
    assert slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert slopes(1).tolist() == [2.0**-8]
    torch.testing.assert_close(slopes(12)[8:], torch.tensor([2.0**-e for e in (0.5, 1.5, 2.5, 3.5)]))


def test_distances_are_counted_in_fp32():
    sight = with_distance(look(Layout("full"), 600, torch.device("cpu")), 12, torch.bfloat16)
    at = torch.arange(600, dtype=torch.float64)
    known = -slopes(12).double()[:, None, None] * (at[:, None] - at).abs()
    assert sight.mask.dtype == torch.bfloat16
    assert torch.equal(sight.mask[0], known.float().bfloat16())


@pytest.mark.parametrize("layout", [Layout(), Layout("full"), Layout(segments=torch.arange(150)[None] // 70)], ids=str)
def test_training_on_a_cpu_and_inference_agree_with_distances(layout):
    """The first goes through blocks of queries, the second through torch."""
    torch.manual_seed(0)
    attention = Attention(32, 4, 2, bias=False, dropout=0.0).double()
    x = torch.randn(2, 150, 32, dtype=torch.float64)
    sight = with_distance(look(layout, 150, torch.device("cpu")), 4, x.dtype)
    with torch.no_grad():
        asked = attention(x, sight)
        plain = attention(x, look(layout, 150, torch.device("cpu")))
    torch.testing.assert_close(attention(x, sight), asked, rtol=1e-10, atol=1e-10)
    assert (asked - plain).abs().max() > 1e-3


PROGRAM = """
import torch
from armillary.contracts import Layout
from armillary.model.network import LanguageNetwork
from armillary.model.next_token import _Step
from armillary.registry import make

torch.set_num_threads(1)
for name, options in [("respsann", {"positional_encoding": "alibi"}), ("waveresnet", {"wave_dilation_growth": 2})]:
    torch.manual_seed(0)
    fields = {"d_model": 16, "n_layers": 2, "n_heads": 4, "knows_noise_level": name == "waveresnet", **options}
    network = LanguageNetwork(make("backbones", name, fields), 11)
    tokens = torch.randint(11, (1, 8))
    level = torch.ones(1, 1) if fields["knows_noise_level"] else None
    for layout in (Layout(segments=torch.tensor([[0] * 5 + [1] * 3])), Layout("blocks", block=2)):
        def hidden():
            with torch.autocast("cpu", torch.bfloat16):
                return network.hidden(tokens, layout, level)
        torch._dynamo.reset()
        found = []
        for call in (hidden, torch.compile(hidden, fullgraph=True, backend="aot_eager")):
            network.zero_grad()
            out = call().float()
            out.square().sum().backward()
            found.append([out, *(p.grad for p in network.parameters() if p.grad is not None)])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(a.detach().abs().max()))
    with torch.inference_mode():
        cache = network.allocate(1, 10)
        network.hidden(tokens[:, :3], Layout("causal"), cache=cache)
        step = torch.compile(_Step(network, cache.whole()), dynamic=False, backend="aot_eager")
        found = torch.cat([step(tokens[:, i : i + 1]) for i in range(3, 7)])
        torch.testing.assert_close(found, network(tokens[:, :7], Layout("causal"))[0, 3:], rtol=1e-4, atol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_compiled_it_is_one_graph_and_the_same():
    """In a process of its own: the shape checks of the other tests cannot be compiled."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
