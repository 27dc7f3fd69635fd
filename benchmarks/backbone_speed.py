"""Training steps of every backbone at equal parameters, in our loop: what each costs beside `llama`.

Usage: python benchmarks/backbone_speed.py [--rounds 5] [eager | compiled ...]

Vocabulary 8,192, tied, 4,096 tokens a step as 32 rows of 128, AdamW, weights in fp32, and bf16 autocast where the
processor has it. Shapes are widths and depths that come within 2 % of llama's parameters without embeddings; it is
checked before anything is timed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from contest import KEPT_ALLOCATOR, compete, show, work, write

from armillary.training import precision

N_VOCAB, WINDOW, ROWS = 8_192, 128, 32
STEPS_A_ROUND = 2
WARM_UP = 2
TOLERANCE = 0.02
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"d_model": 256, "n_layers": 6, "n_heads": 4},
    "gpt": {"d_model": 256, "n_layers": 6, "n_heads": 4, "d_ff": 1_040, "max_length": WINDOW},
    "respsann": {"d_model": 256, "n_layers": 6, "n_heads": 4, "d_mlp": 1_040},
    "waveresnet": {"d_model": 256, "n_layers": 6, "n_heads": 4, "d_mlp": 912},
    "perigee": {"model_dim": 216, "num_layers": 5, "num_heads": 4, "window": WINDOW},
    "bijective": {"d_model": 256, "n_layers": 6, "n_heads": 4},
}
MODES = ["eager", "compiled"]


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--worker"]:
        backbone, mode = arguments[1].split("/")
        work(lambda: contender(backbone, mode == "compiled"), KEPT_ALLOCATOR)
        return
    counts = {backbone: n_parameters(backbone) for backbone in SHAPES}
    for backbone, n in counts.items():
        print(f"{backbone}: {n:,} parameters without embeddings, {n / counts['llama'] - 1:+.1%}", flush=True)
        if abs(n / counts["llama"] - 1) > TOLERANCE:
            raise SystemExit(f"{backbone}: not within {TOLERANCE:.0%} of llama; change its shape")
    n_rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 5
    readings: dict[str, Any] = {}
    for mode in [mode for mode in MODES if mode in arguments] or MODES:
        names = [f"{backbone}/{mode}" for backbone in SHAPES]
        group = f"{mode} {precision.resolve('auto', torch.device('cpu'))}"
        readings[group] = compete(__file__, names, n_rounds)
        show(readings[group], f"llama/{mode}")
    print(write("backbone_speed", readings, "python benchmarks/backbone_speed.py"))


def n_parameters(backbone: str) -> int:
    from armillary.model.network import count_parameters, meta_network
    from armillary.registry import make

    return count_parameters(meta_network(make("backbones", backbone, SHAPES[backbone]), N_VOCAB, tied=True))[1]


def contender(backbone: str, compiled: bool) -> Iterator[int]:
    from armillary import recipe
    from armillary.assemble import build, parts
    from armillary.contracts import Batch
    from armillary.training import distribution
    from armillary.training.loop import Course, steps

    fields = ", ".join(f"{key}: {value}" for key, value in SHAPES[backbone].items())
    overrides = [
        f"model.backbone={{name: {backbone}, {fields}}}",
        f"training.compile={str(compiled).lower()}",
        f"training.batch_rows={ROWS}",
        "training.steps=1000000",
    ]
    found = parts.resolve(recipe.raw("baseline-gpt", overrides))
    learner = build.learner(found, N_VOCAB, torch.device("cpu"))

    class Rows:
        def at(self, step: int) -> Batch:
            generator = torch.Generator().manual_seed(step)
            tokens = torch.randint(4, N_VOCAB, (ROWS, WINDOW + 1), generator=generator)
            return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))

        def counts_before(self, step: int) -> dict[str, int]:
            return {}

    arithmetic = precision.resolve("auto", torch.device("cpu"))
    course = Course(Rows(), found.recipe.training, arithmetic, seed=0, factor=lambda step: 1.0)
    happening = steps(learner, course, distribution.join("cpu"))
    for _ in range(WARM_UP):
        next(happening)
    yield 0
    while True:
        yield sum(ROWS * WINDOW for _ in range(STEPS_A_ROUND) if next(happening))


if __name__ == "__main__":
    main()
