"""Write what is generated: the docs page of each system, and the tables of the README.

`python docs/generate.py` writes `docs/systems/` and `docs/benchmarks.md`; `--readme` rewrites the generated blocks of
README.md; `--check` only says whether these are up to date.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from regard.metadata import Entry, No
from regard.registry import systems

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = ROOT / "docs" / "systems"
RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
BENCHMARKS_PAGE = ROOT / "docs" / "benchmarks.md"
HEADLINES = (
    "lightning forward float32",
    "lightning training float32",
    "lightning per token float32",
    "lightning peer decay 4096 float32",
    "lightning memory",
    "softmax overhead 4096",
    "softmax bfloat16 2048",
    "softmax bfloat16 training 2048",
    "aaren streaming float32",
    "aaren parallel float32",
    "softplus memory forward",
    "hedgehog forward float32",
    "sliding_window forward float32",
    "eca forward se 256 float32",
    "eca forward se 2048 float32",
    "transnormer training",
    "transnormer memory",
    "transnormer decoding",
    "titans chunked training",
    "titans per token lmm",
    "sea memory 4096",
    "sea growth",
    "ninformer forward 1024",
    "routing forward float32",
    "landmark decode float32",
    "hip prefill 32768 float32",
    "hip decode float32",
    "recycled decoding float32",
    "recycled streaming float32",
    "rcmha memory 512",
    "var decoding 32x128 float32",
    "vision davit_tiny channels last",
    "vision maxvit_tiny channels last",
    "vision efficientvit_m5 channels last",
    "vision shvit_s4 channels last",
    "vision default inference",
    "vision growth maxvit_block",
    "data loading language",
    "compare overhead",
    "agunet forward",
    "volumes windows agunet",
    "volumes memory agunet",
    "hardware sweep",
    "hardware roofline 1 thread",
)
"""The races in the README, one per target."""
KINDS = {"sequence": "sequence mixer", "feature": "feature mixer", "model": "model"}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    cells = [list(header), *[[cell.replace("|", "\\|") for cell in row] for row in rows]]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]])


def systems_table() -> str:
    """The README's table of systems, a row per registered name."""
    rows = []
    for name, entry in systems().items():
        paper = f"[{entry.paper.authors} {entry.paper.year}]({entry.paper.url})"
        orders = f"{entry.traits.time} / {entry.traits.memory}" if entry.traits else ""
        count = len(entry.variants)
        what = entry.summary + (f" ({count} variant{'s' if count > 1 else ''})" if count else "")
        rows.append([f"`{name}`", KINDS.get(entry.kind, entry.kind), what, orders, paper])
    return table(["name", "kind", "what it is", "time / memory", "paper"], rows)


def races_table(results: dict[str, Any], names: Iterable[str], *, detailed: bool = False) -> str:
    """The races of these names, in this order; `detailed` adds times and remarks."""
    by_name = {race["name"]: race for race in results["races"]}
    races = [by_name[name] for name in names]
    header = ["race", "what", "measured", "target", "met"] + ["detail"] * detailed
    rows = [
        [race["name"], race["what"], race["measured"], race["target"], "yes" if race["met"] else "**no**"]
        + [race["detail"]] * detailed
        for race in races
    ]
    return table(header, rows)


def benchmarks_head(results: dict[str, Any]) -> str:
    """What was measured where, and how many targets are met."""
    met = sum(race["met"] for race in results["races"])
    return (
        f"Measured by `make bench` on {results['machine']} ({results['date']}, torch {results['torch']}): "
        f"{met} of {len(results['races'])} races meet their targets."
    )


def benchmarks_table() -> str:
    """The README's table of races, from the committed results file."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    more = "The others are in [benchmarks/results/cpu.json](benchmarks/results/cpu.json)."
    return f"{benchmarks_head(results)} {more}\n\n{races_table(results, HEADLINES)}"


def write_benchmarks_page() -> None:
    """Write the docs page of all races."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    names = [race["name"] for race in results["races"]]
    told = "Both sides run in one process, alternating, on one thread; the ratio of medians counts."
    page = f"# Benchmarks\n\n{benchmarks_head(results)} {told}\n\n{races_table(results, names, detailed=True)}\n"
    BENCHMARKS_PAGE.write_text(page, encoding="utf-8")


BLOCKS = {"systems": systems_table, "benchmarks": benchmarks_table}


def rendered_readme(text: str) -> str:
    """The README with its generated blocks written anew."""
    for name, render in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md has no block {name!r}")
        text = pattern.sub(lambda found: found[1] + render() + "\n" + found[2], text)  # noqa: B023 - used at once
    return text


def traits_rows(entry: Entry) -> list[list[str]]:
    """Capability, whether the mixer has it, and the reason if not."""
    assert entry.traits is not None
    rows = []
    for name, value in entry.traits.capabilities().items():
        rows.append([name, "no" if isinstance(value, No) else "yes", value.reason if isinstance(value, No) else ""])
    return rows


def entry_section(name: str, entry: Entry) -> str:
    """One registered name on its system's page."""
    paper = entry.paper
    parts = [
        f"## `{name}`",
        entry.summary + ".",
        f"*{paper.title}*, {paper.authors}, {paper.venue} {paper.year}, <{paper.url}>"
        + (f"; {paper.where}" if paper.where else "")
        + ".",
    ]
    if paper.code:
        parts.append(f"Compared with `{paper.code}`.")
    if entry.kind in ("sequence", "feature"):
        parts.append(f'```python\nimport regard\n\nmixer = regard.create("{name}", ...)\n```')
    if entry.variants:
        parts.append("Variants: " + ", ".join(f"`{variant}`" for variant in entry.variants) + ".")
    if entry.traits is not None:
        parts.append(table(["capability", "", "reason"], traits_rows(entry)))
    parts.append(f"```{{eval-rst}}\n.. autoclass:: {entry.module}.{entry.qualname}\n   :members:\n```")
    return "\n\n".join(parts)


def write_pages() -> int:
    """Write a page per system and their index; returns the number of pages."""
    by_system: dict[str, list[tuple[str, Entry]]] = defaultdict(list)
    for name, entry in systems().items():
        by_system[entry.system].append((name, entry))
    shutil.rmtree(PAGES, ignore_errors=True)
    PAGES.mkdir(parents=True)
    for system, entries in by_system.items():
        sections = "\n\n".join(entry_section(name, entry) for name, entry in entries)
        (PAGES / f"{system}.md").write_text(f"# {system}\n\n{sections}\n", encoding="utf-8")
    toc = "\n".join(sorted(by_system))
    index = f"# Systems\n\n{systems_table()}\n\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n"
    (PAGES / "index.md").write_text(index, encoding="utf-8")
    return len(by_system)


def main(arguments: list[Any]) -> int:
    """Run from the command line; returns the exit status."""
    text = README.read_text(encoding="utf-8")
    wanted = rendered_readme(text)
    if "--check" in arguments:
        print("README.md is up to date" if text == wanted else "README.md is stale: run `make index`")
        return int(text != wanted)
    if "--readme" in arguments:
        README.write_text(wanted, encoding="utf-8")
        print("README.md written")
        return 0
    print(f"docs/systems: {write_pages()} pages")
    write_benchmarks_page()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
