"""What each kind of part promises: sources, tokenizers, backbones, heads, objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from armillary.contracts.flow import Batch, Layout, Loss
from armillary.records import Document, Kind, Rejected


@runtime_checkable
class Source(Protocol):
    """A file of text/sources: a frozen part that reads documents, in the same order every time."""

    @property
    def boundary(self) -> Literal["newline", "end_of_text"]:
        """What the end of a document stands for: a newline of the text, or an event without bytes."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Plain facts that change when the text would (names, sizes and SHA-256 of files); no absolute path.

        Raises Refusal where the text cannot be found.
        """
        ...

    def read(self) -> Iterator[Document | Rejected]:
        """Documents without a split belong to train. A bad record is yielded as Rejected, never skipped."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back. Lossless ones round-trip any UTF-8 exactly, whatever special-looking text it holds."""

    @property
    def n_vocab(self) -> int:
        """Every id is below it; the four specials and chat markers included."""
        ...

    @property
    def is_lossless(self) -> bool: ...

    @property
    def markers(self) -> dict[str, int]:
        """Chat markers and their ids: single tokens, the last of the vocabulary. Text never encodes to them."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no bos or eos is added."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array a text, equal to `encode` of each, faster."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special ids give nothing; bytes that are not UTF-8 come as U+FFFD."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes a token stands for in the middle of a text; empty for specials."""
        ...

    def save(self, folder: Path) -> Path:
        """Writes the model file into a folder that exists, and returns its path."""
        ...


@runtime_checkable
class TokenizerPart(Protocol):
    """A file of tokens/tokenizers: its fields are the configuration, it trains and loads tokenizers."""

    @property
    def planned_vocabulary(self) -> int | None:
        """Ids it will have after training on enough text; None where only the text can tell."""
        ...

    def train(self, texts: Iterable[str]) -> Tokenizer:
        """Raises Refusal where the vocabulary is smaller than the alphabet."""
        ...

    def load(self, folder: Path) -> Tokenizer: ...


@runtime_checkable
class Cache(Protocol):
    """State of decoding for rows × capacity tokens, preallocated. Nothing grows, nothing is kept on modules.

    layers: what each mixer keeps. rows: which rows of the storage this cache looks at, None for all. lengths: tokens
    each row of the storage holds, on the host; row_lengths: those of the rows looked at. is_seen_whole: attention looks
    at every slot under a mask, so that the shapes of a step never change. keeps: False in a pass whose tokens see the
    cache and one another, and are forgotten.
    """

    layers: list[Any]
    lengths: Int[Tensor, " R"]
    capacity: int
    rows: Int[Tensor, " n"] | None
    is_seen_whole: bool
    keeps: bool

    @property
    def row_lengths(self) -> Int[Tensor, " n"]: ...

    def reset(self, rows: Int[Tensor, " n"]) -> None:
        """Empties rows, so that other texts can be admitted there."""
        ...

    def at(self, rows: Int[Tensor, " n"]) -> Cache:
        """The same storage, seen as these rows only: a forward pass writes into them."""
        ...

    def whole(self) -> Cache:
        """The same storage, every row and slot of it: a compiled step gets that, so that its shapes never change."""
        ...

    def tentative(self) -> Cache:
        """The same storage for a pass that is not kept: a block in hand is read many times behind the finished ones."""
        ...

    def advance(self, n: Int[Tensor, " n"] | int) -> None:
        """Counts the tokens that a forward pass has just written, once, after the last layer."""
        ...


@runtime_checkable
class Backbone(Protocol):
    """(B, L, D) → (B, L, D). Honours every layout and cache it is given, or does not exist.

    noise_level: how corrupted each position is, in [0, 1]; None where the backbone is not conditioned on it.
    """

    def __call__(
        self,
        x: Float[Tensor, "B L D"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B L D"]: ...

    def allocate(self, n_rows: int, capacity: int, *, device: torch.device, dtype: torch.dtype) -> Cache: ...


@runtime_checkable
class BackbonePart(Protocol):
    """A file of backbones/: a frozen part whose fields are the shape; `build` makes the module, initialised."""

    @property
    def width(self) -> int: ...

    @property
    def max_length(self) -> int | None:
        """The longest row it can see, where positions are learned; None where there is no limit."""
        ...

    def build(self) -> torch.nn.Module: ...


@runtime_checkable
class Head(Protocol):
    """From selected rows of the last hidden state to the vocabulary, a chunk at a time: (B, L, V) never exists."""

    def nll(self, rows: Float[Tensor, "n D"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]: ...

    def weighted_nll(
        self,
        rows: Float[Tensor, "n D"],
        targets: Int[Tensor, " n"],
        weights: Float[Tensor, " n"] | None = None,
        label_smoothing: float = 0.0,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " n"]]:
        """(Σ weights · smoothed loss, to differentiate; nats of each row, detached and without smoothing)."""
        ...

    def log_p(self, rows: Float[Tensor, "n D"]) -> Float[Tensor, "n V"]: ...

    def reduce(
        self, rows: Float[Tensor, "n D"], fn: Callable[..., Tensor], *extras: Tensor, normalised: bool = True
    ) -> Float[Tensor, "n ..."]:
        """`fn(log_p of a chunk, the chunk of each extra)`, with one entry a row; differentiable.

        normalised False: fn gets the logits.
        """
        ...


@runtime_checkable
class Network(Protocol):
    """What an objective sees of a model."""

    @property
    def n_vocab(self) -> int: ...

    @property
    def head(self) -> Head: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def hidden(
        self,
        tokens: Int[Tensor, "B L"],
        layout: Layout,
        noise_level: Float[Tensor, " B #L"] | None = None,
    ) -> Float[Tensor, "B L D"]: ...


@runtime_checkable
class Objective(Protocol):
    """What is learnt. A frozen part; it shares with a sampler only the forward process, never itself."""

    @property
    def kind(self) -> Kind:
        """What `score` is: exact or a bound; monte_carlo_bound where it depends on the draws."""
        ...

    @property
    def views(self) -> tuple[str, ...]:
        """What such a model offers to samplers: "next_token", "absorbing", "uniform", "blocks", "any_order" or
        "latent"."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What the network must have beyond the layout ("noise_level", "target_positions", "encoder"), and "float64" of
        the device."""
        ...

    @property
    def n_extra_embeddings(self) -> int:
        """Embedding rows beyond the vocabulary: 1 for an absorbing corruption, whose MASK is row V."""
        ...

    def draw(self, n_rows: int, n_tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All randomness of one step for the *global* batch, rows first; the loop gives each rank its slice."""
        ...

    def loss(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Loss: ...

    def score(self, network: Network, batch: Batch, draws: dict[str, Tensor]) -> Float[Tensor, "B T"]:
        """Nats of each token of [1:], zero where it is context, given clean.

        With draws of another seed it is another estimate, for a Monte-Carlo bound. An objective that looks at what
        follows pays for a bos behind a scored eos too, or that bos would tell where documents end.
        """
        ...


@runtime_checkable
class OrderedObjective(Protocol):
    """An objective whose model has an exact likelihood for every order in which tokens are revealed."""

    def score_where(
        self, network: Network, batch: Batch, hidden: Bool[Tensor, "B T"], asked: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T"]:
        """Nats of the tokens of [1:] at `asked` (a part of `hidden`), given all that is not hidden; zero elsewhere."""
        ...
