"""ResPSANN's transformer with another network in each block, at equal parameters: the study's one variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from armillary.backbones._psann import PsannBackbone, PsannShape
from armillary.nn.feed_forward import SwiGlu
from armillary.nn.linear import Linear


class Activated(PsannShape):
    """activation: of the network of a block; its hidden width follows from that of the sine, d_mlp."""

    activation: Literal["sine", "gelu", "relu2", "swiglu"] = "sine"

    def build(self) -> PsannBackbone:
        backbone = PsannBackbone(self)
        if self.activation == "sine":
            return backbone
        width, hidden = self.d_model, self.d_mlp or 4 * self.d_model
        n_parameters = 2 * width * hidden + 4 * hidden + width  # two matrices, their biases, three vectors of a sine
        deep = (2 * self.n_layers) ** -0.5
        for block in backbone.blocks:
            if self.activation == "swiglu":
                network: nn.Module = SwiGlu(width, round(n_parameters / (3 * width)))
            else:
                n = round((n_parameters - width) / (2 * width + 1))
                network = nn.Sequential(Linear(width, n), ACTIVATIONS[self.activation](), Linear(n, width))
            for module in network.modules():
                if isinstance(module, nn.Linear):
                    writes_to_residual = module.out_features == width
                    nn.init.normal_(module.weight, std=0.02 * (deep if writes_to_residual else 1.0))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            block.mlp = network
        return backbone


class _ReluSquared(nn.Module):
    """So et al. 2021, arXiv 2109.08668."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu2": _ReluSquared}
