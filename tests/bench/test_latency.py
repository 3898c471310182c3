"""`ambidex bench latency` on a tiny checkpoint, next to transformers where it is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from ambidex.bench.contenders import ContenderFailed
from ambidex.bench.latency import Case, Plan, measure
from ambidex.bench.shapes import SHAPES, Shape, write_checkpoint
from ambidex.cli import run
from ambidex.commands.latency import shown
from ambidex.commands.plot import bars
from safetensors import safe_open

SMALL = (
    "--input-len=24",
    "--decode-input-len=8",
    "--output-len=5",
    "--num-iters=2",
    "--mixed-batch=4",
    "--batch-size",
    "1",
    "3",
)
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the command, next to transformers where it is installed."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    compare = ["--compare", "transformers"] if HAS_TRANSFORMERS else []
    assert run(["bench", "latency", "--shape", "tiny", *SMALL, *compare, "--output-json", str(path)]) == 0
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return read


def test_it_measures_everybody(result: dict[str, Any]) -> None:
    names = list(result["contenders"])
    assert names == ["ambidex", "transformers"][: 1 + HAS_TRANSFORMERS]
    rows = {(row["kind"], row["batch_size"], row["contender"]): row for row in result["measurements"]}
    cases = (("prefill", 1), ("decode", 1), ("decode", 3), ("mixed", 4))
    assert set(rows) == {(*case, name) for case in cases for name in names}
    for row in rows.values():
        rates = row["tokens_per_s"]
        assert 0 < rates["min"] <= rates["median"] <= rates["max"]
        assert len(rates["all"]) == 2
    assert all(set(result["ratios"].get(case, {})) == set(names[1:]) for case in ("decode, batch 3", "mixed, batch 4"))
    assert all(share > 0.5 for share in result["same_first_tokens"].values())


def test_it_has_vllms_keys(result: dict[str, Any]) -> None:
    assert len(result["latencies"]) == 2
    assert result["avg_latency"] == pytest.approx(sum(result["latencies"]) / 2)
    assert set(result["percentiles"]) == {"10", "25", "50", "75", "90", "99"}


def test_it_says_what_ran(result: dict[str, Any]) -> None:
    ours = result["contenders"]["ambidex"]
    assert ours["kv_cache_tokens"] == 4 * 128
    assert ours["fingerprint"].startswith("fp_")
    assert result["machine"]["packages"]["torch"]
    assert result["manifest"]["sites"]
    assert result["command"].startswith("ambidex")
    assert len(result["limits"]["all"]["reads"]) == 3 * 4
    assert len(result["limits"]["all"]["products"]) == 3
    decode = next(row for row in result["measurements"] if row["case"] == "decode, batch 1")
    assert ours["weight_bytes"] < decode["bytes_per_step"] < 1.5 * ours["weight_bytes"]
    seconds = 1 / decode["tokens_per_s"]["median"]
    by_reading = decode["bytes_per_step"] / result["limits"]["read_gb_per_s"] / 1e9
    assert decode["share_of_bandwidth"] == pytest.approx(by_reading / seconds)
    computing = decode["operations_per_step"] / result["limits"]["matrix_gflops_per_s"] / 1e9
    assert decode["share_of_matrix_rate"] == pytest.approx(computing / seconds)
    for name, memory in result["memory"].items():
        assert memory["peak_bytes"] > 0
        assert memory["weight_bytes"] == pytest.approx(ours["weight_bytes"], rel=0.02), name


def test_the_table_fits_a_terminal(result: dict[str, Any]) -> None:
    text = shown(result, Plan(**{**result["plan"], "batch_sizes": (1, 3), "compare": ()}))
    assert "decode, batch 3" in text
    assert "× (weights + KV cache)" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_failing_contender_is_the_users_error() -> None:
    with pytest.raises(ContenderFailed, match=r"ambidex: .*no/where/at/all") as caught:
        measure(Plan(model="no/where/at/all"))
    assert caught.value.exit_code == 3


def test_a_plot_is_drawn(result: dict[str, Any], tmp_path: Path) -> None:
    rates = {"ambidex": [row["tokens_per_s"] for row in result["measurements"] if row["contender"] == "ambidex"]}
    bars(tmp_path / "plot.svg", ["a", "b", "c", "d"], rates, "tokens/s")
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").count("tokens/s") >= 1


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--compare", "nobody"], 2, "nobody is not known: there are llama.cpp, openvino, transformers"),
        (["--compare", "openvino=/nowhere"], 2, "/nowhere is not an interpreter that can be run"),
        (["--plot", "a.gif"], 2, "a.gif ends with none of .svg, .png, .pdf"),
        (["--model", "here"], 2, "a model and a shape are given"),
    ],
)
def test_what_cannot_be_measured_is_said_first(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "latency", "--shape", "tiny", *arguments]) == code
    assert line in capsys.readouterr().err


def test_a_plot_without_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(["bench", "latency", "--shape", "tiny", "--plot", "a.svg"]) == 12
    assert capsys.readouterr().err.startswith("error: matplotlib is not installed; pip install 'ambidex[plot]'")


def test_the_kv_cache_is_what_the_run_needs() -> None:
    plan = Plan(input_len=512, decode_input_len=128, output_len=128, batch_sizes=(1, 8))
    options = plan.engine_options()
    assert options["prefix_caching"] is False
    assert options["kv_cache_tokens"] == 8 * 256
    assert options["max_model_len"] == 513
    assert options["roofline_steps"] == {
        "prefill, 512 tokens": [(0, 512)],
        "decode, batch 1": [(192, 1)],
        "decode, batch 8": [(192, 1)] * 8,
    }


def test_rates() -> None:
    answer = {"total_s": 9.0, "first_s": 2.0, "step_s": [0.5, 1.5]}
    assert Case("prefill", 1, 100, 1).tokens_per_s(answer) == 50
    assert Case("decode", 4, 8, 3).tokens_per_s(answer) == 4


@pytest.mark.parametrize(("name", "num_millions"), [("0.5b", 386.5), ("1b", 1235.8)])
def test_the_shapes_have_their_size(name: str, num_millions: float) -> None:
    assert sum(map(count, SHAPES[name].shards())) / 1e6 == pytest.approx(num_millions, abs=0.1)


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(size[0] * (size[1] if len(size) == 2 else 1) for size in shapes.values())


def test_a_written_checkpoint_is_what_its_index_says(tmp_path: Path) -> None:
    shape = Shape(32, 7, 2, 1, 16, 48, 300)
    write_checkpoint(shape, tmp_path)
    homes = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    wanted = {name: size for shapes in shape.shards() for name, size in shapes.items()}
    assert set(homes) == set(wanted)
    for name, file in homes.items():
        with safe_open(tmp_path / file, framework="pt") as opened:
            assert tuple(opened.get_slice(name).get_shape()) == wanted[name]
