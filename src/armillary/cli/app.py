"""All verbs under one name. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import typer

from armillary.cli import (
    audit,
    bench,
    compare,
    compatibility,
    data,
    demo,
    doctor,
    evaluate,
    info,
    judge,
    pack,
    plan,
    recipes,
    report,
    runs,
    sample,
    tokenizer,
    train,
    verify,
)

app = typer.Typer(
    name="armillary",
    help="A laboratory for small language models: train one on your own text, and know how good it is.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's help costs 0.2 s
    pretty_exceptions_enable=False,
    add_completion=False,
)
for name, verb in (
    ("demo", demo.demo),
    ("plan", plan.plan),
    ("pack", pack.pack),
    ("train", train.train),
    ("evaluate", evaluate.evaluate),
    ("sample", sample.sample),
    ("judge", judge.judge),
    ("compare", compare.compare),
    ("compatibility", compatibility.compatibility),
    ("report", report.report),
    ("info", info.info),
    ("verify", verify.verify),
    ("audit", audit.audit),
    ("bench", bench.bench),
    ("doctor", doctor.doctor),
):
    app.command(name)(verb)
for name, verbs in (("recipes", recipes.app), ("data", data.app), ("tokenizer", tokenizer.app), ("runs", runs.app)):
    app.add_typer(verbs, name=name)


@app.callback(invoke_without_command=True)
def version(
    context: typer.Context,
    show: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    if show:
        from armillary import __version__

        print(f"armillary {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit
