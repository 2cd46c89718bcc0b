"""Names are taken once, unknown ones are answered with the nearest, and outsiders can register at run time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import regard
from regard import registry
from regard.contract import FeatureMixer, Model
from regard.metadata import Example, Paper, Traits, Variant
from regard.registry import UnknownSystemError, create, entry_of, get_class, register, systems

PAPER = Paper(title="T", authors="A", venue="V", year=2031, url="https://example.org")


@pytest.fixture(autouse=True)
def _registry_of_its_own(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_runtime", {})
    monkeypatch.setattr(registry, "_classes", {})


def register_scale(name: str = "outsiders_scale", **changes):
    @register(
        name=name,
        system="outsiders",
        paper=PAPER,
        traits=Traits.of_feature_mixer(spatial_dims=(2,)),
        example=Example(kwargs={"channels": 5}, space=(7, 11)),
        **changes,
    )
    class Scale(FeatureMixer):
        """Scale every channel.

        More about it.
        """

        def __init__(self, channels: int, *, factor: float = 1.0) -> None:
            super().__init__(channels)
            if factor <= 0:
                raise ValueError(f"factor must be positive, got {factor}")
            self.factor = factor

        def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
            return self.factor * x

        @classmethod
        def count_macs(cls, options, *, batch, space) -> int:
            return 0

    return Scale


def register_net():
    @dataclass(frozen=True, kw_only=True)
    class NetConfig:
        width: int = 3
        depth: int = 2

    @register(name="outsiders_net", system="outsiders", paper=PAPER)
    class Net(Model):
        """A net."""

        VARIANTS = {  # noqa: RUF012 - as models declare it
            "outsiders_net_small": Variant(config=NetConfig(width=5)),
            "outsiders_net_large": Variant(config=NetConfig(width=7)),
        }

        def __init__(self, config: NetConfig) -> None:
            super().__init__()
            self.config = config
            self.layer = nn.Linear(config.width, config.depth)

        def load_reference(self, state_dict) -> None:
            raise NotImplementedError

    return Net


def test_outsiders_register_at_run_time_and_appear_everywhere() -> None:
    cls = register_scale()
    assert systems()["outsiders_scale"].summary == "Scale every channel"
    assert systems("feature")["outsiders_scale"].system == "outsiders"
    assert "outsiders_scale" not in systems("sequence")
    assert get_class("outsiders_scale") is cls
    mixer = create("outsiders_scale", channels=5, factor=3.0)
    x = torch.randn(2, 5, 7, 11)
    assert torch.equal(mixer(x), 3 * x)
    assert cls.registered_name == "outsiders_scale"
    assert cls.paper is PAPER


def test_names_are_in_alphabetical_order() -> None:
    register_scale("zz_scale")
    register_scale_again = register_net()
    assert register_scale_again.system == "outsiders"
    assert list(systems()) == sorted(systems())


def test_a_name_is_taken_once() -> None:
    register_scale("taken")

    with pytest.raises(ValueError, match="the name 'taken' is registered twice"):

        @register(name="taken", system="other", paper=PAPER)
        class Other:
            """Another class."""


def test_a_name_of_the_package_is_taken() -> None:
    with pytest.raises(ValueError, match=r"'softmax' is registered twice: by regard\.mixers\.sequence\.softmax"):
        register_scale("softmax")
    assert "softmax" not in registry._runtime


def test_a_variants_name_is_taken_too() -> None:
    register_net()
    with pytest.raises(ValueError, match="'outsiders_net_small' is registered twice"):
        register_scale("outsiders_net_small")


def test_defining_a_class_again_is_not_a_second_one() -> None:
    register_scale()
    again = register_scale()
    assert get_class("outsiders_scale") is again


def test_a_class_needs_a_docstring() -> None:
    with pytest.raises(ValueError, match="needs a docstring"):

        @register(name="silent", system="outsiders", paper=PAPER)
        class Silent:
            pass

    assert "silent" not in systems()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownSystemError) as refused:
        create("sofmax", dim=24)
    assert str(refused.value) == "unknown system 'sofmax': did you mean softmax or maxvit?"
    with pytest.raises(UnknownSystemError, match="`regard list` shows all names"):
        entry_of("qqqqqqqqqqqq")
    assert issubclass(regard.UnknownSystemError, LookupError)


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    register_scale()
    register_net()
    with pytest.raises(TypeError, match=r"outsiders_scale has no option 'factr': did you mean factor\?"):
        create("outsiders_scale", channels=5, factr=2.0)
    with pytest.raises(TypeError, match=r"has no option 'zzz': it takes channels, factor"):
        create("outsiders_scale", channels=5, zzz=2.0)
    with pytest.raises(TypeError, match=r"outsiders_net_small has no option 'widht': did you mean width\?"):
        create("outsiders_net_small", widht=2)


def test_a_refused_value_is_a_value_error() -> None:
    register_scale()
    with pytest.raises(ValueError, match=r"factor must be positive, got -1\.0"):
        create("outsiders_scale", channels=5, factor=-1.0)


def test_a_variant_is_created_with_its_config_and_changes_to_it() -> None:
    register_net()
    assert create("outsiders_net_large").config.width == 7
    changed = create("outsiders_net_large", depth=11).config
    assert (changed.width, changed.depth) == (7, 11)
    assert entry_of("outsiders_net_large").name == "outsiders_net"
    # the class's own name is its first variant
    assert create("outsiders_net").config.width == 5


def test_every_entry_of_the_index_names_its_class() -> None:
    for name, entry in systems().items():
        cls = get_class(name)
        assert (cls.__module__, cls.__qualname__) == (entry.module, entry.qualname)
        assert cls.registered_name == name
        assert cls.system == entry.system
