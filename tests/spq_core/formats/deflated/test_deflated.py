import pytest
import torch

from spq_core.errors import ArtifactError
from spq_core.formats.deflated.coding import Deflated, decode
from spq_core.formats.lattice.steps import Steps
from tests.spq_core.formats.deflated.writing import deflate


def some_codes(rows, columns):
    generator = torch.Generator().manual_seed(8)
    codes = torch.randint(-9, 10, (rows, columns), generator=generator).char()
    steps = [torch.randint(0, 256, (n,), generator=generator).byte() for n in (rows, columns)]
    return codes, Steps(0.5, *steps)


@pytest.mark.parametrize("order", ["rows", "columns"])
def test_earlier_artifacts_are_read_in_either_order(order):
    codes, steps = some_codes(40, 50)
    back, found = decode(deflate(codes, steps, order), 40, 50)
    assert torch.equal(back, codes)
    assert torch.equal(found.rows, steps.rows)
    assert torch.equal(found.columns, steps.columns)
    assert found.base == 0.5


def test_damaged_codes_are_refused():
    coded = deflate(*some_codes(40, 50))
    cut = Deflated(coded.packed[:-20], coded.base, coded.order)
    broken = Deflated(torch.full_like(coded.packed, 255), coded.base, coded.order)
    for damaged, message in [(cut, "codes end after"), (broken, "cannot be decoded")]:
        with pytest.raises(ArtifactError, match=message):
            decode(damaged, 40, 50)
    with pytest.raises(ArtifactError, match="cannot hold"):
        decode(coded, 40_000, 50_000)
