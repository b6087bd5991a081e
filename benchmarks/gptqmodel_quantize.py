"""Quantize a checkpoint to 8 bits by GPTQModel, in an environment of its own.

python3.11 -m venv ENV && ENV/bin/pip install torch==2.13.0 gptqmodel==7.6.0
GPTQMODEL_CPU_WORKERS=2 ENV/bin/python benchmarks/gptqmodel_quantize.py MODEL OUT TEXT
"""

import sys
from pathlib import Path

from gptqmodel import GPTQModel, QuantizeConfig
from transformers import AutoTokenizer

SAMPLES, SHORTEST = 32, 80


def main() -> None:
    source, out, text = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(source)
    lines = Path(text).read_text(encoding="utf-8").split("\n")
    samples = [dict(tokenizer(line)) for line in lines if len(line) > SHORTEST][:SAMPLES]
    model = GPTQModel.load(source, QuantizeConfig(bits=8, group_size=64), device="cpu")
    model.quantize(samples, batch_size=1)
    model.save(out)


if __name__ == "__main__":
    main()
