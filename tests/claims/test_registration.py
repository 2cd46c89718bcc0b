"""Claims are registered once, with a criterion and a figure; those out of reach carry a reason."""

from __future__ import annotations

import pytest
import torch

from regard import claims
from regard.claims import Measured, claim, claims_of, known_systems, out_of_reach


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(claims, "_claims", {})


def texts(name: str) -> dict[str, str]:
    return {"name": name, "statement": f"{name} is so", "criterion": f"{name} >= 2"}


def test_claims_keep_the_order_of_their_file() -> None:
    @claim("toy", grade="ratio", figure="3x", where="Table 1", **texts("second"))
    def second() -> Measured:
        return Measured(value="2.5x", held=True)

    out_of_reach("toy", reason="needs 64 GPUs", **texts("first"))
    registered = claims_of("toy")
    assert [each.claim.name for each in registered] == ["second", "first"]
    assert [each.claim.grade for each in registered] == ["ratio", "out of reach"]
    assert registered[0].measure is second
    assert registered[0].claim.figure == "3x"
    assert registered[1].measure is None
    assert registered[1].claim.reason == "needs 64 GPUs"
    assert "toy" in known_systems()


def test_a_name_is_taken_once_per_system() -> None:
    @claim("toy", grade="exact", **texts("same"))
    def one() -> Measured:
        return Measured(value="1", held=True)

    claim("other", grade="exact", **texts("same"))(one)
    claim("toy", grade="exact", **texts("same"))(one)
    with pytest.raises(ValueError, match="'toy' has two claims named 'same'"):
        out_of_reach("toy", reason="far", **texts("same"))
    assert len(claims_of("toy")) == 1


def test_grades_are_checked() -> None:
    with pytest.raises(ValueError, match="use out_of_reach"):
        claim("toy", grade="out of reach", **texts("far"))
    with pytest.raises(ValueError, match="grade must be one of"):
        claim("toy", grade="roughly", **texts("far"))
    with pytest.raises(ValueError, match="without a reason"):
        out_of_reach("toy", reason="", **texts("far"))


def test_a_system_without_claims_is_refused() -> None:
    with pytest.raises(LookupError, match="'nosuchsystem' has no claims"):
        claims_of("nosuchsystem")


def test_the_runner_is_no_system() -> None:
    assert "runner" not in known_systems()


def test_a_measurement_has_a_figure_and_a_verdict() -> None:
    assert Measured(value="3", held=torch.tensor(2.0) > 1).held is True
    assert Measured(value="3", held=False).held is False
    with pytest.raises(ValueError, match="empty"):
        Measured(value=" ", held=True)
    with pytest.raises(TypeError, match=r"must be a text, got 3\.5"):
        Measured(value=3.5, held=True)
