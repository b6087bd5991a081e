"""States on disk: complete at every moment, and no larger than what changed."""

import pytest
import torch

from spq_core.errors import StateMismatchError
from spq_core.streaming.run_state import StateFolder


def written(folder):
    return {path.name: path.stat().st_size for path in folder.glob("state-*.safetensors")}


def test_what_does_not_change_is_written_once(tmp_path):
    states = StateFolder(tmp_path, "f")
    constant, changing = torch.randn(1000, 100), torch.randn(10)
    for number in range(1, 5):
        states.save(number, {"done": number}, {"constant": constant, "hidden": changing * number})
    sizes = written(tmp_path)
    assert set(sizes) == {"state-1.safetensors", "state-4.safetensors"}
    assert sizes["state-4.safetensors"] < 2000
    found = StateFolder(tmp_path, "f").load()
    assert found.values == {"done": 4}
    assert torch.equal(found.tensors["constant"], constant)
    assert torch.equal(found.tensors["hidden"], changing * 4)


def test_what_changes_in_place_is_written_again(tmp_path):
    states, tensor = StateFolder(tmp_path, "f"), torch.zeros(8)
    states.save(1, {}, {"t": tensor})
    tensor += 1
    states.save(2, {}, {"t": tensor})
    assert torch.equal(StateFolder(tmp_path, "f").load().tensors["t"], torch.ones(8))


def test_another_tensor_of_the_same_name_is_written(tmp_path):
    states = StateFolder(tmp_path, "f")
    for number in (1, 2, 3):
        states.save(number, {}, {"t": torch.full((8,), float(number))})
    assert float(StateFolder(tmp_path, "f").load().tensors["t"][0]) == 3
    assert set(written(tmp_path)) == {"state-3.safetensors"}


def test_who_goes_on_from_a_state_writes_whole_ones(tmp_path):
    StateFolder(tmp_path, "f").save(1, {}, {"a": torch.ones(4), "b": torch.zeros(4)})
    again = StateFolder(tmp_path, "f")
    found = again.load()
    again.save(2, {}, found.tensors)
    assert set(written(tmp_path)) == {"state-2.safetensors"}
    assert torch.equal(StateFolder(tmp_path, "f").load().tensors["a"], torch.ones(4))


def test_a_state_of_another_run_is_refused(tmp_path):
    StateFolder(tmp_path, "f").save(1, {}, {})
    with pytest.raises(StateMismatchError):
        StateFolder(tmp_path, "g").load()


def test_what_was_removed_is_written_again(tmp_path):
    states, tensor = StateFolder(tmp_path / "states", "f"), torch.ones(4)
    states.save(1, {}, {"t": tensor})
    states.remove()
    states.save(1, {}, {"t": tensor})
    assert torch.equal(StateFolder(tmp_path / "states", "f").load().tensors["t"], tensor)
