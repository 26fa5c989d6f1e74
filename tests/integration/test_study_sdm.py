"""`tiermem study sdm` at small size: a digest for every host, ratios that follow from its figures, a page."""

import json
import re
from typing import Any

import pytest
from tiermem.cli.main import main
from tiermem.results import digest

DIGEST = "f0e23384e4be8538"
ENGINE = """
[[tables]]
name = "user"
count = 3
rows = 50_000
columns = 96
side = "user"
ids_per_list = 20
exponent = 1.05

[[tables]]
name = "item"
rows = 2_000
columns = 32
side = "item"
ids_per_list = 2
exponent = 0.9

[dense]
dim = 16
dense_layers = [16]
over_layers = [512, 64]

[device]
spec = "optane-p5800x"
reads_max = 64

[memory]
budget = 0.1

[load]
sla_ms = 4.0
warm_up_queries = 1_500
measured_queries = 400
rate_tolerance = 0.2

[load.queries]
users = 5_000
candidates = 8
"""


USERS = '{name = "user", rows = 9, columns = 4, side = "user", ids_per_list = 1, exponent = 1.0}'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Results and page of a small study."""
    folder = tmp_path_factory.mktemp("sdm")
    (folder / "engine.toml").write_text(ENGINE)
    settings = [
        f'engine="{folder / "engine.toml"}"', 'devices=["nand-pm9a3", "cxl-asic"]', "sweep.budgets=[0.5]",
        "sweep.exponents=[1.3]", "sweep.sla_ms=[0.001]", "sweep.dense_work=[10.0]",
        "sweep.remote_hosts=[0.5]",
        "accelerated.queries_per_s_max=20000.0",
    ]  # fmt: skip
    options = [option for setting in settings for option in ("--set", setting)]
    out = ["--out", str(folder / "page.html"), "--json", str(folder / "study.json"), "--quiet"]
    assert main(["study", "sdm", *options, *out]) == 0
    return json.loads((folder / "study.json").read_text()), (folder / "page.html").read_text()


def test_the_digest_is_the_same_on_every_host(made: tuple[dict[str, Any], str]) -> None:
    results = made[0]["results"]
    assert digest([results["scenarios"], results["sensitivities"]]) == DIGEST


def test_ratios_follow_from_rates_and_watts(made: tuple[dict[str, Any], str]) -> None:
    results = made[0]["results"]
    study, scenarios = results["study"], results["scenarios"]
    assert [(each["name"], each["device"]) for each in scenarios] == [
        (name, device)
        for device in ("nand-pm9a3", "cxl-asic")
        for name in ("small host", "scale-out", "co-location")
    ]
    usable, model = study["shared"]["dram_bytes"] * study["usable_share"], study["model_bytes"]
    for each in scenarios:
        base, other, ratio = each["base"], each["other"], each["power_ratio"]
        if each["name"] == "co-location":
            before = min(usable / model, 1 / study["co_location"]["load_share"])
            load_share = study["co_location"]["load_share"] * base["queries_per_s"] / other["queries_per_s"]
            after = min(usable / (results["engine"]["memory"]["budget"] * model), 1 / load_share)
            expected = other["watts"] / after / (base["watts"] / before)
        else:
            expected = (other["watts"] / other["queries_per_s"]) / (base["watts"] / base["queries_per_s"])
        assert ratio == pytest.approx(expected, rel=1e-3)
        assert 0 < other["device_watts"] < other["watts"]
    dram_watts = study["small"]["dram_bytes"] / 2**30 * study["dram_watts_per_gib"]
    small = scenarios[0]["other"]
    assert small["watts"] == pytest.approx(
        study["small"]["watts"] + dram_watts + small["device_watts"], rel=1e-4
    )
    capped = [each["base"]["queries_per_s"] for each in scenarios if each["name"] == "scale-out"]
    assert capped == [20_000, 20_000]


def test_what_is_varied(made: tuple[dict[str, Any], str]) -> None:
    found = {each["what"]: dict(each["ratios"]) for each in made[0]["results"]["sensitivities"]}
    assert set(found) == {
        "DRAM, share of the rows", "skew of user rows", "dense work, times", "bound, ms",
        "remote hosts for a host",
    }  # fmt: skip
    assert set(found["bound, ms"].values()) == {None}, "no host keeps a microsecond"
    # Reads weigh less beside more dense work.
    for each in made[0]["results"]["scenarios"]:
        if each["name"] == "small host":
            assert found["dense work, times"][each["device"]] < 0.95 * each["power_ratio"]


def test_remote_hosts_look_up_rows_and_do_nothing_else(made: tuple[dict[str, Any], str]) -> None:
    results = made[0]["results"]
    study, engine = results["study"], results["engine"]
    host, users = engine["host"], engine["tables"][0]
    # 20 rows of each of three tables, and the call; lists vary in length about their mean.
    row_ns = host["row_ns"] + (users["columns"] + 4) * host["byte_ns"]
    row_ns += users["columns"] * host["dequantise_ns"]
    query_ns = study["scale_out"]["call_ns"] + users["count"] * users["ids_per_list"] * row_ns
    could = study["remote"]["threads"] / (query_ns * 1e-9)
    keeps_busy = study["accelerated"]["queries_per_s_max"] / could
    # A bound on p99 leaves threads idle at times; dense layers would take as long again.
    assert 1.0 <= results["remote_hosts"] / keeps_busy <= 1.3
    scale_out = results["scenarios"][1]
    watts = {
        name: study[name]["watts"] + study[name]["dram_bytes"] / 2**30 * study["dram_watts_per_gib"]
        for name in ("accelerated", "remote")
    }
    expected = watts["accelerated"] + results["remote_hosts"] * watts["remote"]
    assert scale_out["base"]["watts"] == pytest.approx(expected, rel=1e-4)
    (more,) = (each for each in results["sensitivities"] if each["scenario"] == "scale-out")
    other = scale_out["other"]
    assert dict(more["ratios"])["nand-pm9a3"] == pytest.approx(
        other["watts"] / other["queries_per_s"] * 20_000 / (watts["accelerated"] + 0.5 * watts["remote"]),
        rel=1e-4,
    )


def test_the_page_is_whole(made: tuple[dict[str, Any], str]) -> None:
    page = made[1]
    assert "29%" in page
    for heading in ("Power in three scenarios", "What the answer hangs on", "What is assumed", "<svg"):
        assert heading in page
    assert not re.search(r"(src|href)=\"?https?://", page), "opens without network"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--set", "small.wats=1"], "watts"),
        (["--set", "large.threads=0"], "large.threads"),
        (["--set", "remote.queries_per_s_max=5.0"], "remote.queries_per_s_max has no source"),
        (["--set", 'engine="nothing"'], "nothing"),
        (["--set", 'devices=["nothing"]'], "nothing"),
        (["--engine-set", "memory.budget=1000000"], "memory.budget"),
        (
            ["--engine-set", 'tables=[{name="it",rows=9,columns=4,side="user",ids_per_list=1,exponent=1.0}]'],
            "items",
        ),
    ],
)
def test_wrong_studies_are_refused(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["study", "sdm", *arguments]) == 2
    assert what in capsys.readouterr().err
