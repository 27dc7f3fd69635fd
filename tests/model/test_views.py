"""Views of a model for parallel samplers: what they answer is what the network says, in whatever way it was asked."""

from __future__ import annotations

import itertools

import pytest
import torch

from armillary.contracts import AnyOrder, Batch, Blocks, Denoise, Layout
from armillary.corruption.schedules import Cosine, Geometric, LogLinear, Polynomial
from armillary.model.any_order import AnyOrderView
from armillary.model.blocks import CachedBlocks
from armillary.model.denoise import DenoiseView
from armillary.model.network import LanguageNetwork
from armillary.registry import make

V, D, L, B = 7, 16, 8, 3
SMALL = {
    "bijective": {"d_model": D, "n_layers": 2, "n_heads": 4, "hybrid_layers": [1]},
    "gpt": {"d_model": D, "n_layers": 2, "n_heads": 4, "max_length": 16},
    "llama": {"d_model": D, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2},
    "perigee": {"model_dim": D, "num_layers": 2, "num_heads": 4, "oscillator_count": 3, "window": 4, "max_radius": 3},
    "respsann": {"d_model": D, "n_layers": 2, "n_heads": 4, "positional_encoding": "alibi"},
    "waveresnet": {"d_model": D, "n_layers": 2, "n_heads": 4, "wave_dilation_growth": 2},
}
DENOISERS = {
    "masked_diffusion": ("masked_diffusion", {}),
    "score_entropy": ("score_entropy", {}),
    "score_entropy_uniform": ("score_entropy", {"process": "uniform"}),
    "uniform_diffusion": ("uniform_diffusion", {}),
}


def network_for(backbone, objective, n_vocab=V):
    fields = SMALL[backbone] | {"knows_noise_level": "noise_level" in objective.needs}
    torch.manual_seed(0)
    network = LanguageNetwork(
        make("backbones", backbone, fields),
        n_vocab,
        n_extra=objective.n_extra_embeddings,
        is_told_targets="target_positions" in objective.needs,
    )
    for parameter in network.parameters():  # far from the initialisation, where mistakes hide
        torch.nn.init.normal_(parameter, std=0.4)
    return network.double().eval().requires_grad_(False)


def drawn(seed, *shape, high=V):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=sorted(SMALL))
def backbone(request):
    return request.param


@pytest.fixture(params=sorted(DENOISERS))
def denoiser(request):
    name, fields = DENOISERS[request.param]
    return make("objectives", name, fields)


def close(a, b, atol=1e-12):
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


# Denoise


def test_log_p0_is_the_objectives_and_rows_that_ask_nothing_change_nothing(backbone, denoiser):
    network = network_for(backbone, denoiser)
    view = DenoiseView(network, denoiser)
    assert isinstance(view, Denoise) and not isinstance(view, Blocks)
    tokens = drawn(1, B, L, high=V + denoiser.n_extra_embeddings)
    t, where = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64), drawn(2, B, L, high=2).bool()
    where[1] = False
    log_p = view.log_p0(tokens, t, where)
    close(log_p.exp().sum(1), torch.ones(int(where.sum()), dtype=torch.float64))
    alone = [
        denoiser.log_p0(network, tokens[i : i + 1], Layout("full"), t[i : i + 1], where[i : i + 1]) for i in (0, 2)
    ]
    close(log_p, torch.cat(alone), atol=1e-10)
    assert view.log_p0(tokens, t, torch.zeros_like(where)).shape == (0, V)


def test_forbidden_ids_have_no_probability_and_the_others_share_it(backbone, denoiser):
    network = network_for(backbone, denoiser)
    tokens, where = drawn(1, B, L), drawn(2, B, L, high=2).bool()
    t = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    p = DenoiseView(network, denoiser).log_p0(tokens, t, where).exp()
    found = DenoiseView(network, denoiser, {0, 5}).log_p0(tokens, t, where)
    assert (found[:, [0, 5]] == -torch.inf).all()
    p[:, [0, 5]] = 0
    close(found.exp(), p / p.sum(1, keepdim=True), atol=1e-10)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Polynomial(), Geometric()], ids=lambda s: s.name)
def test_the_last_step_writes_no_forbidden_id_and_leaves_the_given_alone(denoiser, schedule):
    denoiser = denoiser.model_copy(update={"schedule": schedule})
    view = DenoiseView(network_for("llama", denoiser), denoiser, {0, 5})
    draw = torch.Generator().manual_seed(3)
    u = torch.rand(B, L, 3, generator=draw, dtype=torch.float64)
    tokens, where = view.prior(u[..., 0]), drawn(4, B, L, high=2).bool()
    tokens[0, :2], where[0, :2] = torch.tensor([0, 5]), torch.tensor([True, False])
    t, s = torch.full((B,), 0.7, dtype=torch.float64), torch.zeros(B, dtype=torch.float64)
    log_p0 = view.log_p0(tokens, t, where)
    rows = where.nonzero()[:, 0]
    step = view.corruption.posterior(tokens[where], log_p0.exp(), t[rows], s[rows])
    at_once = view.reverse(tokens, where, log_p0, t, s, u[..., 1:])
    asked = where & view.undecided(tokens)
    assert (step[asked[where]][:, [0, 5]] == 0).all()
    assert not torch.isin(at_once[asked], torch.tensor([0, 5, V])).any()
    assert torch.equal(at_once[~asked], tokens[~asked])


# Blocks


@pytest.mark.parametrize("block", [1, 3, 4])
def test_a_block_behind_the_cache_is_what_one_pass_says(backbone, block):
    """arXiv 2503.09573: [noisy ; clean] under the mask of blocks, against block after block through the cache."""
    objective = make("objectives", "block_diffusion", {"block": block})
    network = network_for(backbone, objective)
    view = CachedBlocks(network, objective)
    assert isinstance(view, Blocks)
    clean, t = drawn(1, B, L), torch.ones(B, dtype=torch.float64)
    current = view.open(B, L)
    assert isinstance(current, Denoise)
    for start in range(0, L, block):
        part = slice(start, start + block)
        for again in range(3):  # asked again, with other noise and for other rows, it has forgotten what it was asked
            noisy = torch.where(drawn(2 + again, B, L, high=2).bool(), V, drawn(5 + again, B, L))
            where = drawn(8 + again, B, L, high=2).bool() | (torch.arange(L) % block == 0)
            if again == 1:
                where[1] = False
            hidden = network.hidden(torch.cat([noisy, clean], 1), Layout("blocks", block=block))[:, :L][:, part]
            close(current.log_p0(noisy[:, part], t, where[:, part]), network.head.log_p(hidden[where[:, part]]))
        if start + block < L:
            view.close_block(clean[:, part])


def test_blocks_are_opened_again_for_other_rows_and_hold_nothing_of_the_first(backbone):
    objective = make("objectives", "block_diffusion", {"block": 2})
    network = network_for(backbone, objective)
    view, t = CachedBlocks(network, objective, {3}), torch.ones(2, dtype=torch.float64)
    view.open(B, L)
    view.close_block(drawn(1, B, 2))
    masked, where = torch.full((2, 2), V), torch.ones(2, 2, dtype=torch.bool)
    found = view.open(2, 4).log_p0(masked, t, where)
    close(found, CachedBlocks(network, objective, {3}).open(2, 4).log_p0(masked, t, where), atol=0)
    assert (found[:, 3] == -torch.inf).all()
    close(found.exp().sum(1), torch.ones(4, dtype=torch.float64))


# AnyOrder


@pytest.fixture
def any_order():
    return make("objectives", "any_order", {})


@pytest.mark.parametrize("first", [1, 4])
def test_verify_is_the_objectives_score_in_that_order(backbone, any_order, first):
    network = network_for(backbone, any_order)
    view = AnyOrderView(network, first=first)
    assert isinstance(view, AnyOrder)
    tokens = drawn(1, B, L)
    order = torch.rand(B, L, generator=torch.Generator().manual_seed(2)).argsort(1)
    rows = torch.cat([torch.full((B, 1), first), tokens], 1)
    scored = torch.ones_like(rows, dtype=torch.bool)
    scored[:, 0] = False
    nats = any_order.score_in_order(network, Batch(rows, scored), order.argsort(1))
    log_p = view.verify(tokens, order, torch.ones_like(tokens, dtype=torch.bool)).unflatten(0, (B, L))
    found = -log_p.gather(2, tokens.gather(1, order)[..., None])[..., 0]
    close(torch.zeros_like(found).scatter(1, order, found), nats, atol=1e-10)


def test_of_some_slots_and_rows_verify_says_the_same_and_sees_nothing_after_them(backbone, any_order):
    view = AnyOrderView(network_for(backbone, any_order), {2})
    tokens = drawn(1, B, L)
    order = torch.rand(B, L, generator=torch.Generator().manual_seed(2)).argsort(1)
    whole = view.verify(tokens, order, torch.ones_like(tokens, dtype=torch.bool)).unflatten(0, (B, L))
    assert (whole[..., 2] == -torch.inf).all()
    close(whole.exp().sum(2), torch.ones(B, L, dtype=torch.float64))
    where = torch.zeros(B, L, dtype=torch.bool)
    where[0, 3] = where[0, 5] = where[2, 4] = True
    unknown = torch.where(torch.arange(L) < 5, tokens.gather(1, order), V)
    found = view.verify(torch.empty_like(tokens).scatter(1, order, unknown), order, where)
    close(found.exp(), whole[where].exp())
    assert view.verify(tokens, order, torch.zeros_like(where)).shape == (0, V)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_texts_of_an_order_sum_to_one(backbone, any_order, order):
    view = AnyOrderView(network_for(backbone, any_order, n_vocab=3))
    texts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    orders = torch.tensor(order).expand_as(texts).contiguous()
    log_p = view.verify(texts, orders, torch.ones_like(texts, dtype=torch.bool)).unflatten(0, texts.shape)
    own = log_p.gather(2, texts.gather(1, orders)[..., None]).sum((1, 2))
    close(own.exp().sum(), torch.ones((), dtype=torch.float64), atol=1e-10)


def test_a_draft_is_what_verify_says_of_each_position_as_the_next(backbone, any_order):
    """Rows with different numbers of known tokens, none at all among them, and nothing where tokens are unknown."""
    view = AnyOrderView(network_for(backbone, any_order), {2})
    tokens, n_known = drawn(1, 5, L), torch.tensor([3, 0, L - 1, 1, 6])
    order = torch.rand(5, L, generator=torch.Generator().manual_seed(2)).argsort(1)
    unknown = torch.where(torch.arange(L) < n_known[:, None], tokens.gather(1, order), V)
    found = view.draft(torch.empty_like(tokens).scatter(1, order, unknown), order, n_known)
    expected = []
    for row, known in enumerate(n_known.tolist()):
        for slot in range(known, L):
            swapped = order[row].tolist()
            swapped[known], swapped[slot] = swapped[slot], swapped[known]
            where = (torch.arange(L) == known)[None]
            expected.append(view.verify(tokens[row : row + 1], torch.tensor([swapped]), where))
    close(found.exp(), torch.cat(expected).exp())
    assert (found[:, 2] == -torch.inf).all()
