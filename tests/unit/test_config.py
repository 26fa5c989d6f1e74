"""Configuration: a wrong key or value ends in one sentence that names it."""

from importlib import resources
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


def test_the_hierarchies_and_devices_that_are_documented_are_there() -> None:
    assert set(available("hierarchies")) == {
        "dram", "dram-nand", "dram-optane", "dram-pmem", "dram-cxl", "dram-optane-nand",
        "hbm-dram-cxl-nand", "hbm-dram-pmem-optane",
    }  # fmt: skip
    assert set(available("devices")) == {
        "cxl-asic", "cxl-fpga", "dram-ddr4-2933", "dram-ddr5-4800", "hbm2e", "nand-980", "nand-p3700",
        "nand-pm1733", "nand-pm983", "nand-pm9a3", "optane-p4800x", "optane-p5800x", "pmem-100",
        "xlflash-fl6", "znand-sz985",
    }  # fmt: skip


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


@pytest.mark.parametrize("name", available("devices"))
def test_the_core_takes_every_shipped_device(name: str) -> None:
    from tiermem import _core

    _core.check_device(tm.DeviceSpec.load(name).to_json())


def _damaged(tmp_path: Path, old: str, new: str) -> Path:
    text = (Path(str(resources.files("tiermem"))) / "emulator_configs/devices/nand-p3700.toml").read_text()
    assert old in text
    path = tmp_path / "mine.toml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"read.latency_ns" = {', '"read.latency" = {', "read.latency_ns has no source"),
        ("units = 42", "units = -1", "units: input should be greater than or equal to 0 (got -1)"),
        ("latency_ns = 77_900", "latency_ns = 0", "read.latency_ns: input should be greater than 0"),
        (
            "command_ns = 2_174",
            "comand_ns = 2_174",
            'unknown key "read.comand_ns"; did you mean "command_ns"?',
        ),
        ("submit_ns = 500\n", "", 'missing key "host.submit_ns"'),
        (
            'kind = "datasheet", ref = "product',
            'kind = "hearsay", ref = "product',
            "input should be 'datasheet'",
        ),
        (
            "program_ns = 900_000",
            'program_ns = "fast"',
            "background.program_ns: input should be a valid integer",
        ),
        ('role = "fitted"', 'role = "context"', 'a point of role "context" needs a note'),
        ('"units" = {', '"units" = { note = 1, ', 'unknown key "source.units.note"; did you mean "date"?'),
    ],
)
def test_a_wrong_device_file_is_refused_with_the_key_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        tm.DeviceSpec.load(_damaged(tmp_path, old, new))
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("units = 42", "units = 0", "units must be above zero"),
        ("page_bytes = 16_384", "page_bytes = 5000", "page_bytes must be a power of two"),
        (
            "latency_ns = 77_900",
            "latency_ns = 1000",
            "read.latency_ns must exceed host, controller and link time",
        ),
        ("latency_ns = 77_900", "latency_ns = 990_000", "read.latency_ns is a mean that no distribution"),
        (
            "latency_max_ns = 10_000_000",
            "latency_max_ns = 1",
            "read.latency_max_ns must not be below the last",
        ),
        ("[0.99, 96_000]", "[0.99, 9_000]", "read.latency_quantiles_ns must ascend"),
        (
            "program_ns = 900_000",
            "program_ns = 90_000_000",
            "background.program_ns is so long that the units",
        ),
        ("stall_ns = 5_000_000", "stall_ns = 0", "background.stall_ns goes together with stall_every_bytes"),
        ("read_milliwatts = 9_000", "read_milliwatts = 1", "power.read_milliwatts must not be below idle"),
        ("amplification_percent = 300", "amplification_percent = 1_000_000_000_000", "write amplification"),
        ("sequential_drain_bytes_per_s = 1_9", "sequential_drain_bytes_per_s = 1", "write.sequential_drain"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused_with_the_key_named(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    spec = tm.DeviceSpec.load(_damaged(tmp_path, old, new))
    with pytest.raises(ConfigError) as caught:
        tm.open_device(spec, capacity="1MiB")
    assert message in str(caught.value)


def test_a_wrong_fault_is_refused_with_the_key_named() -> None:
    with pytest.raises(ConfigError, match="latent_error_share"):
        tm.FaultConfig(latent_error_share=2.0)
    with pytest.raises(ConfigError, match="storm_duration_ns must not exceed storm_every_ns"):
        tm.FaultConfig(storm_every_ns="1ms", storm_duration_ns="2ms")  # type: ignore[arg-type]
