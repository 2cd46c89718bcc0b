"""`regard hardware`: passes of a cascade, cost of attention on accelerators, sweeps, and this machine's roofs."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regard.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from regard.cli.console import Console
    from regard.hardware.einsum import Cascade
    from regard.hardware.roofline import Machine
    from regard.report.hardware import HardwareRecord

EXAMPLES = """
  regard hardware passes attention_one_pass
  regard hardware passes my.cascade --rank m --json passes.json
  regard hardware cost softmax --workload bert --seq 65536 --arch fusemax
  regard hardware cost lightning --workload t5 --seq 16384 --arch h200
  regard hardware compare --out runs/accelerators
  regard hardware sweep --workload xlm --seq 262144
  regard hardware calibrate --json machine.json
"""
USES: dict[str, set[str]] = {
    "passes": {"target", "rank"},
    "cost": {"target", "workload", "seq", "arch", "keys_seen", "agents"},
    "compare": {"workload", "seq", "machine"},
    "sweep": {"workload", "seq"},
    "calibrate": set(),
}
"""The arguments of each action, beside those of all."""
Action = Literal["passes", "cost", "compare", "sweep", "calibrate"]
Made = tuple[dict[str, Any], "HardwareRecord | None"]


def run(
    action: Action,
    target: str | None = None,
    *,
    rank: str | None = None,
    workload: str | None = None,
    seq: int | None = None,
    arch: str | None = None,
    keys_seen: int | None = None,
    agents: int | None = None,
    machine: Path | None = None,
    json: Path | None = None,
    out: Path | None = None,
) -> int:
    """Say what attention costs on an accelerator before anyone builds it.

    passes: how often a cascade must go over its keys, what begins each pass, and how the words on the chip grow with
    the length. cost: time and traffic of one layer on one design or chip, with utilisation and energy where it is a
    design. compare: five designs on 24 workloads. sweep: arrays of 16 to 512 elements per side. calibrate: this
    machine's roofs, and the times they tell for softmax and lightning beside measured ones. Energies are calibrated on
    published ones.

    Args:
        action: passes, cost, compare, sweep or calibrate.
        target: for passes and cost, a cascade that comes with the library (softmax is one) or a file.
        rank: whose passes are counted (default the keys').
        workload: bert, trxl, t5 or xlm (default bert for cost, all for compare and sweep).
        seq: number of queries and of keys (default 65,536 for cost, all of 1K to 1M for compare and sweep).
        arch: for cost, a design (unfused, flat, cascade, arch, fusemax), or h200, cpu or a file that calibrate wrote
            (default fusemax).
        keys_seen: for cost on a chip, the keys that a query attends to in window and hip (default 512).
        agents: for cost on a chip, the number of agents (default 49).
        machine: a file that calibrate wrote, whose roof compare draws too.
        json: write the figures to this file.
        out: folder for report.html.
    """
    from regard.cli.console import output
    from regard.cli.errors import writable_file

    given: dict[str, object] = {"target": target, "rank": rank, "workload": workload, "seq": seq, "arch": arch}
    given |= {"keys_seen": keys_seen, "agents": agents, "machine": machine}
    _check_given(action, {name for name, value in given.items() if value is not None})
    writable_file(json)
    console = output()
    try:
        if action == "passes":
            figures, record = _passes(console, target, rank)
        elif action == "cost":
            figures, record = _cost(console, target or "softmax", workload, seq, arch or "fusemax", keys_seen, agents)
        elif action == "compare":
            figures, record = _compare(console, workload, seq, machine)
        elif action == "sweep":
            figures, record = _sweep(console, workload, seq)
        else:
            figures, record = _calibrate(console)
    except ValueError as error:
        raise UserError(f"{target}: {error}" if action == "passes" and target else str(error)) from None
    if json is not None:
        _write_json(json, figures)
    if out is not None and record is not None:
        _write_report(console, record, out)
    return 0


def _check_given(action: Action, given: set[str]) -> None:
    """Refuse what an action does not use.

    Raises:
        UserError: an argument is for other actions, which are named.
    """
    for name in sorted(given - USES[action]):
        shown = "TARGET" if name == "target" else f"--{name.replace('_', '-')}"
        others = " and ".join(other for other, uses in USES.items() if name in uses)
        raise UserError(f"{action} takes no {shown}: it is for {others}")


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    from regard.files import write_atomically
    from regard.wording import shown

    try:
        write_atomically(path, json_module.dumps(figures, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {shown(path)}: {error.strerror}") from None


def _write_report(console: Console, record: HardwareRecord, out: Path) -> None:
    from dataclasses import replace

    from regard.cli.records import command
    from regard.files import folder_for
    from regard.report.hardware import write_hardware_page
    from regard.wording import shown

    try:
        with folder_for(out):
            write_hardware_page(replace(record, command=command()), out / "report.html")
    except OSError as error:
        raise UserError(f"cannot write in {shown(out)}: {error.strerror or error}") from None
    console.print(str(out / "report.html"), soft_wrap=True)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without lines; all columns but the first are right-aligned, and so is no last one without a heading."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, padding=(0, 1), show_header=any(headings))
    for number, heading in enumerate(headings):
        is_remark = number == len(headings) - 1 and not heading
        drawn.add_column(heading, justify="right" if number and not is_remark else "left")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def found_cascade(target: str | None) -> Cascade:
    """A cascade by name, or from a file.

    Raises:
        UserError: none is named.
        CascadeError: unknown, or a fault in the file.
    """
    from regard.hardware.library import SUFFIX, cascade, names
    from regard.hardware.reader import read_file

    if target is None:
        raise UserError(f"missing TARGET: a file, or one of {', '.join(names())}")
    path = Path(target)
    return read_file(path) if path.suffix == SUFFIX or path.is_file() else cascade(target)


def read_machine(path: Path) -> Machine:
    """A machine from a file that calibrate wrote.

    Raises:
        UserError: it is missing or something else.
    """
    from regard.hardware.roofline import Machine
    from regard.wording import shown

    try:
        found = json_module.loads(path.read_text(encoding="utf-8"))
        return Machine(**found["machine"])
    except OSError as error:
        raise UserError(f"cannot read {shown(path)}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{shown(path)} is no file that regard hardware calibrate wrote: {error}") from None


def _passes(console: Console, target: str | None, rank: str | None) -> Made:
    from regard.cli.hardware_passes import passes

    return passes(console, found_cascade(target), rank)


def _cost(
    console: Console,
    target: str,
    model: str | None,
    seq: int | None,
    arch: str,
    keys_seen: int | None,
    agents: int | None,
) -> Made:
    from regard.cli.hardware_costs import cost_on_chip, cost_on_design
    from regard.hardware.chips import AGENTS, SEEN
    from regard.hardware.designs import DESIGNS
    from regard.hardware.roofline import MACHINES
    from regard.hardware.workloads import workload

    work = workload(model or "bert", 65536 if seq is None else seq)
    cascade = found_cascade(target)
    path = Path(arch)
    if arch in MACHINES or path.is_file():
        machine = MACHINES[arch] if arch in MACHINES else read_machine(path)
        keys_seen, agents = SEEN if keys_seen is None else keys_seen, AGENTS if agents is None else agents
        return cost_on_chip(console, cascade, work, machine, keys_seen, agents)
    if not cascade.name.startswith("attention"):
        raise UserError(
            f"the designs {', '.join(DESIGNS)} are for softmax attention: for {cascade.name} name --arch h200, cpu or "
            "a file that calibrate wrote"
        )
    if keys_seen is not None or agents is not None:
        raise UserError("--keys-seen and --agents are for chips that exist: name --arch h200 or cpu")
    return cost_on_design(console, work, arch)


def _compare(console: Console, model: str | None, seq: int | None, machine: Path | None) -> Made:
    from regard.cli.hardware_costs import compare
    from regard.hardware.workloads import workloads

    return compare(console, workloads(model, seq), None if machine is None else read_machine(machine))


def _sweep(console: Console, model: str | None, seq: int | None) -> Made:
    from regard.cli.hardware_costs import sweep_all, sweep_one
    from regard.hardware.workloads import workloads

    works = workloads(model, seq)
    return sweep_one(console, works[0]) if len(works) == 1 else sweep_all(console, works)


def _calibrate(console: Console) -> Made:
    from regard.cli.hardware_calibrate import calibrated

    return calibrated(console)
