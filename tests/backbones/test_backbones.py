"""What every backbone must hold: causality, padding, isolation, blocks, caches. A new one joins by its file name."""

from __future__ import annotations

import pytest
import torch

from armillary.contracts import Layout
from armillary.model.network import LanguageNetwork, count_parameters, meta_network
from armillary.model.next_token import CachedNextToken
from armillary.registry import find, make, names

V, D, L = 11, 16, 12
SMALL = {
    "bijective": {"d_model": D, "n_layers": 2, "n_heads": 4, "coupling": "affine"},
    "gpt": {"d_model": D, "n_layers": 2, "n_heads": 4, "max_length": 32},
    "llama": {"d_model": D, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2},
    "perigee": {"model_dim": D, "num_layers": 2, "num_heads": 4, "oscillator_count": 3, "window": 4, "max_radius": 4},
    "respsann": {"d_model": D, "n_layers": 2, "n_heads": 4, "positional_encoding": "alibi"},
    "waveresnet": {"d_model": D, "n_layers": 2, "n_heads": 4, "wave_dilation_growth": 2},
}


def test_every_backbone_has_a_small_shape_here():
    assert set(names("backbones")) == set(SMALL)


@pytest.fixture(params=sorted(SMALL))
def network(request) -> LanguageNetwork:
    torch.manual_seed(0)
    network = LanguageNetwork(make("backbones", request.param, SMALL[request.param]), V).double().eval()
    for parameter in network.parameters():  # far from the initialisation, where mistakes hide
        torch.nn.init.normal_(parameter, std=0.4)
    return network


def logits(network, tokens, layout):
    with torch.no_grad():
        return network(tokens, layout)


@pytest.fixture
def tokens():
    return torch.randint(V, (3, L), generator=torch.Generator().manual_seed(1))


def test_causal_sees_no_future_and_full_does(network, tokens):
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % V
    causal = (logits(network, tokens, Layout("causal")) - logits(network, changed, Layout("causal"))).abs().amax((0, 2))
    assert causal[:7].max() == 0
    assert causal[7:].min() > 1e-6
    full = (logits(network, tokens, Layout("full")) - logits(network, changed, Layout("full"))).abs().amax((0, 2))
    assert full.min() > 1e-6


@pytest.mark.parametrize("direction", ["causal", "full"])
def test_padding_and_batch_composition_change_nothing(network, tokens, direction):
    alone = logits(network, tokens[:1, :5], Layout(direction))
    padded = tokens.clone()
    segments = torch.zeros_like(tokens)
    segments[0, 5:] = -1
    together = logits(network, padded, Layout(direction, segments=segments))
    torch.testing.assert_close(together[:1, :5], alone, atol=1e-12, rtol=0)
    assert torch.isfinite(together).all()


@pytest.mark.parametrize("direction", ["causal", "full"])
def test_isolated_documents_equal_documents_alone(network, tokens, direction):
    cut = 5
    segments = (torch.arange(L) >= cut).long().expand_as(tokens).contiguous()
    places = torch.arange(L)
    positions = torch.where(places < cut, places, places - cut).expand_as(tokens).contiguous()
    together = logits(network, tokens, Layout(direction, segments=segments, positions=positions))
    first = logits(network, tokens[:, :cut], Layout(direction))
    second = logits(network, tokens[:, cut:], Layout(direction))
    torch.testing.assert_close(together, torch.cat([first, second], 1), atol=1e-12, rtol=0)


@pytest.mark.parametrize("block", [1, 3, 4])
def test_blocks_in_one_pass_equal_the_loop_over_blocks(network, tokens, block):
    """arXiv 2503.09573: [noisy ; clean] under the block mask = each noisy block behind its clean past."""
    noisy = (tokens + 3) % V
    together = logits(network, torch.cat([noisy, tokens], 1), Layout("blocks", block=block))[:, :L]
    for start in range(0, L, block):
        past = tokens[:, :start]
        row = torch.cat([past, noisy[:, start : start + block]], 1)
        # Block by block through a cache: the past sees itself by blocks, the noisy block sees all of it.
        alone = _blockwise(network, row, block)[:, start:]
        torch.testing.assert_close(together[:, start : start + block], alone, atol=1e-12, rtol=0)


def _blockwise(network, row, block):
    cache = network.allocate(row.shape[0], L)
    out = []
    with torch.no_grad():
        for start in range(0, row.shape[1], block):
            hidden = network.hidden(row[:, start : start + block], Layout("full"), cache=cache)
            out.append(network.head.log_p(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]))
    return torch.cat(out, 1)


def test_cached_equals_uncached_with_mixed_prompt_lengths(network, tokens):
    view = CachedNextToken(network, n_slots=4, capacity=L)
    lengths = [2, 7, 4]
    got = [view.start([0, 2, 3], [tokens[i, :n].tolist() for i, n in enumerate(lengths)])]
    for step in range(4):
        got.append(view.advance([0, 2, 3], torch.stack([tokens[i, n + step] for i, n in enumerate(lengths)])))
    for i, n in enumerate(lengths):
        whole = logits(network, tokens[i : i + 1, : n + 4], Layout("causal"))[0, n - 1 :]
        torch.testing.assert_close(torch.stack([g[i] for g in got]), whole, atol=1e-12, rtol=0)


def test_a_slot_can_be_used_again_and_read_without_being_kept(network, tokens):
    view = CachedNextToken(network, n_slots=2, capacity=L)
    view.start([0, 1], [tokens[0].tolist()[:9], tokens[1].tolist()[:3]])
    view.release([0])
    again = view.start([0], [tokens[2].tolist()[:4]])
    whole = logits(network, tokens[2:3, :4], Layout("causal"))[:, -1]
    torch.testing.assert_close(again, whole, atol=1e-12, rtol=0)
    one = torch.tensor([1])
    network.hidden(tokens[1:2, 3:6], Layout("full"), cache=view.cache.at(one).tentative())
    assert view.cache.lengths.tolist() == [4, 3]
    after = view.advance([1], tokens[0, :1])
    row = torch.cat([tokens[1:2, :3], tokens[0:1, :1]], 1)
    torch.testing.assert_close(after, logits(network, row, Layout("causal"))[:, -1], atol=1e-12, rtol=0)


def test_activations_computed_again_give_the_same_gradients(network, tokens):
    grads = []
    network.train()
    for recomputes in (False, True):
        network.backbone.blocks.recomputes = recomputes
        network.zero_grad()
        network.head.weighted_nll(network.hidden(tokens, Layout("causal")).flatten(0, 1), tokens.flatten())[
            0
        ].backward()
        grads.append([p.grad.clone() for p in network.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_only(tokens):
    for name in SMALL:
        network = LanguageNetwork(make("backbones", name, SMALL[name] | {"dropout": 0.5}), V)
        assert not torch.equal(network(tokens, Layout("causal")), network(tokens, Layout("causal")))
        network.eval()
        assert torch.equal(network(tokens, Layout("causal")), network(tokens, Layout("causal")))


LUMI = {  # layers, width, heads, d_ff: untied, tied (docs/from: the size table)
    "micro": ((4, 128, 2, 512), 9_438_336, 5_244_032),
    "tiny": ((6, 256, 4, 1024), 23_072_000, 14_683_392),
    "small": ((7, 384, 6, 1536), 41_686_656, 29_103_744),
    "medium": ((12, 512, 8, 2048), 83_898_880, 67_121_664),
    "base": ((14, 768, 12, 2048), 149_444_352, 124_278_528),
}


@pytest.mark.parametrize("size", sorted(LUMI))
def test_llama_sizes(size):
    (layers, width, heads, d_ff), untied, tied = LUMI[size]
    shape = find("backbones", "llama")(d_model=width, n_layers=layers, n_heads=heads, d_ff=d_ff)
    assert count_parameters(meta_network(shape, 32_768, tied=False))[0] == untied
    assert count_parameters(meta_network(shape, 32_768, tied=True))[0] == tied


@pytest.mark.parametrize(("layers", "parameters"), [(6, 6_868_992), (1, 2_920_192)])
def test_gpt_baseline_size(layers, parameters):
    shape = find("backbones", "gpt")(n_layers=layers)
    assert count_parameters(meta_network(shape, 8_192, tied=True))[0] == parameters


@pytest.mark.parametrize("name", sorted(SMALL))
def test_greedy_decoding_is_the_same_cached_uncached_and_in_a_batch(name):
    """fp32: a token may differ only where the two likeliest are closer than 1e-4 nats."""
    from armillary.samplers.left_to_right import LeftToRight, generate

    torch.manual_seed(1)
    tokenizer = find("tokens/tokenizers", "character")().train(["abcdefgh"])
    network = LanguageNetwork(make("backbones", name, SMALL[name]), tokenizer.n_vocab).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(4, 268, (n,), generator=draw).tolist() for n in (1, 3, 9, 2, 7, 4, 12, 5)]
    settings = LeftToRight(temperature=0, max_new_tokens=15)
    together = generate(CachedNextToken(network, 8, 32), prompts, settings, [0] * 8, tokenizer)
    for prompt, found in zip(prompts, together, strict=True):
        (alone,) = generate(CachedNextToken(network, 1, 32), [prompt], settings, [0], tokenizer)
        for other in (alone.tokens, uncached(network, prompt, 15)):
            assert_same_greedy(network, prompt, found.tokens, other)


@torch.no_grad()
def uncached(network, prompt, n) -> list[int]:
    row = list(prompt)
    for _ in range(n):
        log_p = network(torch.tensor([row]), Layout("causal"))[0, -1]
        log_p[[0, 1, 3]] = -torch.inf
        row.append(int(log_p.argmax()))
        if row[-1] == 2:
            return row[len(prompt) : -1]
    return row[len(prompt) :]


@torch.no_grad()
def assert_same_greedy(network, prompt, ours, theirs):
    for place, (a, b) in enumerate(zip(ours, theirs, strict=False)):
        if a != b:
            log_p = network(torch.tensor([[*prompt, *ours[:place]]]), Layout("causal"))[0, -1]
            assert abs(log_p[a] - log_p[b]) < 1e-4
            return
    assert len(ours) == len(theirs)
