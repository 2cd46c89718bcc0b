"""Choose: race three mechanisms on your own text and read the winner from the results file.

Run: python examples/choose.py [TEXT_FILE]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from regard.cli import main as regard


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "race"
        data = ["--data", sys.argv[1]] if len(sys.argv) > 1 else []
        options = ["--mechanisms", "softmax,lightning,linear", "--steps", "30", "--lengths", "256,512,1024"]
        status = regard(["compare", "text", *data, *options, "--out", str(out)])
        assert status == 0, "the race did not finish"
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for advice in results["recommendation"]:
        print(f"{advice['question']}: {advice['sentence']}")


if __name__ == "__main__":
    main()
