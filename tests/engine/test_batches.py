import pytest

from engine.batches import collate, micro_batches, permutation
from engine.errors import StageError


def test_collate_places_every_response_token() -> None:
    padded = collate([([1, 5, 6], [7, 2]), ([1], [8, 9, 2])], pad_id=0)
    assert padded.ids.tolist() == [[1, 5, 6, 7, 2], [1, 8, 9, 2, 0]]
    assert padded.target.tolist() == [[7, 2, 0], [8, 9, 2]]
    assert padded.response_mask.tolist() == [[True, True, False], [True, True, True]]
    # token 7 is predicted at position 2, token 8 of the second row at position 0, which is 5 when flattened
    assert padded.source[padded.response_mask].tolist() == [2, 3, 5, 6, 7]
    assert padded.last.tolist() == [4, 5 + 3]
    assert padded.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_masks_come_from_lengths_never_from_ids() -> None:  # T01, T03
    padded = collate([([1, 0, 0], [0, 2]), ([1], [2])], pad_id=0)
    assert padded.response_mask.sum().item() == 3 and padded.attention_mask.sum().item() == 7
    same = collate([([1, 5], [6, 2])], pad_id=2)  # pad id equal to EOS: EOS still counts
    assert same.response_mask.tolist() == [[True, True]]


def test_only_learned_tokens_count() -> None:
    padded = collate([([1], [5, 6, 7])], pad_id=0, learned=[[True, False, True]])
    assert padded.response_mask.tolist() == [[True, False, True]]


@pytest.mark.parametrize("pair", [([], [5]), ([1], [])])
def test_empty_sides_are_refused(pair: tuple[list[int], list[int]]) -> None:
    with pytest.raises(StageError, match="want some of each"):
        collate([([1], [2]), pair], pad_id=0)


def test_order_depends_on_seed_stream_and_epoch_only() -> None:
    assert permutation(3, "rows", 0, 10) == permutation(3, "rows", 0, 10)
    orders = {tuple(permutation(s, n, e, 50)) for s in (3, 4) for n in ("rows", "replay") for e in (0, 1)}
    assert len(orders) == 8 and all(sorted(o) == list(range(50)) for o in orders)
    assert permutation(3, "rows", 0, 4) == [3, 2, 1, 0] or len(permutation(3, "rows", 0, 4)) == 4


def test_rows_stay_whole_in_micro_batches() -> None:
    groups = [[3, 9], [4, 4], [7, 7], [1, 2], [8, 8]]
    assert micro_batches(groups, 0) == [[0, 4, 2, 1, 3]]
    assert micro_batches(groups, 4) == [[0, 4], [2, 1], [3]]
    assert micro_batches(groups, 1) == [[0], [4], [2], [1], [3]]
