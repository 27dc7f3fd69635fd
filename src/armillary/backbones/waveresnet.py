"""WaveResNet: a ResPSANN with a wave in each block: a depthwise convolution under a learned sine.

Source: PSANN-LM (Nickm1128/psann).
Differs: the wave is on by default (there the option reached no model, and both bases were one function), and it sees
no future where the layout shows none.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from armillary.backbones._psann import PsannBackbone, PsannShape, Wave

FARTHEST = 16_384
"""Tokens that a wave may reach back: a cache holds as many inputs of each row."""


class Waveresnet(PsannShape):
    """wave: after the network of each block, in its place, or off. The kernel is odd; layer l has dilation growth^l."""

    wave: Literal["interleave", "replace", "off"] = "interleave"
    wave_kernel: int = Field(3, ge=3)
    wave_dilation_growth: int = Field(1, ge=1)

    @field_validator("wave", mode="before")
    @classmethod
    def yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value

    @model_validator(mode="after")
    def nothing_is_ignored(self) -> Waveresnet:
        if self.wave_kernel % 2 == 0:
            raise ValueError(
                f"wave_kernel {self.wave_kernel} has no middle, where both sides are seen; take an odd one"
            )
        reach = (self.wave_kernel - 1) * self.wave_dilation_growth ** (self.n_layers - 1)
        if reach > FARTHEST:
            raise ValueError(
                f"wave_dilation_growth {self.wave_dilation_growth} makes the last wave reach {reach:,} tokens back; "
                f"take a smaller one: {FARTHEST:,} are the most"
            )
        if self.wave == "off" and (self.wave_kernel, self.wave_dilation_growth) != (3, 1):
            raise ValueError("wave_kernel and wave_dilation_growth have no meaning where wave is off; leave them out")
        if self.wave == "replace" and self.d_mlp is not None:
            raise ValueError("d_mlp has no meaning where the wave replaces the network; leave it out")
        return self

    def build(self) -> PsannBackbone:
        if self.wave == "off":
            return PsannBackbone(self)
        return PsannBackbone(self, Wave(self.wave_kernel, self.wave_dilation_growth, self.wave == "replace"))
