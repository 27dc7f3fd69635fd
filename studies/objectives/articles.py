"""WikiText-2 as one document an article: FOLDER_OF_WIKITEXT_2 → OUT/{train,validation,test}.jsonl.

Usage: python studies/objectives/articles.py FOLDER_OF_WIKITEXT_2 OUT

The recipes read it line by line, as the literature scores it. A model that is to write texts of 127 tokens has to see
documents that are as long.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from armillary.text.sources.wikitext2 import Wikitext2

TITLE = re.compile(r"^ = [^=].*[^=] = *$")


def main() -> None:
    source, out = Wikitext2(path=sys.argv[1], release="tokens"), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    articles: dict[str, list[list[str]]] = {}
    for line in source.read():
        of_split = articles.setdefault(line.split, [])
        if not of_split or TITLE.match(line.text):
            of_split.append([])
        if line.text.strip():
            of_split[-1].append(line.text)
    for split, found in articles.items():
        texts = ["\n".join(lines) for lines in found if lines]
        path = out / f"{split}.jsonl"
        path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
        print(f"{path}: {len(texts)} articles, {sum(map(len, texts)):,} characters")


if __name__ == "__main__":
    main()
