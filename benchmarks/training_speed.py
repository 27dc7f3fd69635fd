"""Training steps of one model, ours and the Hugging Face Trainer's: as shipped, and under the same allocator.

Usage: python benchmarks/training_speed.py [--rounds 5] [tiny | gpt | fp32 | bf16 ...]

Two shapes, 4,096 tokens a step: LLaMA `tiny` (V 32,768, d 256, 6 layers, d_ff 1,024, tied, T 1,024, batch 4) and the
GPT baseline `gpt` (V 8,192, d 256, 6 layers, d_ff 1,024, T 128, batch 32). Same random tokens, AdamW, clipping at 1,
weights in fp32; fp32 or bf16 autocast, eager or compiled. The Trainer is what the peer offers for the same job.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from contest import KEPT_ALLOCATOR, SYSTEM_ALLOCATOR, compete, show, work, write

STEPS_A_ROUND = 3
WARM_UP = 3
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"n_vocab": 32_768, "window": 1_024, "rows": 4},
    "gpt": {"n_vocab": 8_192, "window": 128, "rows": 32},
}
PRECISIONS = ["fp32", "bf16"]
OURS, TRAINER = "armillary", "Trainer"


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--worker"]:
        who, shape, precision, mode, allocator = arguments[1].split("/")
        contender = {OURS: ours, TRAINER: trainer}[who]
        work(lambda: contender(shape, precision, mode == "compiled"), allocator)
        return
    n_rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 5
    shapes = [shape for shape in SHAPES if shape in arguments] or list(SHAPES)
    precisions = [precision for precision in PRECISIONS if precision in arguments] or PRECISIONS
    readings: dict[str, Any] = {}
    for shape in shapes:
        for precision in precisions:
            for mode in ("eager", "compiled"):
                group = f"{shape}/{precision}/{mode}"
                print(group, flush=True)
                mine = f"{OURS}/{group}/{KEPT_ALLOCATOR}"
                others = [f"{TRAINER}/{group}/{SYSTEM_ALLOCATOR}", f"{TRAINER}/{group}/{KEPT_ALLOCATOR}"]
                readings[group] = compete(__file__, [mine, f"{OURS}/{group}/{SYSTEM_ALLOCATOR}", *others], n_rounds)
                show(readings[group], mine)
    print(write("training_speed", readings, "python benchmarks/training_speed.py"))


def ours(shape: str, precision: str, compiled: bool) -> Iterator[int]:
    """The training loop of a recipe: what `armillary train` runs between two validations."""
    from armillary import recipe
    from armillary.assemble import build, parts
    from armillary.training import distribution
    from armillary.training.loop import Course, steps

    s = SHAPES[shape]
    overrides = [
        f"training.compile={str(compiled).lower()}",
        f"training.precision={precision}",
        f"training.batch_rows={s['rows']}",
        "training.steps=1000000",
        "model.tied=true",
        f"packing.window={s['window']}",
    ]
    found = parts.resolve(recipe.raw({"tiny": "lumi-tiny", "gpt": "baseline-gpt"}[shape], overrides))
    learner = build.learner(found, s["n_vocab"], torch.device("cpu"))
    accelerator = distribution.join("cpu")
    course = Course(_Rows(shape), found.recipe.training, precision, seed=0, factor=lambda step: 1.0)
    happening = steps(learner, course, accelerator)
    for _ in range(WARM_UP):
        next(happening)
    yield 0
    while True:
        yield sum(s["rows"] * s["window"] for _ in range(STEPS_A_ROUND) if next(happening))


def trainer(shape: str, precision: str, compiled: bool) -> Iterator[int]:
    """The Trainer in a thread that is let go for one round at a time."""
    from threading import Semaphore, Thread

    from transformers import Trainer, TrainerCallback, TrainingArguments

    may_go, done = Semaphore(0), Semaphore(0)

    class Rounds(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            n = state.global_step - WARM_UP
            if n >= 0 and n % STEPS_A_ROUND == 0:
                done.release()
                may_go.acquire()

    s = SHAPES[shape]
    settings = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=1_000_000,
        per_device_train_batch_size=s["rows"],
        learning_rate=3e-4,
        bf16=precision == "bf16",
        torch_compile=compiled,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    text = torch.randint(4, s["n_vocab"], (4_096, s["window"]), generator=torch.Generator().manual_seed(0))
    dataset = [{"input_ids": row, "labels": row} for row in text]
    training = Trainer(model=peer(shape), args=settings, train_dataset=dataset, callbacks=[Rounds()])  # type: ignore[arg-type]
    Thread(target=training.train, daemon=True).start()
    done.acquire()
    yield 0
    while True:
        may_go.release()
        done.acquire()
        yield STEPS_A_ROUND * s["rows"] * s["window"]


def peer(shape: str) -> torch.nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    s = SHAPES[shape]
    if shape == "tiny":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=s["n_vocab"],
                hidden_size=256,
                num_hidden_layers=6,
                intermediate_size=1_024,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=s["window"],
                tie_word_embeddings=True,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=s["n_vocab"],
            n_positions=s["window"],
            n_embd=256,
            n_layer=6,
            n_head=4,
            n_inner=1_024,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


class _Rows:
    """Random rows: what they hold costs nothing and teaches nothing."""

    def __init__(self, shape: str) -> None:
        from armillary.contracts import Batch

        s = SHAPES[shape]
        tokens = torch.randint(
            4, s["n_vocab"], (s["rows"], s["window"] + 1), generator=torch.Generator().manual_seed(0)
        )
        self.batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))

    def at(self, step: int) -> Any:
        return self.batch

    def counts_before(self, step: int) -> dict[str, int]:
        return {"main": 0}


if __name__ == "__main__":
    main()
