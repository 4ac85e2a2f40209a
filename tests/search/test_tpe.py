"""TPE as a searcher: held against a function whose least value is known."""

import math

from attvae.search.config import Dimension
from attvae.search.space import Point, random_point
from attvae.search.tpe import Tpe

SPACE = {
    "lr": Dimension(loguniform=(1e-5, 1e-1)),
    "scales": Dimension(choice=[[0], [-2, 0]]),
    "depth": Dimension(int=(1, 8), when={"scales": [0]}),
}


def loss(point: Point) -> float:
    return (math.log10(point["lr"]) + 3) ** 2 + (abs(point["depth"] - 4) if point["scales"] == [0] else 10)


def test_points_that_others_have_drawn_are_learnt_from() -> None:
    tpe = Tpe(SPACE, 0)
    drawn = [random_point(SPACE, 0, index) for index in range(15)]
    for index, point in enumerate(drawn):
        tpe.begin(f"t{index}", point)
        tpe.end(f"t{index}", loss(point))
    proposed = []
    for index in range(15, 45):
        proposed.append(tpe.propose(f"t{index}"))
        tpe.end(f"t{index}", loss(proposed[-1]))
    others = [random_point(SPACE, 1, index) for index in range(30)]
    middle = len(others) // 2
    assert sorted(map(loss, proposed))[middle] < 0.5 * sorted(map(loss, others))[middle]


def test_trials_may_fail_stop_early_and_run_at_the_same_time() -> None:
    tpe = Tpe(SPACE, 0)
    for index in range(12):
        tpe.begin(f"t{index}", random_point(SPACE, 0, index))
    for index in range(12):
        tpe.report(f"t{index}", 100, float(index))
        tpe.end(f"t{index}", None if index % 3 == 0 else float(index), stopped=index % 3 == 1)
    at_once = [tpe.propose(f"t{index}") for index in range(12, 16)]
    assert len({point["lr"] for point in at_once}) == 4
