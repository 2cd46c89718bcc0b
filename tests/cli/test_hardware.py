"""`regard hardware`: passes, costs, comparisons, sweeps, calibration; and one line for what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from regard.analysis import calibration
from regard.analysis.calibration import Compared
from regard.hardware.library import names
from regard.hardware.roofline import Machine

USERS_OWN = """# a weighted mean, centred
cascade centred: values minus their weighted mean
rank f, m
input W[m], V[f, m]
output C
T[] = sum(m) W[m]
S[f] = sum(m) W[m] * V[f, m]
A[f] = S[f] / T[]
C[f, m] = V[f, m] - A[f]
"""
MACHINE = Machine(name="a small machine", flops_per_s=2e9, bytes_per_s=1e9, exps_per_s=1e8, source="made up")


@pytest.mark.parametrize("name", names())
def test_passes_of_every_shipped_cascade(regard, tmp_path: Path, name: str) -> None:
    ran = regard("hardware", "passes", name, "--json", str(tmp_path / "passes.json"))
    assert ran.status == 0
    found = json.loads((tmp_path / "passes.json").read_text())
    assert found["cascade"] == name
    assert f"{found['passes']} pass" in ran.out
    words = [row["live_words"] for row in found["growth"]]
    # a fiber of scores stays on the chip where there is more than one pass
    assert (words[-1] > 4 * words[0]) == (found["passes"] > 1)


def test_passes_of_a_file(regard, tmp_path: Path) -> None:
    path = tmp_path / "own.cascade"
    path.write_text(USERS_OWN)
    ran = regard("hardware", "passes", str(path), "--out", str(tmp_path / "page"))
    assert ran.status == 0
    assert "centred: values minus their weighted mean" in ran.out
    assert "2 passes over m" in ran.out
    page = (tmp_path / "page" / "report.html").read_text()
    assert "centred" in page
    assert ran.out.rstrip().endswith("report.html")


FAULTS = {
    "wrong rank": ("A[f] = S[f] / T[]", "A[f] = S[m] / T[]", "line 8, column 8: S has the rank f here, got m"),
    "unbound index": ("T[] = sum(m) W[m]", "T[] = W[m]", "line 6, column 7: the rank m is unbound"),
    "cycle": ("S[f] = sum(m) W[m] * V[f, m]", "S[f] = A[f] * T[]", "depends on itself"),
    "unknown operator": ("A[f] = S[f] / T[]", "A[f] = mean(S[f], T[])", "line 8, column 8: unknown operator mean"),
    "unknown tensor": ("A[f] = S[f] / T[]", "A[f] = S[f] / X[]", "line 8, column 15: X is not defined"),
}


@pytest.mark.parametrize(("right", "wrong", "why"), FAULTS.values(), ids=list(FAULTS))
def test_a_fault_in_a_file_has_its_line_and_column(refused, tmp_path: Path, right: str, wrong: str, why: str) -> None:
    path = tmp_path / "own.cascade"
    path.write_text(USERS_OWN.replace(right, wrong))
    line = refused("hardware", "passes", str(path))
    assert why in line
    assert "own.cascade: line " in line


def test_cost_on_a_design(regard, tmp_path: Path) -> None:
    ran = regard("hardware", "cost", "softmax", "--workload", "bert", "--seq", "65536", "--arch", "fusemax",
                 "--json", str(tmp_path / "cost.json"), "--out", str(tmp_path / "page"))  # fmt: skip
    assert ran.status == 0
    assert "attention" in ran.out
    assert "calibrated" in ran.out
    found = json.loads((tmp_path / "cost.json").read_text())
    cycles = sum(part["length"] for part in found["phases"]) * 64 * 12 * 65536**2 / 256**2
    assert found["latency_s"] == pytest.approx(cycles / 940e6)
    assert "BERT at 65,536 tokens on fusemax" in (tmp_path / "page" / "report.html").read_text()


def test_cost_on_chips_and_on_a_calibrated_machine(regard, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(json.dumps({"machine": asdict(MACHINE)}))
    for arch in ("h200", "cpu", str(tmp_path / "machine.json")):
        ran = regard("hardware", "cost", "lightning", "--seq", "4096", "--arch", arch)
        assert ran.status == 0
        assert "least time" in ran.out
    assert "a small machine" in ran.out


def test_fewer_keys_cost_less(regard, tmp_path: Path) -> None:
    seconds = []
    for keys in ("64", "4096"):
        out = tmp_path / f"{keys}.json"
        assert (
            regard("hardware", "cost", "window", "--arch", "cpu", "--keys-seen", keys, "--json", str(out)).status == 0
        )
        seconds.append(json.loads(out.read_text())["latency_s"])
    assert seconds[1] > 20 * seconds[0]


def test_compare_tells_the_papers_means(regard, tmp_path: Path) -> None:
    (tmp_path / "machine.json").write_text(json.dumps({"machine": asdict(MACHINE)}))
    ran = regard("hardware", "compare", "--json", str(tmp_path / "c.json"), "--out", str(tmp_path / "page"),
                 "--machine", str(tmp_path / "machine.json"))  # fmt: skip
    assert ran.status == 0
    assert "6.723x" in ran.out
    assert "5.302x" in ran.out
    assert len(json.loads((tmp_path / "c.json").read_text())["points"]) == 24 * 5
    page = (tmp_path / "page" / "report.html").read_text()
    assert "6.72" in page
    assert "a small machine" in page
    assert "Energies are calibrated" in page


def test_sweeps(regard, tmp_path: Path) -> None:
    whole = regard("hardware", "sweep", "--json", str(tmp_path / "all.json"), "--out", str(tmp_path / "page"))
    assert whole.status == 0
    assert len(json.loads((tmp_path / "all.json").read_text())["points"]) == 720
    one = regard("hardware", "sweep", "--workload", "xlm", "--seq", "262144", "--json", str(tmp_path / "one.json"))
    assert one.status == 0
    assert one.out.count("on the front") == 6
    assert len(json.loads((tmp_path / "one.json").read_text())["points"]) == 6


def test_calibrate_writes_a_machine_that_cost_reads(regard, tmp_path: Path, monkeypatch) -> None:
    pair = Compared(mechanism="softmax", tokens=64, predicted_s=0.25, measured_s=0.5, operations=1e6, moved_bytes=1e5)

    def compare_times(machine, *, on_result):
        on_result(pair)
        return [pair]

    monkeypatch.setattr(calibration, "calibrate", lambda: MACHINE)
    monkeypatch.setattr(calibration, "compare_times", compare_times)
    path = tmp_path / "machine.json"
    ran = regard("hardware", "calibrate", "--json", str(path), "--out", str(tmp_path / "page"))
    assert ran.status == 0
    assert "2.00" in ran.out
    assert json.loads(path.read_text())["layers"][0]["measured_over_predicted"] == 2
    assert "a small machine" in (tmp_path / "page" / "report.html").read_text()
    assert regard("hardware", "cost", "agent", "--arch", str(path)).status == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["passes"], "missing TARGET: a file, or one of attention_three_pass"),
        (["passes", "nope"], "no cascade 'nope'"),
        (["passes", "attention_one_pass", "--rank", "z"], "has no rank z: it has e, f, p, m"),
        (["passes", "no/such.cascade"], "cannot be read"),
        (["cost", "--workload", "brt"], "unknown workload 'brt': did you mean bert?"),
        (["cost", "--seq", "1000"], "must be a multiple of the array's 256, got 1000"),
        (["cost", "--seq", "-256"], "must be positive, got -256"),
        (["cost", "--arch", "flt"], "unknown design 'flt': did you mean flat?"),
        (["cost", "lightning"], "are for softmax attention: for lightning name --arch h200"),
        (["cost", "window", "--arch", "cpu", "--keys-seen", "0"], "keys and agents must be positive, got 0 and 49"),
        (["sweep", "bert"], "sweep takes no TARGET: it is for passes and cost"),
        (["compare", "--machine", "no.json"], "cannot read no.json"),
        (["compare", "--rank", "m"], "compare takes no --rank: it is for passes"),
        (["passes", "hip", "--seq", "64"], "passes takes no --seq: it is for cost and compare and sweep"),
        (["cost", "--agents", "7"], "--keys-seen and --agents are for chips that exist"),
        (["measure"], "must be passes or cost or compare or sweep or calibrate, got measure"),
        (["sweep", "--json", "no/folder/x.json"], "there is no folder no/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_refused_in_one_line(refused, arguments: list[str], why: str) -> None:
    assert why in refused("hardware", *arguments)


def test_a_file_that_is_no_machine_is_refused(refused, tmp_path: Path) -> None:
    for text in ("", "[]", '{"machine": {}}', '{"machine": {"name": "x", "flops_per_s": -1, "bytes_per_s": 1}}'):
        path = tmp_path / "machine.json"
        path.write_text(text)
        assert "is no file that regard hardware calibrate wrote" in refused("hardware", "cost", "--arch", str(path))


def test_hardware_needs_no_torch() -> None:
    code = (
        "import sys; from regard.cli import main; status = main(['hardware', 'sweep']); "
        "sys.exit(status or 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "720 points" in ran.stdout


def test_compare_and_sweep_take_some_workloads(regard, tmp_path: Path) -> None:
    ran = regard("hardware", "compare", "--workload", "xlm", "--out", str(tmp_path / "page"))
    assert "6 workloads" in ran.out
    page = (tmp_path / "page" / "report.html").read_text()
    assert "5 designs, 6 workloads: XLM at 1K to 1M" in page
    assert "1 workload, " in regard("hardware", "compare", "--workload", "t5", "--seq", "512").out
    assert "120 points" in regard("hardware", "sweep", "--seq", "4096").out
