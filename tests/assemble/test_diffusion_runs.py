"""Every smoke recipe from text to samples: it trains, validates, resumes, is measured, writes and fills holes."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from armillary import recipe as recipes
from armillary.assemble import build, evaluating, parts, planning, sampling, training, verifying
from armillary.assemble.build import OpenModel
from armillary.contracts import BOS, EOS, SPECIAL_TOKENS, Given, State
from armillary.records import Sample, Step, Validation
from armillary.refusal import Refusal
from armillary.run_folder import RunFolder

NAMES = ["mdlm", "sedd", "udlm", "bd3lm", "any-order"]
FASTER = ["training.steps=12", "training.validate_every=6", "training.sample_every=12", "training.checkpoint_every=6",
          "training.validation_rows=8", "training.schedule.warmup=2", "tokenizer.vocabulary=300", "packing.window=32",
          "evaluation.window=32", "evaluation.stride=16", "training.keep_checkpoints=9"]  # fmt: skip


def begin(name: str, text: Path, root: Path, *changes: str, run: str | None = None, resumes: bool = False):
    steps = ["sampling.sampler.steps=12"] if name == "udlm" else []
    request = training.Request(
        f"{name}-smoke", [*FASTER, *steps, *changes], text, None, run or name, None, resumes, root
    )
    return training.start(training.check(request), lambda line: None)


@dataclass(frozen=True)
class Trained:
    name: str
    root: Path
    happenings: list
    model: OpenModel


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """One root for all, so that the text is packed once."""
    return tmp_path_factory.mktemp("diffusion")


@pytest.fixture(scope="module", params=NAMES)
def trained(request, text_file, root) -> Trained:
    happenings = list(begin(request.param, text_file, root).happenings())
    run = RunFolder(root / "runs" / request.param)
    return Trained(request.param, root, happenings, build.open_model(run, device="cpu"))


def test_it_learns_validates_and_samples(trained):
    losses = [h.loss for h in trained.happenings if isinstance(h, Step)]
    assert len(losses) == 12 and sum(losses[-3:]) < sum(losses[:3])
    validations = [h for h in trained.happenings if isinstance(h, Validation)]
    assert [v.step for v in validations] == [6, 12] and all(math.isfinite(v.loss) for v in validations)
    samples = [h for h in trained.happenings if isinstance(h, Sample)]
    assert [s.prompt for s in samples] == ["Fellow citizens"] and samples[0].finish in ("end", "length")
    assert not any(special in samples[0].text for special in SPECIAL_TOKENS)
    facts = trained.model.run.facts()
    assert facts["state"] == "finished" and facts["best_step"] in trained.model.run.checkpoint_steps()


def test_it_is_measured(trained):
    wanted = evaluating.Wanted(root=trained.root, samples=None if trained.name == "any-order" else 2, n_tokens=300)
    result = evaluating.evaluate(trained.model, wanted)[0]
    chance = math.log2(300) * result["n_tokens"] / result["n_bytes"]
    # A uniform corruption's bound begins far above chance: an untrained network does not know its noise.
    assert 0 < result["bits_per_byte"] < (2 if trained.name == "udlm" else 1.1) * chance
    assert result["kind"] == ("exact" if trained.name == "any-order" else "monte_carlo_bound")


def test_its_behaviour_is_that_of_its_objective(trained):
    checks = verifying.verify(trained.name, trained.root, behaviour=True)
    assert [c for c in checks if not c.holds] == []
    named = {check.name for check in checks}
    assert trained.name == "udlm" or {"hidden tokens stay hidden", "no token is read before its turn"} & named


def settings(model: OpenModel, prompts, **fields):
    return sampling.settings(model.parts, model.tokenizer, prompts, fields)


def test_a_text_depends_on_its_seed_and_not_on_its_neighbours(trained):
    model, prompts = trained.model, ["the of", "a", "", "in to was", "a"]
    manner = settings(model, prompts)
    together = sampling.from_model(model, prompts, manner, seed=5)
    assert together == sampling.from_model(model, prompts, manner, seed=5)
    assert together != sampling.from_model(model, prompts, manner, seed=6)
    # Alone, and beside other rows, of its own length and of others.
    fewer = sampling.from_model(model, prompts[:2], manner, seed=5)
    assert [c.tokens for c in fewer] == [c.tokens for c in together[:2]]
    beside_one_of_its_length = sampling.from_model(model, ["a", "a"], manner, seed=5)[1]
    assert beside_one_of_its_length.tokens == together[1].tokens != together[4].tokens


def test_samples_hold_no_special_token_and_end_at_eos(trained):
    found = sampling.from_model(trained.model, [""] * 24, settings(trained.model, [""]), seed=1)
    markers = set(trained.model.tokenizer.markers.values())
    for one in found:
        assert not {0, 1, 2, 3} & set(one.tokens) and not markers & set(one.tokens)
        assert one.log_p is None and one.n_evaluations is not None and one.n_evaluations > 0
        assert (one.finish == "end") == (one.n_tokens == len(one.tokens) + 1)
        assert one.finish == "end" or one.n_tokens == 24
        assert not any(special in one.text for special in SPECIAL_TOKENS)


TEMPLATES = ["the <8> of the <4>.", "<3> that it was <2>", "at <1>", "the <8> of the <4>."]


def test_infilling_leaves_its_contexts_as_they_are(trained):
    model = trained.model
    manner = settings(model, [])
    seen: list[list[str]] = []
    found = sampling.infill(model, TEMPLATES, manner, 2, seen.append)
    assert found == sampling.infill(model, TEMPLATES, manner, seed=2)
    for template, one in zip(TEMPLATES, found, strict=True):
        sizes = [int(size) for size in re.findall(r"<(\d+)>", template)]
        assert one.n_tokens == sum(sizes) and len(one.holes) == len(sizes)
        contexts = sampling.HOLE.split(template)[::2]
        assert one.text == contexts[0] + "".join(h + c for h, c in zip(one.holes, contexts[1:], strict=True))
        assert all(one.holes)  # a hole is text: no special token, eos neither
    assert found[0].holes != found[3].holes
    assert seen[-1] == [one.text for one in found]
    assert any(sampling.UNDECIDED in text for texts in seen for text in texts) or trained.name == "udlm"


def test_given_tokens_never_change_on_the_way(trained):
    model = trained.model
    manner = settings(model, [])
    rows = sampling.template_rows(model, TEMPLATES, manner)
    n_states = 0
    for indices, state in sampling._states(model.network, rows, manner, 0, frozenset({EOS})):
        n_states += 1
        for i, tokens in zip(indices, state.tokens.tolist(), strict=True):
            kept = [token for token, given in zip(tokens, rows[i].is_given, strict=True) if given]
            assert kept == [token for token, given in zip(rows[i].tokens, rows[i].is_given, strict=True) if given]
    assert n_states > 3


def test_a_text_ends_at_eos_and_a_hole_never_does(trained):
    network = copy.deepcopy(trained.model.network)
    with torch.no_grad():  # eos is all but certain everywhere
        network.backbone.norm.weight.mul_(0.01)
        network.backbone.norm.bias.copy_(30 * torch.eye(64)[0])
        network.embedding.weight[EOS] = 30 * torch.eye(64)[0]
    model = dataclasses.replace(trained.model, network=network)
    seen: list[list[str]] = []
    found = sampling.from_model(model, ["the ", "a"], settings(model, ["the "]), watch=seen.append)
    assert [(c.text, c.finish, c.n_tokens) for c in found] == [("", "end", 1)] * 2
    assert seen[-1] == ["the ", "a"]
    tokenizer = model.tokenizer
    the, cat = tokenizer.encode("the"), tokenizer.encode(" was")
    assert sampling.spelled([*the, tokenizer.n_vocab, *cat, EOS, *cat], tokenizer) == "the░ was"
    filled = sampling.infill(model, TEMPLATES, settings(model, []))
    assert all(hole for one in filled for hole in one.holes)


class Witness:
    """A sampler that writes down what it is given, and fills it with one token."""

    def __init__(self) -> None:
        self.given: list[Given] = []

    def run(self, view, given: Given, generators) -> Iterator[State]:
        self.given.append(given)
        assert len(generators) == given.tokens.shape[0]
        yield State(torch.where(given.is_given, given.tokens, 7), 1.0)


def test_rows_of_one_length_go_together_behind_the_bos_that_their_view_reads(trained):
    model, witness = trained.model, Witness()
    manner = dataclasses.replace(settings(model, []), sampler=witness, n_new=3)
    prompts = ["the of", "a", "", "in to was", "a"]
    found = sampling.from_model(model, prompts, manner)
    lengths = [len(model.tokenizer.encode(prompt)) + 3 for prompt in prompts]
    opens = 0 if trained.name == "any-order" else 1  # that view reads it in front of the row
    assert sorted(given.tokens.shape[1] - opens for given in witness.given) == sorted(set(lengths))
    for given in witness.given:
        assert bool((given.tokens[:, :1] == BOS).all()) == bool(opens)
        assert not given.is_given[:, -3:].any() and given.is_given[:, :-3].all()
    assert [one.tokens for one in found] == [[7, 7, 7]] * 5


@pytest.mark.parametrize("name", ["mdlm", "any-order"])
def test_stopped_and_resumed_the_weights_are_equal(name, trained_names, text_file, root):
    run = begin(name, text_file, root, run=f"{name}-broken").happenings()
    for happening in run:
        if isinstance(happening, Step) and happening.step == 8:
            break
    run.close()
    list(begin(name, text_file, root, run=f"{name}-broken", resumes=True).happenings())
    for file in ("model.safetensors", "optimizer.safetensors"):
        whole, broken = (
            load_file(root / "runs" / run / "checkpoints" / "step-00000012" / file) for run in (name, f"{name}-broken")
        )
        assert whole.keys() == broken.keys()
        assert all(torch.equal(whole[key], broken[key]) for key in whole)


@pytest.fixture(scope="module")
def trained_names(text_file, root) -> None:
    for name in ("mdlm", "any-order"):
        if not RunFolder(root / "runs" / name).exists():
            list(begin(name, text_file, root).happenings())


def test_settings_reach_the_sampler_inside_blockwise_and_others_are_refused(trained):
    model = trained.model
    name = model.parts.recipe.sampling.sampler.name
    if name == "blockwise":
        assert settings(model, [""], temperature=0.0).sampler.inside.temperature == 0
        assert settings(model, [""], temperature=0.0).sampler.sampler.name == "first_hitting"
    with pytest.raises(Refusal, match=rf"--top-k: sampler {name} has no top_k; "):
        settings(model, [""], top_k=3)
    with pytest.raises(Refusal, match="has no hole"):
        sampling.infill(model, ["no hole"], settings(model, []))
    with pytest.raises(Refusal, match="has no hole"):
        sampling.infill(model, ["none <0> here"], settings(model, []))
    with pytest.raises(Refusal, match="context 6"):
        sampling.infill(model, ["the <90>"], settings(model, []))


def test_a_mixture_writes_left_to_right_and_by_unmasking(text_file, root):
    terms = "{causal: {weight: 1, objective: {name: autoregressive}}, " \
            "masked: {weight: 1, objective: {name: masked_diffusion}}}"  # fmt: skip
    changes = [f"objective={{name: mixture, terms: {terms}}}", "sampling.sampler={name: left_to_right}"]
    list(begin("mdlm", text_file, root, *changes, run="both").happenings())
    run = RunFolder(root / "runs" / "both")
    assert {"causal", "masked"} <= run.metrics("train")[-1]["parts"].keys()
    for sampler, is_known in (("left_to_right", True), ("ancestral", False)):
        model = build.open_model(run, device="cpu", overrides=[f"sampling.sampler.name={sampler}"])
        found = sampling.from_model(model, ["the "], settings(model, ["the "]))
        assert (found[0].log_p is not None) == is_known and found[0].n_tokens <= 24
    assert all(check.holds for check in verifying.verify("both", root, behaviour=True))


def test_smoke_recipes_are_the_full_ones_made_small():
    for name in NAMES:
        full, smoke = (parts.resolve(recipes.raw(n)).recipe for n in (name, f"{name}-smoke"))
        assert smoke.objective == full.objective and smoke.sampling.sampler == full.sampling.sampler
        assert set(smoke.corpora) == {"main"} and smoke.corpora["main"].source.name == "embedded"
        baseline = parts.resolve(recipes.raw("baseline-gpt")).recipe
        assert set(full.corpora) == {"wikitext-2"} and full.training == baseline.training


def test_a_plan_counts_what_an_objective_reads():
    read = {n: planning.positions_read(parts.resolve(recipes.raw(n)).objective, 64) for n in ["baseline-gpt", *NAMES]}
    assert read == {"baseline-gpt": 1, "mdlm": 2, "sedd": 2, "udlm": 1, "bd3lm": 4, "any-order": 1}
