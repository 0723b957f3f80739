import pytest

from sglang_ext.bench.store.figures import Goal, Sample, goals, percentile, row


def sample(
    mb_s: float, *, p50: float = 1.0, p99: float = 2.0, disk_bytes: int | None = None
) -> Sample:
    return Sample(
        payload_bytes=100 * 10**6,
        seconds=100 / mb_s,
        cpu_s=0.05,
        p50_ms=p50,
        p99_ms=p99,
        disk_bytes=disk_bytes,
    )


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 50, 5.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([4.0, 3.0, 2.0, 1.0], 50, 2.0),
        (list(range(1, 101)), 99, 99),
        (list(range(1, 101)), 100, 100),
        (list(range(1, 12)), 99, 11),
    ],
)
def test_a_percentile_is_a_value_that_was_measured(
    values: list[float], percent: float, expected: float
) -> None:
    assert percentile(values, percent) == expected


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_of_nothing_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, percent)


def test_a_row_has_medians_and_the_spread() -> None:
    samples = [sample(300, p50=3), sample(100, p50=1), sample(200, p50=9)]
    assert row("ext", "read", 65536, samples) == {
        "engine": "ext",
        "op": "read",
        "page_bytes": 65536,
        "mb_s": 200.0,
        "p50_ms": 3,
        "p99_ms": 2.0,
        "cpu_s_per_gb": 0.5,
        "mb_s_spread": [100.0, 300.0],
        "rounds": 3,
    }


def test_a_row_says_how_many_bytes_the_disk_moved_for_one() -> None:
    samples = [sample(100, disk_bytes=110 * 10**6), sample(100), sample(100, disk_bytes=10**8)]
    assert row("ext", "read", 65536, samples)["disk_bytes_per_byte"] == 1.05


def rows(**mb_s: float) -> list[dict[str, object]]:
    return [
        {"engine": engine, "op": "read", "page_bytes": 1 << 20, "mb_s": one}
        for engine, one in mb_s.items()
    ]


def test_goals_are_held_against_fio_and_the_stock_class() -> None:
    found = goals(rows(ext=900, fio=1000, file=300, lmdb=5000), {"ext": 1.0, "file": 0.0})
    assert [(goal.what, goal.target, goal.found, goal.met) for goal in found] == [
        ("read at 1024 KiB, share of fio's best", 0.95, 0.9, False),
        ("read at 1024 KiB, times the stock class", 1.0, 3.0, True),
        ("reachable share of what is stored", 1.0, 1.0, True),
    ]


def test_what_was_not_measured_has_no_goal() -> None:
    assert goals(rows(ext=900), {}) == []
    assert goals(rows(fio=900, file=100), {"file": 0.0}) == []


def test_a_goal_that_is_just_reached_is_met() -> None:
    assert Goal("x", 1.0, 1.0).met
    assert Goal("x", 1.0, 0.99996).to_json() == {
        "what": "x",
        "target": 1.0,
        "found": 1.0,
        "met": False,
    }
