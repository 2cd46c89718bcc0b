"""Train: a small language model around any mechanism, from a text file to generated text, in Python.

Run: python examples/train.py [MECHANISM] [TEXT_FILE]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

from regard.tasks import checkpoint
from regard.tasks.evaluation import evaluate
from regard.tasks.fit import Hardware
from regard.tasks.generation import Sampling, generate
from regard.tasks.runs import Wishes, plan, train


def main() -> None:
    wishes = Wishes(
        system=sys.argv[1] if len(sys.argv) > 1 else "lightning",
        task="language",
        data=sys.argv[2] if len(sys.argv) > 2 else None,
        settings={"dim": "48", "num_layers": "2", "length": "64", "evaluation_tokens": "4096"},
        recipe={"steps": 60, "batch": 4},
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planned = plan(wishes, cache=folder)
        print(planned.task.described)
        outcome = train(planned, folder, Hardware(progress=False), resume=False)
        print(f"{outcome.stopped}; waiting for data took {outcome.data_share:.1%} of the time")
        # what `regard evaluate` and `regard generate` do with the file
        loaded = checkpoint.load(folder / "model.safetensors")
        bits = evaluate(planned.task, loaded.model, "validation", 8)["bits_per_byte"]
        print(f"bits per byte: {bits:.3f}")
        prompt = torch.tensor(list(b"def "))
        made = generate(loaded.model, prompt, count=60, sampling=Sampling(temperature=0.7))
        print("generated:", repr(loaded.task.tokenizer.decode([*prompt.tolist(), *made])))


if __name__ == "__main__":
    main()
