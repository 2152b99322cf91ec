import json

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.side_by_side import alternate, summary
from benchmarks.training_step import step_flops


def test_contestants_take_turns_and_the_first_call_is_not_counted():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_summary_says_how_many_times_as_long_ours_takes():
    seconds = {"ours": [1.0, 9.0, 2.0], "other": [4.0, 4.0, 5.0]}
    expected = {"seconds": 4.0, "fastest": 4.0, "slowest": 5.0, "ours_over_it": 0.5}
    assert summary(seconds, "other", ours="ours") == expected


def test_operations_of_a_step_by_hand():
    """Depth 1: two convolutions and the classes, on a tile of 7x7."""
    forward = 2 * (9 * 5 * 5 * 1 * 4 + 9 * 3 * 3 * 4 * 4 + 3 * 3 * 4 * 2)
    assert step_flops(4, 7, depth=1) == 3 * forward
    assert step_flops(64, 572) == pytest.approx(904e9, rel=0.01)


def test_the_command_prints_a_table_and_writes_json(monkeypatch, tmp_path, capsys):
    arguments = ["benchmarks", "layers", "weight_map", "--quick", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", arguments)
    command.main()
    assert "| layer | direction | formulation | seconds |" in capsys.readouterr().out
    result = json.loads((tmp_path / "weight_map.json").read_text())
    assert result["versions"]["jax"] and result["versions"]["device"]
    assert [row["cells"] for row in result["rows"]] == [9, 100]
    assert result["rows"][1]["largest_difference"] < 1e-5


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
