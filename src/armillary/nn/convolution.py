"""Depthwise convolution along the positions, under every layout, with the last inputs as its decoding state.

Source: PSANN-LM (Nickm1128/psann), `WaveBlock1D`.
Differs: it sees what the layout lets it see and nothing else. With reach r = (kernel - 1) · dilation, tap j of position
t is the input at
    causal   t - r + j · dilation        the last tap is t itself
    full     t - r / 2 + j · dilation    the same weights, the middle one at t: an even kernel has no middle
    blocks   as full; inputs after the end of t's block are zero, and those before its beginning are the clean ones
and zero where that input lies outside of the row, in another segment or in the padding. A row that is told which
positions to predict is read in some order, by blocks of one where a draft is asked for: it has the taps of causal.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from armillary.contracts import Layout
from armillary.nn.cache import MixerState
from armillary.nn.linear import working_type
from armillary.nn.sight import Sight

OUTSIDE = -2
"""Segment of what lies outside of a row; -1 is padding."""


class DepthwiseConvolution(nn.Module):
    """weight is (D, 1, kernel), as in Conv1d: no matrix, so that Muon leaves it to AdamW."""

    def __init__(self, width: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.kernel, self.dilation, self.reach = kernel, dilation, (kernel - 1) * dilation
        self.weight = nn.Parameter(torch.empty(width, 1, kernel))
        nn.init.normal_(self.weight, std=kernel**-0.5)

    def forward(
        self, x: Float[Tensor, "B L D"], sight: Sight, state: MixerState | None = None
    ) -> Float[Tensor, "B L D"]:
        """state: the last `reach` inputs of each row, oldest first."""
        x, layout = x.to(working_type(x)), sight.layout
        ahead = 0 if layout.direction == "causal" or layout.target_positions is not None else self.reach // 2
        if layout.direction == "blocks":
            with_zero = F.pad(x, (0, 0, 0, 1))
            sources = self._sources(layout, x.shape[1] // 2, ahead, x.device)
            return self._weighted([_gathered(with_zero, source) for source in sources])
        if state is not None:
            return self._behind(state, x, sight, ahead)
        around = (self.reach - ahead, ahead)
        taps = self._taps(F.pad(x, (0, 0, *around)))
        if layout.segments is not None:
            there = self._taps(F.pad(layout.segments, around, value=OUTSIDE))
            taps = [tap * (at == layout.segments)[..., None] for tap, at in zip(taps, there, strict=True)]
        return self._weighted(taps)

    def allocate(self, n_rows: int, **kind: Any) -> MixerState:
        return MixerState.allocate((n_rows, self.reach, len(self.weight)), **kind)

    def _behind(self, state: MixerState, x: Float[Tensor, "B L D"], sight: Sight, ahead: int) -> Float[Tensor, "B L D"]:
        """Behind what the state holds; segments are those of padding, on the right."""
        segments = sight.layout.segments
        if segments is not None:
            x = x * (segments >= 0)[..., None]
        x = torch.cat([state.read(sight).to(x.dtype), x], dim=1)
        out = self._weighted(self._taps(F.pad(x[:, ahead:], (0, 0, 0, ahead))))
        last = x[:, x.shape[1] - self.reach :]
        if segments is not None:
            n_real = (segments >= 0).sum(1, keepdim=True)
            last = _gathered(x, n_real + torch.arange(self.reach, device=x.device))
        state.write(last, sight)
        return out

    def _sources(self, layout: Layout, n: int, ahead: int, device: torch.device) -> Int[Tensor, " k #B L2"]:
        """Where in [noisy ; clean ; zero] each tap of each position looks."""
        assert layout.block is not None, "blocks need a block length"
        place = torch.arange(n, device=device)
        start = place - place % layout.block
        # Of the past, padding is left out: what a draft does not know yet lies between it and what it knows.
        known = start
        segments = layout.segments
        if segments is not None:
            last_real = torch.where(segments[:, n:] >= 0, place + 1, 0).cummax(1).values
            known = F.pad(last_real, (1, 0))[:, start]
        offsets = torch.arange(self.kernel, device=device) * self.dilation - self.reach + ahead
        at = (place + offsets[:, None])[:, None]
        own = torch.where(at < torch.clamp(start + layout.block, max=n), at, 2 * n)
        past = known - start + at
        past = torch.where(past >= 0, past + n, 2 * n)
        clean_own = torch.where(own < 2 * n, own + n, own)
        is_past = at < start
        sources = torch.cat([torch.where(is_past, past, own), torch.where(is_past, past, clean_own)], dim=-1)
        if segments is None:
            return sources
        there = F.pad(segments, (0, 1), value=OUTSIDE).expand(self.kernel, -1, -1).gather(2, sources)
        return torch.where(there == segments, sources, 2 * n)

    def _taps(self, x: Tensor) -> list[Tensor]:
        """The inputs of each tap, out of a row with `reach` more than there are positions."""
        n = x.shape[1] - self.reach
        return [x[:, j * self.dilation :][:, :n] for j in range(self.kernel)]

    def _weighted(self, taps: list[Tensor]) -> Tensor:
        weights = self.weight.to(taps[0].dtype).squeeze(1).unbind(1)
        out = weights[0] * taps[0]
        for weight, tap in zip(weights[1:], taps[1:], strict=True):
            out = torch.addcmul(out, tap, weight)
        return out


def _gathered(x: Float[Tensor, "B S D"], places: Int[Tensor, "#B L"]) -> Float[Tensor, "B L D"]:
    if len(places) == 1:
        return x[:, places[0]]
    return x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
