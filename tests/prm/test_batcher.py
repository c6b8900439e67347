"""Which reads share a forward."""

from hypothesis import given
from hypothesis import strategies as st

from prm.engine.batcher import QueuedRead, ReadQueue
from prm.families.base import LogprobRead


def entry(request: int, model: str, tokens: int) -> QueuedRead:
    read = LogprobRead(model=model, ids=tuple(range(tokens)), first=1)
    return QueuedRead(request=request, index=0, read=read)


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 30)), max_size=30),
    st.integers(1, 50),
)
def test_every_read_comes_once_in_order_and_within_budget(
    wanted: list[tuple[str, int]], budget: int
) -> None:
    queue = ReadQueue(budget)
    queue.extend(entry(number, model, tokens) for number, (model, tokens) in enumerate(wanted))
    seen: list[int] = []
    by_model: dict[str, list[int]] = {"a": [], "b": []}
    while batch := queue.next_batch():
        tokens = [len(item.read.ids) for item in batch]
        assert len({item.read.model for item in batch}) == 1
        assert len(tokens) * max(tokens) <= budget or len(tokens) == 1
        seen += [item.request for item in batch]
        by_model[batch[0].read.model] += [item.request for item in batch]
    assert sorted(seen) == list(range(len(wanted)))
    # Lengths below 64 are all alike, so each model's reads keep their order.
    assert all(numbers == sorted(numbers) for numbers in by_model.values())


def test_the_oldest_read_is_never_passed_over() -> None:
    queue = ReadQueue(10)
    queue.extend([entry(0, "a", 4), entry(1, "b", 4), entry(2, "a", 4), entry(3, "b", 4)])
    assert [item.request for item in queue.next_batch()] == [0, 2]
    assert [item.request for item in queue.next_batch()] == [1, 3]


def test_a_long_read_does_not_share_a_forward_with_short_ones() -> None:
    queue = ReadQueue(8192)
    queue.extend([entry(0, "a", 10), entry(1, "a", 500), entry(2, "a", 12), entry(3, "a", 400)])
    assert [item.request for item in queue.next_batch()] == [0, 2]
    assert [item.request for item in queue.next_batch()] == [1, 3]


def test_dropped_reads_cost_no_forward() -> None:
    queue = ReadQueue(100)
    queue.extend([entry(0, "a", 4), entry(1, "a", 4)])
    queue.drop(0)
    assert [item.request for item in queue.next_batch()] == [1]
    assert len(queue) == 0
