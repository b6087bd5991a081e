import sys

import pytest
import torch

from spq_core.memory import page_out, rss_bytes

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
