"""`regard list`: every entry is one line, and options keep only what fits."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest

from regard import registry
from regard.cli import list as list_command
from regard.metadata import SEQUENCE_CAPABILITIES, SHARED_CAPABILITIES, Entry, No, Paper, Traits

PAPER = Paper(title="T", authors="A et al.", venue="V", year=2031, url="https://example.org")
NO = No("for a reason [red]of its own[/red]")

ENTRIES = {
    "alpha": Traits(time="n", memory="1", cross=NO),
    "beta": Traits(causal=NO, decodes=NO, step_exact=NO),
    "gamma_with_quite_a_long_name": Traits.of_feature_mixer(spatial_dims=(2,)),
    "delta": None,
}
KINDS = {"gamma_with_quite_a_long_name": "feature", "delta": "model"}


@pytest.fixture(autouse=True)
def _known(monkeypatch) -> None:
    entries = {
        name: Entry(
            name=name,
            system="system_of_" + name[:5],
            kind=KINDS.get(name, "sequence"),
            module="m",
            qualname="C",
            summary=f"What {name} is",
            paper=replace(PAPER, title=f"On {name}"),
            traits=traits,
            variants=("delta_tiny",) if name == "delta" else (),
        )
        for name, traits in ENTRIES.items()
    }
    monkeypatch.setattr(registry, "_runtime", {})
    monkeypatch.setattr(registry, "_index", lambda: entries)


def names(regard, *arguments: str) -> list[str]:
    return [entry["name"] for entry in json.loads(regard("list", "--json", *arguments).out)]


def test_one_line_per_entry_at_80_columns(regard, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = regard("list")
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    table = lines[: lines.index("")]
    assert [line.split()[0] for line in table] == ["name", "alpha", "beta", "delta", "gamma_with_quite_a_long_name"]
    # the system's name gives way to the entry's
    assert table[1].split() == ["alpha", "sy…", "sequence", "n", "1", "cb.msad=nM1EC", "2031"]
    monkeypatch.setenv("COLUMNS", "120")
    assert regard("list").out.splitlines()[1].split()[1] == "system_of_alpha"
    assert "c causal" in ran.out


def test_json_has_everything_and_the_reasons(regard) -> None:
    entries = {entry["name"]: entry for entry in json.loads(regard("list", "--json").out)}
    assert set(entries) == set(ENTRIES)
    assert entries["alpha"]["traits"]["cross"] == {"value": False, "reason": NO.reason}
    assert entries["alpha"]["traits"]["causal"] is True
    assert entries["alpha"]["paper"]["title"] == "On alpha"
    assert entries["delta"]["traits"] is None
    assert entries["delta"]["variants"] == ["delta_tiny"]


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("--causal true", ["alpha"]),
        ("--causal false", ["beta", "gamma_with_quite_a_long_name"]),
        ("--causal false --bidirectional true", ["beta"]),
        ("--cross true", ["beta"]),
        ("--exports true", ["alpha", "beta", "gamma_with_quite_a_long_name"]),
        ("--kind feature", ["gamma_with_quite_a_long_name"]),
        ("--kind model", ["delta"]),
        ("--kind sequence --decodes true", ["alpha"]),
        ("--has-map false", ["gamma_with_quite_a_long_name"]),
    ],
)
def test_options_keep_what_fits(regard, line, left) -> None:
    assert names(regard, *line.split()) == left


def test_every_capability_is_an_option() -> None:
    parameters = set(inspect.signature(list_command.run).parameters)
    assert parameters - {"json", "kind"} == set(SEQUENCE_CAPABILITIES + SHARED_CAPABILITIES)
    marks = list(list_command.MARKS.values())
    assert len(set(marks)) == len(marks)
    assert all(len(mark) == 1 for mark in marks)


@pytest.mark.parametrize("capability", SEQUENCE_CAPABILITIES + SHARED_CAPABILITIES)
def test_each_option_asks_for_its_own_capability(regard, monkeypatch, capability) -> None:
    only = replace(Traits(), **{capability: NO})
    entries = {
        name: Entry(
            name=name, system="s", kind="sequence", module="m", qualname="C", summary="S", paper=PAPER, traits=traits
        )
        for name, traits in {"able": Traits(), "unable": only}.items()
    }
    monkeypatch.setattr(registry, "_index", lambda: entries)
    option = "--" + capability.replace("_", "-")
    assert names(regard, option, "true") == ["able"]
    assert names(regard, option, "false") == ["unable"]


def test_nothing_that_fits_is_said(regard) -> None:
    ran = regard("list", "--kind", "feature", "--causal", "true")
    assert (ran.status, ran.out) == (0, "no mechanism fits\n")


def test_wrong_values_are_one_line(refused) -> None:
    assert refused("list", "--kind", "novel") == "regard list: --kind must be sequence or feature or model, got novel"
