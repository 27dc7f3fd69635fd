"""The bound of a masked denoiser taken for its likelihood, and held against the likelihood of another model.

Source: Ou et al. 2024, arXiv 2406.03736: the bound is the mean of -log p over orders, and p is the mean over orders.
"""

from __future__ import annotations

import numpy as np
import torch

from armillary.audit._finding import Finding
from armillary.audit._worlds import every_mask, steady_texts
from armillary.evaluation.comparison import Scores, compare
from armillary.evaluation.orders import InOrder
from armillary.model.network import LanguageNetwork
from armillary.objectives.masked_diffusion import MaskedDiffusion
from armillary.records import Kind, Likelihood, Protocol
from armillary.registry import make

N_VOCAB, N_TOKENS = 3, 4


def reproduce() -> Finding:
    """A network that has learnt nothing, on all texts of a small world, in all orders."""
    texts = steady_texts(N_VOCAB, N_TOKENS, stay=0.8)
    network, objective = _network(), MaskedDiffusion()
    batch, draws, weight = every_mask(texts)
    with torch.no_grad():
        bound = float((weight * objective.score(network, batch, draws).sum(1)).sum())
        first = slice(None, None, N_TOKENS)  # every order once
        in_order = InOrder(objective, "random", batch_rows=4096)
        nats = in_order.score(network, batch.rows(first), {"order": draws["order"][first]}).sum(1)
    of_text = nats.view(len(texts.p), -1)
    mixture = torch.logsumexp(-of_text, 1) - np.log(of_text.shape[1])
    exact = float(-(texts.p * mixture).sum())
    told = " ".join(compare([_scores(in_order.kind, exact), _scores(objective.kind, bound)]).notes)
    mean_of_orders = float((texts.p * of_text.mean(1)).sum())

    return Finding(
        about="the bound of a masked denoiser given as its likelihood, which is a mean of probabilities over orders",
        wrong=bound,
        right=exact,
        unit="nats/text",
        is_caught="bound" in told and exact < bound - 1e-6 and abs(bound - mean_of_orders) < 1e-9,
        how_caught="a result has its kind, and a comparison of a bound with an exact figure says so",
        source="Ou et al. 2024, arXiv 2406.03736",
    )


def _network() -> LanguageNetwork:
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LanguageNetwork(make("backbones", "llama", shape), N_VOCAB, n_extra=1).double().eval()
        for parameter in network.parameters():  # at its first weights the orders hardly differ
            torch.nn.init.normal_(parameter, std=0.4)
    return network


def _scores(kind: Kind, nats: float) -> Scores:
    protocol = Protocol("audit", "test", "0" * 64, 1, "newline", "open", N_TOKENS, N_TOKENS, "0" * 64)
    likelihood = Likelihood(nats, kind, 0.0, N_TOKENS, N_TOKENS, N_TOKENS, protocol)
    one = np.array([N_TOKENS])
    return Scores(likelihood, kind, np.array([nats]), one, one, one)
