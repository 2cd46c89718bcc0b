"""Whole races, in processes of their own: how they end well, badly, and in the middle."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

OUTSIDERS = Path(__file__).with_name("outsiders.py")
TINY = {
    "--lengths": "8,16",
    "--steps": "3",
    "--train-length": "16",
    "--batch": "2",
    "--dim": "12",
    "--heads": "3",
    "--layers": "1",
    "--jobs": "2",
}
PATIENCE_S = 300


def command(*arguments: str, **options: str) -> list[str]:
    chosen = {**TINY, **{f"--{name.replace('_', '-')}": value for name, value in options.items()}}
    flat = [word for pair in chosen.items() for word in pair]
    return [sys.executable, "-m", "regard", "compare", *arguments, *flat]


def run(folder: Path, *arguments: str, limit_bytes: int | None = None, **options: str):
    """Run to the end."""

    def limit() -> None:
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.run(
        command(*arguments, **options),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        preexec_fn=limit,
    )


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def by_name(out: Path) -> dict[str, dict]:
    return {row["name"]: row for row in results(out)["rows"]}


def no_process_is_left(out: Path) -> bool:
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes())
        except OSError:
            # it has just ended
            continue
    return not any(os.fsencode(out) in line and b"regard.compare.child" in line for line in commands)


def interrupt_at(folder: Path, sign: str, *arguments: str, **options: str) -> tuple[int, str]:
    """Run, press Ctrl-C when a line on stderr contains `sign`, and return the status and all of stderr."""
    with subprocess.Popen(command(*arguments, **options), cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if sign in line:
                process.send_signal(signal.SIGINT)
                break
        begin = time.monotonic()
        lines += list(process.stderr)
        status = process.wait(PATIENCE_S)
    assert time.monotonic() - begin < 20
    return status, "".join(lines)


def test_a_race_from_start_to_end(tmp_path, text_file):
    ended = run(tmp_path, "text", data=str(text_file), mechanisms="softmax,lightning,toy_mean", seeds="2",
                out="out", **{"import": str(OUTSIDERS)})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    out = tmp_path / "out"
    race = results(out)
    assert race["finished"] is True
    assert sorted(row["rank"] for row in race["rows"]) == [1, 2, 3]
    for row in race["rows"]:
        assert row["status"] == "ok"
        assert abs(row["budget_deviation"]) <= 0.02
        assert len(row["quality"]["per_seed"]) == 2
        assert row["quality"]["spread"] is not None
        assert [point["factor"] for point in row["extrapolation"]] == [1, 2, 4, 8]
        assert row["cost"]["lengths"] == [8, 16]
        assert row["training"]["tokens_per_s"] > 0
        assert row["macs_per_token"] > 0
        assert row["curves"][1]["steps"][-1] == 3
    rows = by_name(out)
    assert rows["toy_mean"]["decode"] is None
    assert rows["toy_mean"]["decode_why"] == "has no state"
    assert rows["toy_mean"]["map_why"] == "has no map"
    assert len(rows["lightning"]["map"]["heads"]) == 3
    assert rows["softmax"]["decode"]["positions"] == [8, 16]
    assert {"results.csv", "report.html", "overview.png"} <= {path.name for path in out.iterdir()}
    assert not (out / "work").exists()
    assert "Lightning Attention" in (out / "report.html").read_text(encoding="utf-8")
    trained = [ended.stderr.index(f"{name}: waiting to be timed") for name in rows]
    timed = [ended.stderr.index(f"{name}: timing training steps") for name in rows]
    assert max(trained) < min(timed), "nothing trains while something is timed"
    assert "Best quality" in ended.stdout
    assert "out/report.html" in ended.stdout
    assert race["timing"]["total_s"] >= race["timing"]["work_s"] > 0
    assert no_process_is_left(out)

    unchanged = (out / "results.json").read_bytes()
    again = run(tmp_path, "--resume", out="out")
    assert again.returncode == 0, "what is left out is as it was"
    assert "this race is finished" in again.stderr
    other = run(tmp_path, "--resume", out="out", steps="9")
    assert other.returncode == 2
    assert other.stderr == "regard compare: cannot resume out with other settings: steps 3 there, 9 now\n"
    assert (out / "results.json").read_bytes() == unchanged


@pytest.mark.slow
def test_failures_are_rows_and_the_race_goes_on(tmp_path, text_file):
    names = "softmax,toy_nan,toy_raise,toy_killed,toy_abort,toy_greedy,toy_hungry"
    ended = run(tmp_path, "text", data=str(text_file), mechanisms=names, steps="4", jobs="3", lengths="16,64",
                out="out", **{"import": str(OUTSIDERS)})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    rows = by_name(tmp_path / "out")
    assert {name: row["status"] for name, row in rows.items()} == {
        "softmax": "ok",
        "toy_hungry": "ok",
        "toy_greedy": "failed",
        "toy_nan": "failed",
        "toy_raise": "failed",
        "toy_killed": "failed",
        "toy_abort": "failed",
    }
    assert rows["toy_nan"]["why"] == "loss became NaN at step 3"
    assert rows["toy_nan"]["curves"][0]["steps"] == [1, 2]
    assert rows["toy_raise"]["why"].startswith("RuntimeError: the mechanism broke in two lines (outsiders.py:")
    assert rows["toy_killed"]["why"] == "killed (out of memory?)"
    assert rows["toy_abort"]["why"] == "crashed with SIGABRT: corrupted <script> [31m size"
    assert rows["toy_greedy"]["why"].startswith("out of memory: ")
    assert [point["factor"] for point in rows["toy_hungry"]["extrapolation"]] == [1, 2]
    assert rows["toy_hungry"]["notes"] == [
        "quality at 64 tokens not measured: out of memory",
        "quality at 128 tokens not measured: out of memory",
        "cost at 64 tokens not measured: out of memory",
    ]
    assert "failed: toy_killed: killed (out of memory?)" in ended.stdout
    assert results(tmp_path / "out")["finished"] is True
    assert (tmp_path / "out" / "work").exists(), "what may have been chance can be tried again"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "corrupted <script>" not in page


@pytest.mark.slow
def test_when_everything_fails_the_status_says_so(tmp_path, text_file):
    options = {"import": str(OUTSIDERS)}
    ended = run(tmp_path, "text", data=str(text_file), mechanisms="toy_raise", out="out", **options)
    assert ended.returncode == 1
    assert "failed: toy_raise: RuntimeError" in ended.stdout
    again = run(tmp_path, "text", "--resume", data=str(text_file), mechanisms="toy_raise", out="out", **options)
    assert again.returncode == 1
    assert "toy_raise: training" in again.stderr, "it is tried again"


@pytest.mark.slow
def test_a_time_limit_is_kept(tmp_path, text_file):
    ended = run(tmp_path, "text", data=str(text_file), mechanisms="toy_slow", steps="1000", time_limit="0.08",
                out="out", **{"import": str(OUTSIDERS)})  # fmt: skip
    assert ended.returncode == 1
    assert by_name(tmp_path / "out")["toy_slow"]["why"] == "took longer than 0.08 minutes"


@pytest.mark.parametrize(
    "sign", [pytest.param("toy_slow: training", marks=pytest.mark.slow), "toy_slow: timing the mechanism"]
)
def test_ctrl_c_keeps_everything_and_resume_goes_on(tmp_path, text_file, sign):
    given = {
        "data": str(text_file),
        "mechanisms": "toy_slow,softmax",
        "steps": "30",
        "out": "out",
        "import": str(OUTSIDERS),
    }
    status, said = interrupt_at(tmp_path, sign, "text", **given)
    assert status == 130
    assert said.splitlines()[-1] == "interrupted; results so far are in out, --resume continues"
    assert "Traceback" not in said
    out = tmp_path / "out"
    assert no_process_is_left(out)
    race = results(out)
    assert race["finished"] is False
    assert by_name(out)["toy_slow"]["status"] == "unfinished"
    assert (out / "report.html").is_file()
    trained = "timing" in sign
    assert ("quality" in by_name(out)["toy_slow"]) == trained
    if not trained:
        assert list((out / "work").glob("*/checkpoint.pt"))

    ended = run(tmp_path, "text", "--resume", **given)
    assert ended.returncode == 0, ended.stderr
    assert ("toy_slow: training\n" in ended.stderr) == (not trained)
    assert results(out)["created"] == race["created"]
    assert all(row["status"] == "ok" for row in results(out)["rows"])

    if not trained:
        whole = run(tmp_path, "text", **{**given, "out": "whole"})
        assert whole.returncode == 0
        for name, row in by_name(tmp_path / "whole").items():
            assert row["quality"] == by_name(out)[name]["quality"]
            assert row["curves"] == by_name(out)[name]["curves"]


def _wait_for_torch(process_id: int) -> None:
    """Until a process imports torch, which a command does before it begins; where the system cannot tell, a while."""
    maps = Path(f"/proc/{process_id}/maps")
    deadline = time.monotonic() + PATIENCE_S
    while maps.exists() and "libtorch" not in maps.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.05 if maps.exists() else 0.7)


def test_ctrl_c_before_anything_began_leaves_nothing(tmp_path, text_file):
    arguments = command("text", data=str(text_file), out="out")

    def listen() -> None:
        # a shell starts what runs in its background deaf to Ctrl-C, and children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        _wait_for_torch(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert said.splitlines() == ["regard compare: interrupted"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_children_end_when_the_race_is_killed(tmp_path, text_file):
    process = subprocess.Popen(
        command("text", data=str(text_file), mechanisms="toy_slow", steps="1000", out="out",
                **{"import": str(OUTSIDERS)}),
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if "training" in line:
            break
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while not no_process_is_left(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert no_process_is_left(tmp_path / "out")
    assert results(tmp_path / "out")["finished"] is False


@pytest.mark.parametrize(
    "limit_bytes", [2000, *(pytest.param(limit, marks=pytest.mark.slow) for limit in (12_000, 60_000))]
)
def test_a_full_disk_is_one_line_and_what_was_written_is_whole(tmp_path, text_file, limit_bytes):
    """The limit on a file's size fails like a full disk: in the data, in a child, or in the report."""
    ended = run(tmp_path, "text", data=str(text_file), mechanisms="softmax", out="out", limit_bytes=limit_bytes)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("regard compare: cannot write in out: File too large; ")
    assert no_process_is_left(tmp_path / "out")
    for path in (tmp_path / "out").glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    assert not list(tmp_path.glob("out/**/*.tmp"))


@pytest.mark.slow
def test_hostile_names_of_files_and_folders(tmp_path):
    hostile = os.fsdecode(b"<script>alert(1)<\\script>\xff\x1b[31m\n&'\"")
    folder = tmp_path / hostile
    folder.mkdir()
    (folder / hostile).write_text("</script><script>window.hacked=1</script>\u202e\n" * 99, encoding="utf-8")
    out = tmp_path / f"out{hostile}"
    ended = subprocess.run(
        command("text", data=str(folder), mechanisms="softmax", out=str(out)),
        cwd=tmp_path, capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert b"\x1b" not in ended.stdout + ended.stderr
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "<script>window.hacked" not in page
    assert results(out)["finished"] is True


@pytest.mark.slow
def test_images_with_feature_mixers_and_causal_ones(tmp_path, image_folder):
    ended = run(tmp_path, "image", data=str(image_folder), mechanisms="softmax,lightning,toy_gate", image_size="16",
                dim="48", out="out", **{"import": str(OUTSIDERS)})  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    race = results(tmp_path / "out")
    assert race["data"]["classes"] == ["cats", "dogs", "newts"]
    rows = by_name(tmp_path / "out")
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert rows["toy_gate"]["kind"] == "feature"
    assert len({row["budget"] for row in rows.values()}) == 1
    for row in rows.values():
        assert row["quality"]["metric"] == "accuracy"
        assert 0 <= row["quality"]["mean"] <= 1
        assert row["decode_why"] == "images are not decoded"
        assert row["extrapolation"] == []
        assert row["macs_per_image"] > 0
    assert len(rows["softmax"]["map"]["labels"]) == 64
    assert "accuracy" in ended.stdout


@pytest.mark.slow
def test_a_child_by_itself_ends_cleanly_in_every_way(tmp_path, text_file):
    """Without a race: it says what it does, measures when told, leaves when its input ends, and exits with 0."""
    ended = run(tmp_path, "text", data=str(text_file), mechanisms="toy_raise", out="out", **{"import": str(OUTSIDERS)})
    assert ended.returncode == 1
    job = tmp_path / "out" / "work" / "00" / "job.json"
    job.write_text(job.read_text(encoding="utf-8").replace('"toy_raise"', '"linear"'), encoding="utf-8")
    (job.parent / "part.json").unlink()
    child = [sys.executable, "-m", "regard.compare.child", str(job)]

    left = subprocess.run(child, input=b"", capture_output=True, timeout=PATIENCE_S)
    assert left.returncode == 0, left.stderr
    assert json.loads(left.stdout.splitlines()[-1]) == {"event": "stopped"}

    with subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        events = []
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "ready":
                process.stdin.write(b"measure\n")
                process.stdin.flush()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == b""
    stages = [event["stage"] for event in events if event["event"] == "stage"]
    assert stages == ["size", "train", "evaluate", "map", "speed", "cost", "decode"]
    assert events[-1] == {"event": "done"}
