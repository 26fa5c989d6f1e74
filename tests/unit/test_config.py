"""Configuration: a wrong key or value ends in one sentence that names it."""

from pathlib import Path

import pytest
import tiermem as tm
from tiermem.config import Experiment, available, merge_overrides
from tiermem.errors import ConfigError


@pytest.mark.parametrize("name", available("hierarchies"))
def test_shipped_hierarchies_load(name: str) -> None:
    hierarchy = tm.Hierarchy.load(name)
    assert [tier.name for tier in hierarchy.tiers] == name.split("-")


@pytest.mark.parametrize("name", available("experiments"))
def test_shipped_experiments_load_and_survive_a_round_trip(name: str) -> None:
    experiment = Experiment.load(name)
    assert Experiment.from_mapping(experiment.model_dump()) == experiment


def test_hierarchies_are_the_three_that_are_documented() -> None:
    assert {"dram", "dram-nand", "dram-optane-nand"} <= set(available("hierarchies"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", 'demo-tiering.toml: unknown key "train.epoch"; did you mean "epochs"?'),
        ("model.dimm=3", 'unknown key "model.dimm"; did you mean "dim"?'),
        ("data.tabels=3", 'unknown key "data.tabels"; did you mean "tables"?'),
        ("train.optimizer.epz=1", 'unknown key "train.optimizer.epz"; did you mean "eps"?'),
        ("train.optimizer.name=adamm", "train.optimizer"),
        ("train.epochs=0", "train.epochs: input should be greater than 0 (got 0)"),
        ("train.epochs=1.5", "train.epochs: input should be a valid integer"),
        ("hierarchy=dram-nan", 'did you mean "dram-nand"?'),
        ("budgets.dram=1.5", "a share of all row bytes lies between 0 and 1"),
        ("budgets.dram=3parsec", "'3parsec' is not a size in bytes"),
        ("compute.bytes_per_s=3parsec/s", "compute.bytes_per_s: '3parsec/s' is not a bandwidth"),
        ("compute.overhead_ns_per_step=1.5kg", "is not a duration in nanoseconds"),
        ("train", "is not an override; write path.to.key=value"),
        ("seed.x=1", 'goes through "seed", which is not a table'),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Experiment.load("demo-tiering", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_budget_for_a_tier_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r'no tier "hbm".*tiers: dram, nand'):
        tm.Hierarchy.load("dram-nand", budgets={"hbm": 0.1})


def test_a_home_tier_has_no_cache_and_the_others_need_one() -> None:
    hierarchy = tm.Hierarchy.load("dram-nand")
    dram, nand = hierarchy.tiers
    with pytest.raises(ConfigError, match='"dram" needs a cache budget'):
        tm.Hierarchy(tiers=(dram.replace(cache=None), nand))
    with pytest.raises(ConfigError, match="has no cache budget"):
        tm.Hierarchy(tiers=(dram, nand.replace(cache=0.1)))
    with pytest.raises(ConfigError, match="must be byte-addressable"):
        tm.Hierarchy(tiers=(nand,))


def test_a_file_engine_needs_a_directory() -> None:
    with pytest.raises(ConfigError, match="needs a directory"):
        tm.BackendConfig(engine="io_uring")


def test_files_that_are_missing_or_not_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        Experiment.load(tmp_path / "nothing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("a = [")
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        Experiment.load(broken)


def test_values_of_an_override_are_toml_or_text() -> None:
    merged = merge_overrides({}, ["a.b=[1, 2]", "a.c=1.5us", "d=true", "e='x'"])
    assert merged == {"a": {"b": [1, 2], "c": "1.5us"}, "d": True, "e": "x"}


def test_python_and_core_agree_on_what_a_device_is() -> None:
    from tiermem import _core

    spec = tm.DeviceSpec.load("nand-p3700")
    _core.check_device(spec.to_json())
    wrong = spec.replace(read=spec.read.replace(latency_ns=1000).model_dump())
    with pytest.raises(ConfigError, match=r"read\.latency_ns must exceed host, controller and link time"):
        _core.check_device(wrong.to_json())
    contradiction = spec.replace(read=spec.read.replace(latency_ns=1_000_000).model_dump())
    with pytest.raises(ConfigError, match="a mean that no distribution with these quantiles can have"):
        _core.check_device(contradiction.to_json())
