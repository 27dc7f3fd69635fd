"""Goes on from prompts with a model that was kept: python examples/generate.py my-model "Once upon a time" Goodnight"""

import sys

from armillary import LanguageModel


def main(folder: str, *prompts: str) -> None:
    model = LanguageModel.load(folder)
    for prompt, text in zip(prompts, model.generate_batch(prompts, max_new_tokens=32, seed=0), strict=True):
        print(prompt + text)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
