import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from attvae.engine.batch import divide

count = st.integers(1, 64)


@given(micro_batch=count, accumulation=count, ranks=count)
def test_the_product_is_the_global_batch(micro_batch: int, accumulation: int, ranks: int) -> None:
    global_batch = micro_batch * accumulation * ranks
    assert divide(global_batch, ranks, micro_batch) == (micro_batch, accumulation)
    assert divide(global_batch, ranks, None) == (micro_batch * accumulation, 1)


@given(global_batch=st.integers(1, 10_000), ranks=count, micro_batch=st.none() | count)
def test_any_plan_covers_the_global_batch_and_any_refusal_is_due(
    global_batch: int, ranks: int, micro_batch: int | None
) -> None:
    try:
        plan = divide(global_batch, ranks, micro_batch)
    except ValueError:
        assert global_batch % (ranks * (micro_batch or 1)) != 0
    else:
        assert plan.micro_batch * plan.accumulation * ranks == global_batch
        assert plan.micro_batch == min(micro_batch or global_batch, global_batch // ranks)


@given(global_batch=st.integers(1, 10_000), ranks=count)
def test_ranks_that_do_not_divide_are_told_the_nearest_batch_that_works(global_batch: int, ranks: int) -> None:
    assume(global_batch % ranks)
    with pytest.raises(ValueError, match=rf"train.global_batch={global_batch} .* {ranks} ranks") as caught:
        divide(global_batch, ranks, None)
    suggested = int(re.findall(r"\d+", str(caught.value))[-1])
    assert divide(suggested, ranks, None).micro_batch * ranks == suggested
    assert abs(suggested - global_batch) <= ranks / 2 or suggested == ranks


def test_a_micro_batch_that_does_not_divide_is_told_what_it_must_divide() -> None:
    with pytest.raises(ValueError, match=r"global_batch=96 .* engine.micro_batch=10 times 4 ranks.* divides 24"):
        divide(96, 4, 10)
