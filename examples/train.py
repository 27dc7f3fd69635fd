"""Trains a small model on a text file and keeps it: python examples/train.py my-text.txt my-model"""

import logging
import sys

from armillary import LanguageModel, TextData


def main(text: str, folder: str) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    data = TextData([text], max_length=64, val_split=0.1)
    model = LanguageModel(base="waveresnet", d_model=64, n_layers=2, n_heads=4, vocab_size=data.vocab_size)
    model.fit(data, epochs=1, batch_tokens=2048, lr=3e-3)
    print(f"{model.evaluate()['bits_per_byte']:.3f} bits per byte of text that was held out")
    model.save(folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
