"""Who gets into the next forward."""

import pytest
import torch

from prm.engine.batcher import LEAST_SHARE, ReadQueue
from prm.engine.model import CausalLM
from prm.engine.reader import Reader
from prm.families.base import LogprobRead
from tests.factories import TINY
from training.checkpoints import new_model, save_model

BUDGET = 4 * LEAST_SHARE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    folder = tmp_path_factory.mktemp("model")
    save_model(new_model(TINY, seed=3), folder)
    return CausalLM.load(folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def reader(model: CausalLM) -> Reader:
    return Reader(model, token_budget=BUDGET)


@pytest.fixture
def queue(reader: Reader) -> ReadQueue:
    return ReadQueue(reader)


def read(seed: int, length: int) -> LogprobRead:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 99, (length,), generator=generator).tolist()
    return LogprobRead(model="m", ids=tuple(ids), first=1)


def test_a_short_request_is_served_by_the_next_forward(reader: Reader, queue: ReadQueue) -> None:
    for number in range(3):
        queue.extend(number, [reader.open(read(100 * number + k, 250)) for k in range(20)])
    short = reader.open(read(999, 20))
    queue.extend(7, [short])
    batch, joined = queue.next_batch()
    batch.run()
    assert short.is_finished
    assert joined == [0, 1, 2, 7]


def test_what_is_left_of_the_budget_goes_to_the_oldest(reader: Reader, queue: ReadQueue) -> None:
    queue.extend(1, [reader.open(read(k, 200)) for k in range(20)])
    queue.extend(2, [reader.open(read(50, 20))])
    batch, _ = queue.next_batch()
    assert batch.budget_left == 0
    assert len(batch.run()) == (BUDGET - 19) // 199 + 1


def test_those_not_served_come_first_next_time(reader: Reader, queue: ReadQueue) -> None:
    for number in range(6):
        queue.extend(number, [reader.open(read(10 * number + k, 250)) for k in range(3)])
    served = []
    while queue:
        batch, joined = queue.next_batch()
        assert batch.run() or joined
        queue.forget_finished(joined)
        served.append(joined)
    assert served[0] == [0, 1, 2, 3]
    assert served[1][:2] == [4, 5]


def test_a_dropped_request_costs_no_forward(reader: Reader, queue: ReadQueue) -> None:
    queue.extend(1, [reader.open(read(1, 100))])
    queue.drop(1)
    assert not queue
    assert reader.tree.num_slots_used == 0


def test_dropping_a_request_between_two_forwards_gives_its_lease_back(
    reader: Reader, queue: ReadQueue
) -> None:
    queue.extend(1, [reader.open(read(k, 250)) for k in range(9)])
    batch, joined = queue.next_batch()
    batch.run()
    queue.forget_finished(joined)
    assert any(node.leases for node in reader.tree.nodes())
    queue.drop(1)
    assert not any(node.leases for node in reader.tree.nodes())
    reader.tree.check_integrity()
