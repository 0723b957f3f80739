"""What each slice attends to: every key before it once, and looked up once a forward."""

import pytest

from sglang_ext.context_parallel.attention import tasks_of
from sglang_ext.context_parallel.plan import plan

EXTEND, PREFIX = [61, 3, 0, 130, 1, 700, 5, 5], [0, 40, 7, 33, 95, 20, 0, 3]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_every_token_before_a_slice_is_attended_to_once(ranks):
    found = plan(EXTEND, PREFIX, ranks)
    for rank in range(ranks):
        slices, tasks = found.slices(rank), tasks_of(found, rank)
        positions = [
            PREFIX[piece.request] + token
            for piece in slices
            for token in range(piece.start, piece.stop)
        ]
        assert [task.request for task in tasks] == [piece.request for piece in slices]
        assert [row for task in tasks for row in range(len(positions))[task.rows]] == list(
            range(len(positions))
        )
        for piece, task in zip(slices, tasks, strict=True):
            assert positions[task.rows] == list(
                range(task.cached + piece.start, task.cached + piece.stop)
            )
            seen = list(range(task.cached))
            seen += [position for rows in task.earlier for position in positions[rows]]
            seen += [position for first, end in task.gaps for position in range(first, end)]
            assert sorted(seen) == list(range(task.cached + piece.start))
            assert task.cached == PREFIX[piece.request]
