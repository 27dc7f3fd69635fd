"""Worlds whose answer is known: a Markov chain, uniform noise, a cycle. The loop itself learns them."""

from __future__ import annotations

import math

import pytest
import torch

from armillary.contracts import Batch, Layout
from armillary.model.network import LanguageNetwork
from armillary.randomness import key
from armillary.recipe import Training
from armillary.registry import make
from armillary.training import distribution, precision
from armillary.training.learner import Average, Learner
from armillary.training.loop import Course, NonFinite, steps

T = 32


class Drawn:
    """Batches drawn by a function of (generator, rows): pure in the step, as the loop wants them."""

    def __init__(self, draw, n_rows=16):
        self.draw, self.n_rows = draw, n_rows

    def at(self, step: int) -> Batch:
        generator = torch.Generator().manual_seed(key(0, "world", step))
        tokens = self.draw(generator, self.n_rows)
        scored = torch.ones_like(tokens, dtype=torch.bool)
        scored[:, 0] = False
        return Batch(tokens, scored)

    def counts_before(self, step: int) -> dict[str, int]:
        return {"world": step * self.n_rows}


def new_learner(n_vocab, *, backbone="llama", ema=None, optimizer="adamw", objective=None, **fields):
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2} | ({"max_length": T} if backbone == "gpt" else {}) | fields
    objective = objective or make("objectives", "autoregressive", {})
    network = LanguageNetwork(make("backbones", backbone, shape), n_vocab, n_extra=objective.n_extra_embeddings)
    rate = {"adamw": {"learning_rate": 3e-3, "weight_decay": 0.0}, "muon": {}}[optimizer]
    optimizers = make("training/optimizers", optimizer, rate).build(network.named_parameters())
    scaler = precision.scaler("fp32", torch.device("cpu"))
    return Learner(network, objective, optimizers, ema and Average(network, ema), scaler)


def course(draw, n_steps, n_rows=16, clock=None, **settings):
    part = {"name": "unused"}
    training = Training(steps=n_steps, batch_rows=n_rows, optimizer=part, schedule=part, precision="fp32", **settings)
    more = {"clock": clock} if clock else {}
    return Course(Drawn(draw, n_rows), training, "fp32", 0, lambda step: min(1.0, 2 - 2 * step / n_steps), **more)


def train(learner, a_course):
    return list(steps(learner, a_course, distribution.join("cpu")))


def held_out_nll(learner, tokens):
    with learner.at_its_best() as network, torch.no_grad():
        log_p = network(tokens[:, :-1], Layout("causal"))
    return -log_p.gather(2, tokens[:, 1:, None])[..., 0]


@pytest.mark.parametrize("backbone", ["gpt", "llama", "bijective"])
def test_a_markov_chain_is_learnt_to_its_entropy_rate(backbone):
    n_vocab = 6
    chain = torch.softmax(2 * torch.randn(n_vocab, n_vocab, generator=torch.Generator().manual_seed(3)), -1)

    def draw(generator, n_rows):
        tokens = torch.randint(n_vocab, (n_rows, T + 1), generator=generator)
        for i in range(T):
            tokens[:, i + 1] = torch.multinomial(chain[tokens[:, i]], 1, generator=generator)[:, 0]
        return tokens

    learner = new_learner(n_vocab, backbone=backbone)
    train(learner, course(draw, 250, activation_checkpointing=backbone == "bijective"))
    tokens = draw(torch.Generator().manual_seed(99), 256)
    truth = -chain.log()[tokens[:, :-1], tokens[:, 1:]].mean()
    found = held_out_nll(learner, tokens).mean()
    assert 0.995 < found / truth < 1.02


@pytest.mark.parametrize("backbone", ["llama", "bijective"])
def test_uniform_tokens_have_perplexity_v_and_not_less(backbone):
    n_vocab = 16

    def draw(generator, n_rows):
        return torch.randint(n_vocab, (n_rows, T + 1), generator=generator)

    learner = new_learner(n_vocab, backbone=backbone)
    train(learner, course(draw, 150, activation_checkpointing=backbone == "bijective"))
    nll = held_out_nll(learner, draw(torch.Generator().manual_seed(99), 512)).flatten()
    stderr = nll.std() / math.sqrt(len(nll))
    assert nll.mean() > math.log(n_vocab) - 3 * stderr
    assert nll.mean().exp() == pytest.approx(n_vocab, rel=0.02)


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_a_bound_of_uniform_tokens_is_not_below_v_either(coupling):
    """What the reversible denoiser was once claimed to beat."""
    n_vocab = 16
    objective = make("objectives", "masked_diffusion", {})
    learner = new_learner(n_vocab, backbone="bijective", objective=objective, coupling=coupling)

    def draw(generator, n_rows):
        return torch.randint(n_vocab, (n_rows, T + 1), generator=generator)

    train(learner, course(draw, 80, activation_checkpointing=True))
    batch = Drawn(draw, 512).at(10**6)
    with torch.no_grad():
        draws = objective.draw(512, T, torch.Generator().manual_seed(1))
        nats = objective.score(learner.network.eval(), batch, draws).mean(1)
    assert nats.mean() > math.log(n_vocab) - 3 * nats.std() / math.sqrt(512)
    assert nats.mean().exp() == pytest.approx(n_vocab, rel=0.05)


@pytest.mark.parametrize("backbone", ["gpt", "llama"])
def test_on_a_cycle_the_next_token_is_predicted_and_not_the_one_after(backbone):
    """A double shift of the labels would predict t + 2."""
    n_vocab = 7

    def draw(generator, n_rows):
        start = torch.randint(n_vocab, (n_rows, 1), generator=generator)
        return (start + torch.arange(T + 1)) % n_vocab

    learner = new_learner(n_vocab, backbone=backbone)
    train(learner, course(draw, 60))
    tokens = draw(torch.Generator().manual_seed(5), 4)
    with torch.no_grad():
        predicted = learner.network.eval()(tokens[:, :-1], Layout("causal")).argmax(-1)
    assert torch.equal(predicted[:, 1:], (tokens[:, 1:-1] + 1) % n_vocab)


def cycle(generator, n_rows):
    return (torch.randint(5, (n_rows, 1), generator=generator) + torch.arange(T + 1)) % 5


def test_accumulation_changes_nothing_but_rounding():
    weights = []
    for accumulation in (1, 4):
        learner = new_learner(5)
        train(learner, course(cycle, 5, accumulation=accumulation))
        weights.append(learner.network.embedding.weight.detach())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_rows_that_do_not_divide_are_refused():
    from armillary.refusal import Refusal

    with pytest.raises(Refusal, match="multiple of 3"):
        train(new_learner(5), course(cycle, 1, accumulation=3))


@pytest.mark.parametrize("policy", ["stop", "roll_back"])
def test_a_step_that_is_not_finite_leaves_the_weights_alone(policy):
    learner = new_learner(5)
    before = {}

    def poisoned(generator, n_rows):
        if learner.step == 3:
            before.update({n: p.detach().clone() for n, p in learner.network.named_parameters()})
            with torch.no_grad():  # as if the loss had overflowed in this step alone
                learner.network.backbone.norm.weight.fill_(math.nan)
        return cycle(generator, n_rows)

    seen = []
    a_course = course(poisoned, 6, on_non_finite=policy)
    found = steps(learner, a_course, distribution.join("cpu"))
    try:
        for step in found:
            seen.append(step)
            if step.step == 4:
                assert step.loss is None and not step.is_applied
                learner.network.backbone.norm.weight.data.copy_(before["backbone.norm.weight"])
                for name, p in learner.network.named_parameters():
                    assert torch.equal(p, before[name]), name
    except NonFinite as error:
        assert policy == "stop" and "step 4" in str(error)
        assert len(seen) == 3
    else:
        assert policy == "roll_back" and len(seen) == 6 and learner.skipped == [4] and seen[-1].is_applied


def test_ten_bad_steps_in_a_row_stop_even_a_patient_run():
    learner = new_learner(5)
    learner.network.backbone.norm.weight.data.fill_(math.nan)
    with pytest.raises(NonFinite):
        train(learner, course(cycle, 50, on_non_finite="roll_back"))
    assert learner.step == 9


def test_throughput_is_scored_tokens_over_the_clock():
    ticks = iter(range(0, 1000, 2))
    learner = new_learner(5)
    found = train(learner, course(cycle, 3, clock=lambda: float(next(ticks))))
    assert [s.seconds for s in found] == [2.0, 2.0, 2.0]
    assert [s.tokens_per_second for s in found] == [16 * T / 2] * 3
    assert [s.n_tokens for s in found] == [512, 1024, 1536]


def test_the_average_is_what_is_judged_and_the_weights_come_back():
    learner = new_learner(5, ema=0.9)
    train(learner, course(cycle, 5))
    own = learner.network.embedding.weight.detach().clone()
    with learner.at_its_best() as network:
        lent = network.embedding.weight.detach().clone()
        assert not network.training
    assert torch.equal(learner.network.embedding.weight, own) and not torch.equal(lent, own)
    assert learner.network.training


def test_label_smoothing_never_enters_nats():
    from armillary.contracts import Loss

    learner = new_learner(5)
    batch = Drawn(cycle).at(0)
    plain: Loss = make("objectives", "autoregressive", {}).loss(learner.network, batch, {})
    smooth: Loss = make("objectives", "autoregressive", {"label_smoothing": 0.2}).loss(learner.network, batch, {})
    torch.testing.assert_close(plain.nats, smooth.nats)
    assert abs(plain.total - smooth.total) > 1e-6 * plain.total.abs() and torch.equal(plain.total, plain.nats)
    assert int(plain.n_tokens) == 16 * T


def test_recomputed_activations_replay_dropout():
    found = []
    for settings in ({}, {"activation_checkpointing": True}):
        learner = new_learner(5, dropout=0.3)
        found.append([s.loss for s in train(learner, course(cycle, 4, **settings))])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
