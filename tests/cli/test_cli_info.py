"""`regard info`: everything that is known of a name."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from torch import Tensor, nn

from regard import registry
from regard.contract import FeatureMixer, Model
from regard.metadata import Example, No, Paper, Reported, Traits, Variant
from regard.registry import register

PAPER = Paper(
    title="A Paper [bold]with brackets[/bold]",
    authors="Somebody et al.",
    venue="CONF",
    year=2031,
    url="https://example.org/paper",
    code="some/where@abc",
    where="equation 3",
)


@pytest.fixture
def known(monkeypatch) -> None:
    monkeypatch.setattr(registry, "_runtime", {})
    monkeypatch.setattr(registry, "_classes", {})

    @register(
        name="scale",
        system="scales",
        paper=PAPER,
        traits=Traits.of_feature_mixer(spatial_dims=(1, 2), exports=No("it never leaves")),
        example=Example(kwargs={"channels": 11, "groups": 1}, batch=3, space=(5, 7)),
    )
    class Scale(FeatureMixer):
        """Scale every channel."""

        def __init__(self, channels: int, *, groups: int = 1) -> None:
            super().__init__(channels)
            self.scale = nn.Conv1d(channels, channels, 1, groups=groups, bias=False)

        def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
            return x

        @classmethod
        def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
            return batch * options.channels**2 * 1000

    @dataclass(frozen=True, kw_only=True)
    class ScaleNetConfig:
        width: int = 13
        in_channels: int = 3

    @register(name="scale_net", system="scales", paper=PAPER)
    class ScaleNet(Model):
        """A net of scales."""

        VARIANTS = {  # noqa: RUF012 - as models declare it
            "scale_net_tiny": Variant(
                config=ScaleNetConfig(), reported=Reported(params=24.37e6, macs=3.86e9, where="Table 2")
            ),
            "scale_net_huge": Variant(config=ScaleNetConfig(width=17), reported=Reported(image_size=5)),
        }

        def __init__(self, config: ScaleNetConfig) -> None:
            super().__init__()
            self.conv = nn.Conv2d(config.in_channels, config.width, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images)

        def load_reference(self, state_dict) -> None:
            raise NotImplementedError


def flat(text: str) -> str:
    return " ".join(text.split())


def test_a_mixer_is_shown_with_reasons_and_counted_cost(regard, known) -> None:
    ran = regard("info", "scale")
    assert (ran.status, ran.err) == (0, "")
    shown = flat(ran.out)
    assert "scale: Scale every channel" in shown
    assert "A Paper [bold]with brackets[/bold]. Somebody et al., CONF 2031 (equation 3)" in shown
    assert "https://example.org/paper" in shown
    assert "code some/where@abc" in shown
    assert "exports no: it never leaves" in shown
    assert "causal no: acts on feature maps, which have no token order" in shown
    assert "compiles yes" in shown
    assert "1-D or 2-D" in shown
    assert "channels: int, groups: int = 1" in shown
    assert "channels=11, groups=1, batch=3, space=(5, 7): 121 parameters, 363,000 MACs" in shown
    assert "parity no adapters" in shown
    assert "claims none" in shown


@pytest.mark.parametrize("name", ["scale_net", "scale_net_huge"])
def test_a_model_is_shown_with_what_the_paper_reports(regard, known, name) -> None:
    shown = flat(regard("info", name).out)
    assert "scale_net: A net of scales" in shown
    assert "arguments width: int = 13" in shown
    counted = "scale_net_tiny: 52 parameters, 0.001957 G MACs at 224 x 224"
    assert f"{counted}; the paper reports 24.37 M parameters, 3.86 G MACs (Table 2)" in shown
    assert "scale_net_huge: 68 parameters, 1.275e-06 G MACs at 5 x 5; the paper reports no figures" in shown


def test_every_image_network_is_counted(regard) -> None:
    shown = flat(regard("info", "davit").out)
    assert "davit_tiny: 28,360,168 parameters, 4.522 G MACs at 224 x 224; the paper reports 28.36 M parameters" in shown
    assert "davit_large: 196,811,752 parameters, 102.8 G MACs at 384 x 384" in shown


def test_a_system_of_several_names_is_shown_wholly(regard, known) -> None:
    out = regard("info", "scales").out
    assert "scale: Scale every channel" in out
    assert "scale_net: A net of scales" in out


def test_an_unknown_name_is_one_line_with_the_nearest(refused, known) -> None:
    assert refused("info", "scalle").startswith("regard info: unknown system 'scalle': did you mean scale")
    assert refused("info") == "regard info: missing NAME"


@pytest.mark.parametrize("name", registry.systems())
def test_every_registered_name_can_be_shown(regard, name, monkeypatch) -> None:
    # counting all variants of a large network takes a minute; the tests of every network count its own
    monkeypatch.setattr("regard.cli.info._counted", lambda cls, variant: "COUNTED")
    ran = regard("info", name)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"{name}: ")
    shown = {name} | {entry.name for entry in registry.systems().values() if entry.system == name}
    assert ran.out.count("COUNTED") == sum(len(getattr(registry.get_class(each), "VARIANTS", {})) for each in shown)


def test_a_system_with_an_entry_of_its_name_is_shown_wholly(regard, monkeypatch) -> None:
    monkeypatch.setattr("regard.cli.info._counted", lambda cls, variant: "COUNTED")
    shown = [line.split(": ")[0] for line in regard("info", "agent").out.splitlines() if ": " in line[:14]]
    assert shown == ["agent", "agent_2d", "agent_cswin", "agent_deit", "agent_pvt", "agent_swin"]
