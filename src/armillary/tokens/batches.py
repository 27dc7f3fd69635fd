"""Batches as a pure function of (seed, step): resuming is one integer, and every world size sees the same order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from armillary.contracts import PAD, Batch
from armillary.randomness import key
from armillary.recipe import Phase
from armillary.refusal import Refusal
from armillary.tokens.mixture import Mixture
from armillary.tokens.packed import PackedSplit
from armillary.tokens.permutation import permute


class Batches:
    """Global batches of `batch_rows` rows. Sample number = step · batch_rows + row; nothing is kept between calls.

    sets: training splits by corpus name. Each set is read in epochs, every epoch in an order of its own. Rows are as
    wide as the widest set's; the rows of a narrower one (a corpus shorter than a window) are padded at their end.
    isolate_documents: documents that share a row do not see each other ("padded": none share one, see PackedSplit).
    """

    def __init__(
        self,
        sets: Mapping[str, PackedSplit],
        phases: Sequence[Phase],
        batch_rows: int,
        seed: int,
        isolate_documents: bool | str = False,
    ) -> None:
        if not sets:
            raise Refusal("corpora: a run needs at least one; name one in the recipe")
        self.sets = dict(sorted(sets.items()))  # the order of a recipe's keys must not change the order of batches
        self.batch_rows = batch_rows
        self.seed = seed
        self.isolate_documents = bool(isolate_documents)
        self.window = max(split.window for split in self.sets.values())
        # Decided once, not batch by batch: layouts that change between steps would be compiled again and again.
        self.has_padding = any(split.window < self.window for split in self.sets.values())
        self.mixture = Mixture({name: split.n_rows for name, split in self.sets.items()}, phases, self.window)

    def at(self, step: int) -> Batch:
        """The global batch of a step, on the CPU. Segments are there where documents are isolated or rows padded."""
        numbers = step * self.batch_rows + np.arange(self.batch_rows, dtype=np.int64)
        which, running = self.mixture.which(numbers)
        shape = (self.batch_rows, self.window + 1)
        tokens, scored = np.full(shape, PAD, dtype=np.int64), np.zeros(shape, dtype=bool)
        segments, positions = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        for k, (name, split) in enumerate(self.sets.items()):
            rows = np.flatnonzero(which == k)
            places = split.places(self._shuffled(name, split.n_rows, running[rows]))
            part = np.s_[rows, : split.window + 1]
            tokens[part] = split.at(places)
            scored[part] = split.is_scored(places)
            segments[part], positions[part] = documents_within(split, places) if self.isolate_documents else (0, 0)
        return Batch(
            torch.from_numpy(tokens),
            torch.from_numpy(scored),
            torch.from_numpy(segments) if self.isolate_documents or self.has_padding else None,
            torch.from_numpy(positions) if self.isolate_documents else None,
        )

    def counts_before(self, step: int) -> dict[str, int]:
        """Rows drawn from each set before this step."""
        counts = self.mixture.counts(np.array([step * self.batch_rows], dtype=np.int64))[0]
        return dict(zip(self.sets, counts.tolist(), strict=True))

    def _shuffled(self, name: str, n_rows: int, running: np.ndarray) -> np.ndarray:
        """The rows of a set that its running numbers stand for."""
        epochs, places = np.divmod(running, n_rows)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            places[now] = permute(places[now], n_rows, key(self.seed, "order", name, int(epoch)))
        return places


def documents_within(split: PackedSplit, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of each token's document within its row (-1 for padding), and the token's place in it; both 0 where the
    row begins."""
    documents = split.document_of(places)
    starts = np.maximum(split.document_starts[documents], places[:, :1])
    return np.maximum(documents - documents[:, :1], -1), np.maximum(places - starts, 0)
