import torch
from hypothesis import given
from hypothesis import strategies as st

from spq_core.methods.svd.rank import decide_rank, smallest_rank_retaining

spectra = st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=40).map(
    lambda values: torch.tensor(sorted(values, reverse=True))
)


@given(spectra, st.floats(0.01, 1.0))
def test_rank_keeps_the_energy_and_one_less_does_not(spectrum, energy):
    rank = smallest_rank_retaining(spectrum, energy)
    squared = spectrum.double().square()
    assert 1 <= rank <= len(spectrum)
    assert squared[:rank].sum() >= energy * squared.sum() * (1 - 1e-12)
    if rank > 1:
        assert squared[: rank - 1].sum() < energy * squared.sum()


def test_all_energy_of_random_spectra_never_needs_more_than_full_rank():
    generator = torch.Generator().manual_seed(0)
    for size in range(1, 300):
        spectrum = torch.rand(size, generator=generator).sort(descending=True).values
        assert smallest_rank_retaining(spectrum, 1.0) <= size


def test_small_and_flat_matrices_are_left_alone_with_a_reason():
    flat = torch.ones(100)
    assert decide_rank(torch.ones(20), (20, 20), 0.9).reason == "fewer than 1000 elements"
    assert decide_rank(torch.ones(40), (40, 100), 0.5).reason == "fewer than 5000 elements"
    assert decide_rank(flat, (100, 100), 0.96).reason == "rank above 0.8 of full"
    assert decide_rank(flat, (100, 100), 0.55).reason == "a pair would not be smaller"
    assert decide_rank(flat, (100, 100), 0.30).factorise


def test_reduction_ratio_can_lose_one_rank_as_in_the_authors_code():
    spectrum = torch.ones(576)
    decisions = [decide_rank(spectrum, (576, 576), rank / 576) for rank in range(1, 280)]
    lost = {one.rank_by_variance - one.rank for one in decisions}
    assert lost == {0, 1}
