"""Smoke recipes of the backbones as they are written, on a small text: the loss falls, and no sample holds a special
token."""

from __future__ import annotations

import pytest

from armillary import artefact
from armillary.assemble import build, inspecting, sampling, training
from armillary.contracts import BOS, EOS, PAD, SPECIAL_TOKENS, UNK
from armillary.records import Step
from armillary.run_folder import RunFolder


@pytest.mark.parametrize(("name", "n_steps"), [("perigee-smoke", 16), ("bijective-smoke", 40)])
def test_the_loss_falls_and_a_sample_is_text(name, n_steps, text_file, tmp_path):
    own_text = name == "bijective-smoke"  # the embedded corpus; Perigee wants WikiText-2
    request = training.Request(name, [], None if own_text else text_file, name=name, root=tmp_path)
    happenings = training.start(training.check(request), lambda line: None).happenings()
    losses = [h.loss for h in happenings if isinstance(h, Step)]
    assert sum(losses[-4:]) < sum(losses[:4])
    run = RunFolder(tmp_path / "runs" / name)
    records = run.metrics("train")
    assert records[-1]["step"] == len(losses) == n_steps
    assert {"time", "epoch", "step", "loss", "grad_norm", "learning_rate"} <= {*records[0]}
    facts = run.facts()["corpora"]
    (n_rows,) = (corpus["splits"]["train"]["n_rows"] for corpus in facts.values())
    for record in records:
        assert record["epoch"] == pytest.approx(record["step"] * run.recipe()["training"]["batch_rows"] / n_rows)
    model = build.open_model(run, device="cpu")
    assert artefact.read(run.checkpoint(len(losses)), "checkpoint").about == {
        "step": len(losses),
        "epoch": records[-1]["epoch"],
        "seed": run.recipe()["seed"],
        "tokenizer_sha256": model.tokenizer_sha256,
    }
    found = inspecting.inspect(model, tmp_path)
    told = found["objective"]
    assert found["training"]["best_kind"] == told["kind"]
    if own_text:  # measured where its latents lie
        assert found["details"]["measured_on"].endswith("at the means of their latents")
        assert found["details"]["log_det"] != 0 and found["details"]["reconstruction_error"] < 1e-4
    assert told["kind"] == "monte_carlo_bound"
    assert own_text == (told.get("kind_of_each_term") == {"denoising": told["kind"], "flow": told["kind"]})
    prompts = ["the of", "in", ""]
    texts = sampling.from_model(model, prompts, sampling.settings(model.parts, model.tokenizer, prompts, {}), seed=3)
    for found in texts:
        assert not {PAD, BOS, EOS, UNK} & {*found.tokens}
        assert not any(special in found.text for special in SPECIAL_TOKENS)
