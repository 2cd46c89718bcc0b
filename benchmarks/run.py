"""Run the races and print each beside its target: `python benchmarks/run.py [--only palm,eca] [--no-tests]`.

Both sides of a race run in one process, alternating, on one thread. The outcome is written to
`benchmarks/results/cpu.json`, from which the README's table is rendered; with `--only`, the other races keep their
earlier figures. No speed without a green test: the tests of what is raced run first.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from regard.files import write_atomically

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "cpu.json"
FILES = (
    "lightning_attention",
    "softmax",
    "aaren",
    "softplus",
    "hedgehog",
    "sliding_window",
    "eca",
    "transnormer",
    "palm",
    "ninformer",
    "sea",
    "titans",
    "tasks",
    "compare",
    "vision",
    "routing",
    "landmark",
    "hip",
    "recycled",
    "urpe",
    "rcmha",
    "var",
    "meningioma",
    "braintumor",
    "medusa",
    "volumes",
    "hardware",
)
TESTED = ("tests/ops", "tests/mixers", "tests/layers")


def machine() -> str:
    """The processor and the number of cores, in words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, 1 thread"


def tests_are_green() -> bool:
    """Run the tests of what is raced."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *TESTED]
    return subprocess.run(command, cwd=HERE.parent, check=False).returncode == 0


def earlier_races() -> list[dict[str, object]]:
    """The races of the committed results, for those that are not run again; a file that is gone takes its own along."""
    races = json.loads(RESULTS.read_text(encoding="utf-8"))["races"] if RESULTS.exists() else []
    return [race for race in races if race["file"] in FILES]


def write_results(races: list[dict[str, object]]) -> list[dict[str, object]]:
    """Write the races in the order of their files, and return them so."""
    order = {name: place for place, name in enumerate(FILES)}
    in_order = sorted(races, key=lambda race: order[str(race["file"])])
    results = {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__.split("+")[0],
        "command": "make bench",
        "races": in_order,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    write_atomically(RESULTS, json.dumps(results, indent=1) + "\n")
    return in_order


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="comma-separated files of benchmarks/ to run", default=",".join(FILES))
    parser.add_argument("--no-tests", action="store_true", help="do not run the tests first")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",")
    unknown = [name for name in chosen if name not in FILES]
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}: choose from {', '.join(FILES)}")
    if not arguments.no_tests and not tests_are_green():
        print("the tests are red: no speed is reported", file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    kept, races = earlier_races(), []
    ran: list[dict[str, object]] = []
    console = Console()
    for name in chosen:
        began = time.perf_counter()
        for outcome in importlib.import_module(name).races():
            ran.append({"file": name, **outcome.as_json()})
            console.print(
                f"{outcome.name}: {outcome.measured} (target {outcome.target}) {outcome.detail}", highlight=False
            )
        console.print(f"[dim]{name}: {time.perf_counter() - began:.0f} s[/dim]")
        kept = [race for race in kept if race["file"] != name]
        races = write_results(kept + ran)
    table = Table("race", "what", "measured", "target", "met")
    for race in races:
        cells = [str(race[key]) for key in ("name", "what", "measured", "target")]
        table.add_row(*cells, "yes" if race["met"] else "[bold red]no[/bold red]")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
