import sys

import pytest
import torch

from spq_core import memory
from spq_core.memory import memory_limit, page_out, rss_bytes

MEGABYTE = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")
def test_a_mapped_file_can_be_let_go_and_still_be_read(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(bytes(range(256)) * (64 * MEGABYTE // 256))
    mapped = torch.from_file(str(file), shared=False, size=64 * MEGABYTE, dtype=torch.uint8)
    total = int(mapped.sum(dtype=torch.int64))
    before = rss_bytes()
    page_out(mapped.data_ptr() + 5, mapped.nbytes - 10)
    assert rss_bytes() < before - 50 * MEGABYTE
    assert int(mapped.sum(dtype=torch.int64)) == total


def test_ranges_without_a_whole_page_are_left_alone():
    small = torch.arange(16)
    page_out(small.data_ptr(), small.nbytes)
    assert small.tolist() == list(range(16))


def test_the_least_of_all_limits_counts(tmp_path, monkeypatch):
    monkeypatch.delenv("SPQ_MEMORY_BYTES", raising=False)
    whole = memory_limit()
    assert whole is None or whole > 0
    second, first = tmp_path / "v2", tmp_path / "v1"
    (second / "service" / "run").mkdir(parents=True)
    (first / "pod").mkdir(parents=True)
    (second / "service" / "memory.max").write_text("4000\n")
    (second / "service" / "run" / "memory.max").write_text("max\n")
    (first / "pod" / "memory.limit_in_bytes").write_text("3000\n")
    (tmp_path / "groups").write_text("5:cpu,cpuacct:/\n4:memory:/pod\n0::/service/run\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    hierarchies = ((second, "", "memory.max"), (first, "memory", "memory.limit_in_bytes"))
    monkeypatch.setattr(memory, "_HIERARCHIES", hierarchies)
    assert memory_limit() == 3000
    (first / "pod" / "memory.limit_in_bytes").unlink()
    assert memory_limit() == 4000, "a group around this one holds, too"
    monkeypatch.setenv("SPQ_MEMORY_BYTES", "2000")
    assert memory_limit() == 2000
