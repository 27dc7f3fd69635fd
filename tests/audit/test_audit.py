"""Every mistake is caught; and where the package itself makes it, the audit says so."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from armillary import registry
from armillary.audit import audit
from armillary.audit import float32_sampling as sampling
from armillary.cli import main
from armillary.contracts import Layout, Loss
from armillary.corruption.absorbing import Absorbing
from armillary.evaluation import comparison, likelihood
from armillary.objectives import _masking, uniform_diffusion
from armillary.objectives.autoregressive import Autoregressive
from armillary.objectives.masked_diffusion import MaskedDiffusion
from armillary.records import Likelihood
from armillary.text.sources import files
from armillary.tokens import packing

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
MISTAKES = registry.names("audit")


@pytest.fixture(scope="module")
def findings() -> dict[str, dict]:
    return {finding.name: asdict(finding) for finding in audit()}


def test_every_mistake_is_caught(findings):
    assert list(findings) == MISTAKES and len(MISTAKES) == 10
    assert {name: f["how_caught"] for name, f in findings.items() if not f["is_caught"]} == {}
    for finding in findings.values():
        assert abs(finding["wrong"] / finding["right"] - 1) > 0.005, finding["name"]


def test_the_page_has_the_figures_of_the_command(findings):
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| ([\d.]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    assert [row[0] for row in rows] == MISTAKES
    for name, wrong, right, unit in rows:
        found = findings[name]
        for written, figure in ((wrong, found["wrong"]), (right, found["right"])):
            # to the digits that are written, and one hundredth for another machine's rounding of random numbers
            assert float(written) == pytest.approx(figure, rel=0.01, abs=10.0 ** -len(written.partition(".")[2])), name
        assert unit == found["unit"]


def test_the_page_tells_of_each_mistake_once():
    page = PAGE.read_text(encoding="utf-8")
    assert re.findall(r"^## `(\w+)`$", page, re.M) == MISTAKES


# The figures that mistakes are known for.


def test_a_loss_over_hidden_tokens_is_twice_the_bound(findings):
    found = findings["mean_over_masked"]
    assert found["wrong"] / found["right"] == pytest.approx(2 * 64 / 65, rel=0.01)


def test_float32_takes_the_entropy_from_7_57_to_5_63_nats(findings):
    p = sampling.zipf(sampling.N_VOCAB)
    law = sampling.effective_mass(p, 1 / sampling.N_STEPS)
    assert sampling._entropy(p) == pytest.approx(7.57, abs=0.005)
    assert sampling._entropy(law) == pytest.approx(5.63, abs=0.005)
    assert 1 - float(law.sum()) * sampling.N_STEPS > 0.25
    found = findings["float32_sampling"]
    assert found["right"] == pytest.approx(7.57, abs=4 * found["error"])
    assert found["wrong"] == pytest.approx(5.63, abs=0.1)


def test_a_plain_posterior_costs_half_a_nat_and_more(findings):
    found = findings["plain_posterior"]
    assert 0.4 < found["wrong"] - found["right"] < 1


def test_a_race_in_float32_follows_the_formula():
    """χ² against q a / (e^a - 1), of classes of ranks, rare tokens too."""
    generator, n = torch.Generator().manual_seed(1), 2**24
    p = sampling.zipf(sampling.N_VOCAB)
    law = sampling.effective_mass(p, 1 / sampling.N_STEPS)
    won = sampling.race(p, 1 / sampling.N_STEPS, n, generator)
    mass = law.sum()
    assert sampling.p_value(won, n, law / mass, float(mass)) > 1e-3
    assert sampling.p_value(won, n, p, 1 / sampling.N_STEPS) < 1e-12


def test_a_race_of_the_few_that_can_win_is_the_race_of_all():
    generator, n, unmask = torch.Generator().manual_seed(2), 200_000, 0.05
    u = torch.rand(n, generator=generator)
    assert torch.equal(u * 2**24, (u * 2**24).round())
    p = sampling.zipf(20)
    scores = (
        torch.cat([unmask * p, torch.tensor([1 - unmask]).double()]).float()
        / -torch.rand(n, 21, generator=generator).log()
    )
    winners = scores.argmax(1)
    counts = [
        torch.bincount(won, minlength=20).double()
        for won in (winners[winners < 20], sampling.race(p, unmask, n, generator))
    ]
    assert float(((counts[0] - counts[1]) ** 2 / (counts[0] + counts[1])).sum()) < 45  # 20 degrees of freedom
    assert float(counts[1].sum()) == pytest.approx(n * unmask, rel=0.05)


# Mistakes planted into the package: the audit must not call them caught any longer.


def constant_bytes_per_token(monkeypatch):
    monkeypatch.setattr(Likelihood, "bits_per_byte", property(lambda x: x.nats / x.n_tokens / math.log(2) / 4.0))


def characters_for_bytes(monkeypatch):
    monkeypatch.setattr(packing, "n_bytes", lambda text, boundary: len(text) + (boundary == "newline"))


def mean_over_masked(monkeypatch):
    sound = MaskedDiffusion.loss

    def loss(self, network, batch, draws):
        hidden = self._masking(_masking.undecided(batch), draws).hidden
        return dataclasses.replace(sound(self, network, batch, draws), n_tokens=hidden.sum())

    monkeypatch.setattr(MaskedDiffusion, "loss", loss)


def one_stage(monkeypatch):
    generator = torch.Generator().manual_seed(3)

    def reverse(self, tokens, where, log_p0, t, s, u):
        won = sampling.race(log_p0[0].exp(), float(t[0] - s[0]), tokens.numel(), generator)
        out = tokens.flatten()
        out[: len(won)] = won
        return out.view_as(tokens)

    monkeypatch.setattr(Absorbing, "reverse", reverse)


def float32_tail(monkeypatch):
    """The mass of rare tokens lost in the second stage alone."""

    def draw(weights, u):
        mass = weights.where(weights > 1e-4, 0.0).cumsum(1)
        return torch.searchsorted(mass, (u * mass[:, -1])[:, None], right=True).squeeze(1)

    monkeypatch.setattr("armillary.corruption.absorbing.draw", draw)


def learns_two_ahead(monkeypatch):
    def loss(self, network, batch, draws):
        log_p = network(batch.tokens[:, :-2], Layout("causal"))
        total = -log_p.gather(2, batch.tokens[:, 2:, None]).sum()
        return Loss(total, total.detach(), batch.scored[:, 2:].sum())

    monkeypatch.setattr(Autoregressive, "loss", loss)


def scores_two_ahead(monkeypatch):
    sound = Autoregressive.score

    def score(self, network, batch, draws):
        tokens = batch.tokens.clone()
        hidden = network.hidden(batch.tokens[:, :-1], Layout("causal"))
        out = sound(self, network, batch, draws)
        nats = network.head.nll(hidden[:, :-1].flatten(0, 1), tokens[:, 2:].flatten())
        out[:, 1:] = nats.view(len(tokens), -1)
        return out

    monkeypatch.setattr(Autoregressive, "score", score)


def plain_posterior(monkeypatch):
    monkeypatch.setattr(uniform_diffusion, "leave_one_out", lambda log_p, noisy, alpha: log_p)


def wide_errors(monkeypatch):
    monkeypatch.setattr(likelihood, "_stderr", lambda kind, totals: float(totals.std(ddof=1)))


def one_pass_for_all(monkeypatch):
    """Every pass draws the same."""
    sound = likelihood.key
    monkeypatch.setattr(likelihood, "key", lambda seed, purpose, run, number: sound(seed, purpose, 0, number))


def empty_complement(monkeypatch):
    sound = _masking.by_count

    def by_count(open_, order, level, pairs):
        masking = sound(open_, order, level, pairs)
        is_whole = (masking.hidden.sum(1) == masking.hidden.shape[1])[:, None]
        return dataclasses.replace(masking, weight=torch.where(is_whole, masking.weight / 2, masking.weight))

    monkeypatch.setattr(_masking, "by_count", by_count)


def line_ends_are_no_words(monkeypatch):
    monkeypatch.setattr(packing, "n_words", lambda text, boundary: len(text.split()))


def blank_lines_are_dropped(monkeypatch):
    sound = files.cut
    monkeypatch.setattr(files, "cut", lambda *arguments: (text for text in sound(*arguments) if text.strip()))


def other_texts_are_compared(monkeypatch):
    monkeypatch.setattr(comparison, "interval", lambda *arguments, **settings: None)
    monkeypatch.setattr(comparison, "_refuse_other_text", lambda first, other: None)


def plain_percentiles(monkeypatch):
    monkeypatch.setattr(comparison, "_tail", lambda n: 0.025)


def a_bound_called_exact(monkeypatch):
    monkeypatch.setattr(MaskedDiffusion, "kind", property(lambda self: "exact"))


def no_word_of_kinds(monkeypatch):
    monkeypatch.setattr(comparison, "_notes", lambda scores: [])


PLANTED = [
    ("bytes_per_token", constant_bytes_per_token),
    ("bytes_per_token", characters_for_bytes),
    ("mean_over_masked", mean_over_masked),
    ("float32_sampling", one_stage),
    ("float32_sampling", float32_tail),
    ("double_shift", learns_two_ahead),
    ("double_shift", scores_two_ahead),
    ("plain_posterior", plain_posterior),
    ("naive_errors", wide_errors),
    ("naive_errors", one_pass_for_all),
    ("empty_complement", empty_complement),
    ("dropped_lines", line_ends_are_no_words),
    ("dropped_lines", blank_lines_are_dropped),
    ("dropped_lines", other_texts_are_compared),
    ("narrow_percentiles", plain_percentiles),
    ("bound_as_exact", a_bound_called_exact),
    ("bound_as_exact", no_word_of_kinds),
]
FEWER = {"naive_errors": {"N_TRIALS": 40}, "float32_sampling": {"N_RACES": 2**20, "N_POSITIONS": 2**19}}


def test_every_mistake_has_been_planted():
    assert {name for name, _ in PLANTED} == set(MISTAKES)


@pytest.mark.parametrize(("name", "plant"), PLANTED, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_a_mistake_of_the_package_itself_is_found(name, plant, monkeypatch):
    module = importlib.import_module(f"armillary.audit.{name}")
    for constant, fewer in FEWER.get(name, {}).items():
        monkeypatch.setattr(module, constant, fewer)
    assert module.reproduce().is_caught
    plant(monkeypatch)
    assert not module.reproduce().is_caught


# The command.


def test_the_command_prints_a_table_and_json(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["audit", "empty_complement", "plain_posterior"])
    assert not ending.value.code
    out = capsys.readouterr().out
    assert "| empty_complement |" in out and "| plain_posterior" in out and "NOT" not in out
    with pytest.raises(SystemExit) as ending:
        main(["audit", "empty_complement", "--json"])
    assert not ending.value.code
    (found,) = json.loads(capsys.readouterr().out)
    assert found["name"] == "empty_complement" and found["is_caught"] and found["error"] is None


def test_the_command_fails_where_a_mistake_is_not_caught(capsys, monkeypatch):
    empty_complement(monkeypatch)
    with pytest.raises(SystemExit) as ending:
        main(["audit", "empty_complement"])
    assert ending.value.code == 1 and "NOT CAUGHT" in capsys.readouterr().out


def test_an_unknown_mistake_is_refused(capsys):
    with pytest.raises(SystemExit) as ending:
        main(["audit", "plain_posteriors"])
    assert ending.value.code == 2 and "did you mean 'plain_posterior'?" in capsys.readouterr().err
