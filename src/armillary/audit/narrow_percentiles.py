"""An interval by plain percentiles of the bootstrap, over a handful of documents.

Source: Hesterberg 2015, arXiv 1411.5279, section 4.3.
"""

from __future__ import annotations

import math

import numpy as np

from armillary.audit._finding import Finding
from armillary.evaluation.comparison import interval

N_DOCUMENTS, N_TRIALS, N_RESAMPLES = 8, 600, 2000


def reproduce() -> Finding:
    """Documents whose nats follow a normal law: how often the interval of their mean holds the true mean."""
    generator = np.random.default_rng(0)
    units = np.ones(N_DOCUMENTS)
    n_plain = n_right = 0
    for _ in range(N_TRIALS):
        nats = 10 + generator.normal(size=N_DOCUMENTS)
        means = generator.choice(nats, (N_RESAMPLES, N_DOCUMENTS)).mean(axis=1)
        low, high = np.quantile(means, (0.025, 0.975))
        n_plain += low <= 10 <= high
        found = interval(nats, units, 1.0, N_RESAMPLES)
        n_right += found is not None and found[0] <= 10 <= found[1]
    wrong, right = 100 * float(n_plain) / N_TRIALS, 100 * float(n_right) / N_TRIALS

    def holds(coverage: float) -> bool:
        return abs(coverage - 95) <= 3

    return Finding(
        about=f"how often a 95 % interval over {N_DOCUMENTS} documents holds the true value, in {N_TRIALS} trials",
        wrong=wrong,
        right=right,
        unit="% covered",
        error=100 * math.sqrt(0.95 * 0.05 / N_TRIALS),
        is_caught=holds(right) and not holds(wrong),
        how_caught="intervals over few documents must cover 95 ± 3 %",
        source="Hesterberg 2015, arXiv 1411.5279, section 4.3",
    )
