from __future__ import annotations

from regard.tasks.logs import Logs, read_evaluations, read_steps


def write(folder, *, upto, steps):
    with Logs(folder, upto=upto) as logs:
        for step in steps:
            logs.step(step, step / 3, 0.1)
            if step % 2 == 0:
                logs.evaluation(step, {"loss": 1 / step, "accuracy": 0.5})


def test_numbers_come_back_exactly(tmp_path):
    write(tmp_path, upto=0, steps=range(1, 6))
    read = read_steps(tmp_path)
    assert read["step"] == [1, 2, 3, 4, 5]
    assert read["loss"] == [step / 3 for step in range(1, 6)]
    assert read_evaluations(tmp_path) == [(2, {"loss": 1 / 2, "accuracy": 0.5}), (4, {"loss": 1 / 4, "accuracy": 0.5})]


def test_lines_behind_the_checkpoint_are_cut_and_written_again(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    write(whole, upto=0, steps=range(1, 8))
    write(tmp_path, upto=0, steps=range(1, 6))
    write(tmp_path, upto=3, steps=range(4, 8))
    for name in ("log.csv", "evaluations.csv"):
        assert (tmp_path / name).read_text() == (whole / name).read_text()


def test_an_unfinished_last_line_is_dropped(tmp_path):
    write(tmp_path, upto=0, steps=range(1, 4))
    with (tmp_path / "log.csv").open("a") as stream:
        # the beginning of the line of step 31
        stream.write("3")
    write(tmp_path, upto=3, steps=[4])
    assert read_steps(tmp_path)["step"] == [1, 2, 3, 4]


def test_a_new_run_starts_with_empty_logs(tmp_path):
    write(tmp_path, upto=0, steps=[1, 2])
    write(tmp_path, upto=0, steps=[1])
    assert read_steps(tmp_path)["step"] == [1]
    assert read_evaluations(tmp_path) == []
