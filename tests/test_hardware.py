import pytest

from unet_jax.hardware import _memory_limits


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000\n"}, 5000),
        ("0::/a/b\n", {"memory.max": "7000\n"}, 7000),  # in a container
        (
            "5:cpu:/a\n4:memory,x:/a\n0::/\n",
            {"memory/a/memory.limit_in_bytes": "9000\n", "memory/memory.limit_in_bytes": "10000\n"},
            9000,
        ),
        ("0::/\n", {}, float("inf")),
        (None, {}, float("inf")),
    ],
)
def test_memory_that_a_container_or_a_job_is_given(tmp_path, cgroup, files, expected):
    if cgroup:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert min(_memory_limits(tmp_path)) == expected
