"""Groups run together only while that is measured to be faster."""

from edgelm.runtime.engines.onnxruntime import run_times
from edgelm.runtime.engines.onnxruntime.run_times import RunTimes


def measured(**seconds: float) -> RunTimes:
    """Times of runs, `one` of one sequence and `four` of four."""
    times = RunTimes()
    for _ in range(9):
        for size, name in ((1, "one"), (4, "four")):
            if name in seconds:
                times.add(size, seconds[name])
    return times


def test_a_group_runs_together_until_it_is_measured() -> None:
    assert RunTimes().pays(4)
    assert measured(one=1.0).pays(4)


def test_runs_of_one_are_measured_before_a_group_is_judged() -> None:
    times = measured(four=1.0)
    assert not times.pays(4)
    for _ in range(5):
        times.add(1, 0.9)
    assert times.pays(4)


def test_the_faster_way_is_taken() -> None:
    assert measured(one=1.0, four=3.9).pays(4)
    assert not measured(one=1.0, four=4.1).pays(4)
    assert measured(one=1.0, four=4.1).pays(2)
    assert measured(one=1.0, four=4.1).pays(1)


def test_a_slow_first_run_decides_nothing() -> None:
    times = RunTimes()
    for size, first, later in ((1, 50.0, 1.0), (4, 90.0, 1.5)):
        times.add(size, first)
        for _ in range(4):
            times.add(size, later)
    assert times.pays(4)


def test_a_slow_group_is_measured_again_and_may_become_fast() -> None:
    times = measured(one=1.0, four=9.0)
    tried = 0
    for _ in range(6 * run_times._AGAIN):
        if times.pays(4):
            times.add(4, 1.5)
            tried += 1
        else:
            times.add(1, 1.0)
    assert tried > 6, "once five of nine times are short, it stays together"
    assert times.pays(4)
