"""Two corpora in one run: weights by phase act on the rows drawn, and every corpus is validated and evaluated."""

from __future__ import annotations

from armillary.assemble import build, evaluating, training
from armillary.records import Step, Validation


def test_two_corpora_in_phases(small_recipe, text_file, tmp_path):
    documents = text_file.read_text(encoding="utf-8").split("\n\n")
    paths = []
    for name, part in (("odd", documents[::2]), ("even", documents[1::2])):
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_text("\n\n".join(part), encoding="utf-8")
    corpora = ", ".join(f"{p.stem}: {{source: {{name: files, path: {p}}}}}" for p in paths)
    recipe = tmp_path / "mixed.yaml"
    lines = small_recipe.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith(("corpora:", "name:"))]
    phases = "[{weights: {odd: 3, even: 1}, until_tokens: 2048}, {weights: {odd: 0, even: 1}}]"
    recipe.write_text(
        "\n".join(["name: mixed", f"corpora: {{{corpora}}}", f"mixture: {phases}", *kept]), encoding="utf-8"
    )
    request = training.Request(str(recipe), [], root=tmp_path)
    run = training.start(training.check(request), lambda line: None)
    happenings = list(run.happenings())
    mixtures = [h.mixture for h in happenings if isinstance(h, Step)]
    assert mixtures[7] == {"odd": 48, "even": 16}  # 64 rows of 32 tokens are the first phase
    assert mixtures[-1] == {"odd": 48, "even": 24 * 8 - 48}
    assert {h.corpus for h in happenings if isinstance(h, Validation)} == {"odd", "even"}
    results = evaluating.evaluate(build.open_model(run.run), evaluating.Wanted(root=tmp_path))
    assert [r["corpus_name"] for r in results] == ["odd", "even"]
