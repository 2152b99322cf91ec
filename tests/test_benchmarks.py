import json
import os
import sys
import tarfile
import time

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import ceilings, gpu_compile, kernels, loop
from benchmarks.accelerator import stage
from benchmarks.side_by_side import alternate, repeated, summary
from benchmarks.training_step import step_flops
from unet_jax.network import UNet


def test_contestants_take_turns_and_the_first_call_is_not_counted():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_the_seconds_of_a_call_that_does_its_work_several_times_are_those_of_once(monkeypatch):
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    seconds = alternate({"a": repeated(lambda: calls.append("a"), 10)}, rounds=2, repeats=10)
    assert len(calls) == 30 and seconds == {"a": [3, 3]}


def test_summary_says_how_many_times_as_long_ours_takes():
    seconds = {"ours": [1.0, 9.0, 2.0], "other": [4.0, 4.0, 5.0]}
    expected = {"seconds": 4.0, "fastest": 4.0, "slowest": 5.0, "ours_over_it": 0.5}
    assert summary(seconds, "other", ours="ours") == expected


def test_operations_of_a_step_by_hand():
    """Depth 1: two convolutions and the classes, on a tile of 7x7."""
    forward = 2 * (9 * 5 * 5 * 1 * 4 + 9 * 3 * 3 * 4 * 4 + 3 * 3 * 4 * 2)
    assert step_flops(UNet(width=4, depth=1), 7) == 3 * forward
    assert step_flops(UNet(), 572) == pytest.approx(904e9, rel=0.01)


def test_the_command_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    arguments = ["benchmarks", "layers", "weight_map", "--quick", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert "| layer | direction | formulation | seconds |" in capsys.readouterr().out
    result = json.loads((tmp_path / "weight_map.json").read_text())
    assert result["versions"]["jax"] and result["versions"]["device"]
    assert [row["cells"] for row in result["rows"]] == [9, 100]
    assert result["rows"][1]["largest_difference"] < 1e-5


def test_a_benchmark_that_needs_another_checkout_says_so(monkeypatch, capsys):
    for names, told in ((["versions"], "needs --other"), (["speed"], "no benchmark speed")):
        monkeypatch.setattr("sys.argv", ["benchmarks", *names])
        with pytest.raises(SystemExit):
            command.main()
        assert told in capsys.readouterr().err


def test_kernels_and_bytes_of_compiled_code_by_hand():
    code = """HloModule m

%fused (p: f32[2,3]) -> (f32[2,3], bf16[4]) {
  %p = f32[2,3]{1,0} parameter(0)
  %inner = f32[2,3]{1,0} negate(%p)
}

%graph (q: f32[2,3]) -> f32[2,3] {
  %q = f32[2,3]{1,0} parameter(0)
  ROOT %n = f32[2,3]{1,0} fusion(%q), kind=kLoop, calls=%fused
}

ENTRY %main (x: f32[2,3], k: bf16[3,3,1,4]) -> f32[2,3] {
  %x = f32[2,3]{1,0} parameter(0)
  %k = bf16[3,3,1,4]{3,2,1,0} parameter(1)
  %both = (f32[2,3]{1,0}, u8[99]{0}) custom-call(%x, %k), dim_labels=b01f_o01i->b01f, c="conv"
  %y = f32[2,3]{1,0} get-tuple-element(%both), index=0
  %big = f32[600,600]{1,0} copy(%y)
  ROOT %z = f32[2,3]{1,0} call(%y), to_apply=%graph
}
"""
    convolution, copy, fusion = 24 + 24 + 72, 24 + 4 * 600 * 600, 24 + 24
    assert gpu_compile.counted(code) == {
        "kernels": 3,
        "gigabytes": pytest.approx((convolution + copy + fusion) / 1e9, rel=1e-2),
        "copies": 1,
        "callbacks_and_transfers": 0,
        "relu_in_convolution": 0,
        "layouts": {"b01f_o01i->b01f": 1},
    }


@pytest.mark.slow
def test_what_the_host_costs_and_where_time_goes():
    loops = ["train", "train, ten at once", "train and log", "train, ten at once and log"]
    expected = ["bare step", *loops, *(f"host alone, {name}" for name in loops)]
    assert [row["loop"] for row in loop.rows(quick=True)] == expected
    rows = list(kernels.rows(quick=True))
    assert {row["of"] for row in rows} == {"step", "kind", "kernel", "train", "predict_tiled"}
    (step,) = (row for row in rows if row["of"] == "step")
    assert 0 < step["busy"] and 0 < step["milliseconds"]
    assert any("contracting2_conv1" in row["name"] for row in rows if row["of"] == "kernel")


def test_ceilings_of_this_machine():
    device, *rows = ceilings.rows(quick=True)
    assert device["cores"] == os.cpu_count() and "jax" not in device["lacks"]
    errors = {row["what"]: row["product_error"] for row in rows if "product_error" in row}
    assert errors["float32"] == 0 and 1e-4 < errors["bfloat16"] < 1e-2


def test_a_command_of_a_stage_ends_in_time_and_its_output_is_kept(tmp_path):
    log = tmp_path / "log"

    def run(code, seconds):
        words = ["WORD=done", sys.executable, "-c", code]
        return stage.run(words, seconds, log, tmp_path, dict(os.environ))

    assert run("import os; print(os.environ['WORD'])", 60).splitlines()[1:] == ["done"]
    assert log.read_text() == "done\n"
    slow = "import time; print('begun', flush=True); time.sleep(60)"
    told = run(slow, 10)
    assert "status -15" in told and told.endswith("begun")


def test_a_stage_keeps_its_results_after_each_command(tmp_path, monkeypatch, capsys):
    write = "python -c open('RUNS/{}.json','w')"
    monkeypatch.setitem(stage.STAGES, "loop", [(60, write.format("a")), (60, write.format("b"))])
    monkeypatch.setattr("sys.argv", ["stage.py", "loop", f"--out={tmp_path}"])
    # Not when it was imported, which may be longer ago than a stage may take.
    monkeypatch.setattr(stage, "_BEGAN", time.monotonic())
    stage.main()
    with tarfile.open(tmp_path / "loop.tar.gz") as archive:
        assert sorted(archive.getnames()) == ["0.log", "1.log", "a.json", "b.json"]
    assert (tmp_path / "loop.log").read_text() == capsys.readouterr().out


def test_stages_run_what_there_is():
    """Every benchmark, program, configuration and test that a stage names."""
    checkout = stage._HERE.parents[1]
    lines = [line for commands in stage.STAGES.values() for _, line in commands]
    assert all(sum(seconds for seconds, _ in commands) < 660 for commands in stage.STAGES.values())
    for word in {word.removeprefix("--config=") for line in lines for word in line.split()}:
        if word.endswith(".py"):
            assert (checkout / word).is_file(), word
    named = {line.split("benchmarks ")[1].split()[0] for line in lines if "-m benchmarks" in line}
    assert named <= {*command.NAMES, *command.ON_REQUEST}


def test_pytorch_has_the_same_network():
    torch = pytest.importorskip("torch", reason="needs PyTorch (pip install .[torch])")
    from benchmarks.torch_unet import UNet, make_train_step

    assert sum(p.numel() for p in UNet(64).parameters()) == 31_030_658
    network = UNet(2)
    step = make_train_step(network, torch.optim.SGD(network.parameters(), 0.01))
    images = torch.randn(1, 1, 188, 188, generator=torch.Generator().manual_seed(0))
    assert network(images).shape == (1, 2, 4, 4)
    assert UNet(2, padding=1)(images[..., :176, :176]).shape == (1, 2, 176, 176)
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    before = [p.clone() for p in network.parameters()]
    loss = step(images, labels, torch.ones(1, 4, 4))
    assert np.isfinite(loss.item())
    assert any((a != b).any() for a, b in zip(before, network.parameters(), strict=True))
