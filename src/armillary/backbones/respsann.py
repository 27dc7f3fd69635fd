"""ResPSANN: a transformer whose feed-forward networks have learned sines, under a learned scale.

Source: PSANN-LM (Nickm1128/psann).
"""

from __future__ import annotations

from armillary.backbones._psann import PsannBackbone, PsannShape


class Respsann(PsannShape):
    """Shape of a ResPSANN."""

    def build(self) -> PsannBackbone:
        return PsannBackbone(self)
