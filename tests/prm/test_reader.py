"""Incremental reading against plain forwards of whole sequences, and what it saves."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from torch import Tensor, nn

from prm.engine.attention import AttentionPlan, PrefixRows, Row
from prm.engine.kv import KeyValuePool
from prm.engine.model import CausalLM
from prm.engine.reader import Reader
from prm.engine.reads import NotFinite, OpenRead
from prm.families.base import HeadRead, LogprobRead, Read
from tests.factories import TINY
from training.checkpoints import new_model, save_model

TOKENS = st.lists(st.integers(3, 6), min_size=2, max_size=30)


class CountingLM(CausalLM):
    """Counts the tokens of its forwards; can be made to fail, or to compute NaN."""

    forwards: list[int]
    breaks_with: Exception | None = None
    nan_token: int | None = None

    def hidden(self, ids: Int[Tensor, "T"], plan: AttentionPlan) -> Float[Tensor, "T size"]:
        if self.breaks_with is not None:
            raise self.breaks_with
        self.forwards.append(len(ids))
        hidden = super().hidden(ids, plan)
        if self.nan_token is not None:
            hidden = hidden.clone()
            hidden[ids == self.nan_token] = torch.nan
        return hidden


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> CountingLM:
    folder = tmp_path_factory.mktemp("model")
    save_model(new_model(TINY, seed=7), folder)
    model = CountingLM.load(folder, device="cpu", dtype=torch.float32)
    assert isinstance(model, CountingLM)
    return model


@pytest.fixture
def model(loaded: CountingLM) -> CountingLM:
    loaded.forwards = []
    loaded.breaks_with = None
    loaded.nan_token = None
    return loaded


def logprob_read(ids: Sequence[int], first: int = 1) -> LogprobRead:
    return LogprobRead(model="m", ids=tuple(ids), first=first)


def plain(model: CountingLM, read: Read) -> list[float]:
    """The same numbers by one forward of whole sequences, without tree and pool."""
    ids = list(read.ids)
    if isinstance(read, LogprobRead):
        return [float(value) for value in CausalLM.logprobs(model, [ids], [read.first])[0]]
    values = []
    for position in read.positions:
        for label in read.labels:
            prefix = ids[: position + 1]
            both = CausalLM.logprobs(model, [[*prefix, label], [*prefix, 0]], [len(prefix)] * 2)
            values.append(float(both[0] - both[1]))
    return values


reads_strategy = st.lists(
    TOKENS.flatmap(lambda ids: st.builds(logprob_read, st.just(ids), st.integers(1, len(ids) - 1))),
    min_size=1,
    max_size=12,
)


@given(rounds=st.lists(reads_strategy, min_size=1, max_size=3), slots=st.sampled_from([256, 4096]))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_order_and_every_cache_gives_the_plain_numbers(
    model: CountingLM, rounds: list[list[LogprobRead]], slots: int
) -> None:
    reader = Reader(model, cache_bytes=slots * model.new_pool().bytes_per_token)
    for reads in rounds:
        for read, output in zip(reads, reader.read(reads), strict=True):
            assert output.values == pytest.approx(plain(model, read), abs=1e-4)
            assert 0 <= output.cached_values <= len(output.values)
            assert 0 <= output.cached_tokens <= len(read.ids)
        reader.tree.check_integrity()
        assert all(node.leases == 0 and not node.is_pending for node in reader.tree.nodes())


@given(TOKENS, st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_head_values_do_not_depend_on_the_cache(
    model: CountingLM, ids: list[int], data: st.DataObject
) -> None:
    reader = Reader(model)
    for _ in range(2):
        chosen = data.draw(st.sets(st.integers(0, len(ids) - 1), min_size=1))
        read = HeadRead(
            model="m", ids=tuple(ids), positions=tuple(sorted(chosen)), labels=(4, 0), width=2
        )
        (output,) = reader.read([read])
        ours = torch.tensor(output.values).view(-1, 2)
        theirs = torch.tensor(plain(model, read)).view(-1, 2)
        assert (ours[:, 0] - ours[:, 1]).tolist() == pytest.approx(theirs[:, 0].tolist(), abs=1e-4)


def test_a_shared_prompt_is_read_once(model: CountingLM) -> None:
    prompt = list(range(3, 43))
    reads = [logprob_read([*prompt, 100 + k, 50, 51], first=40) for k in range(8)]
    outputs = Reader(model).read(reads)
    # The prompt, and two of the three tokens of each branch: the last one is only predicted.
    assert model.forwards == [40 + 8 * 2]
    assert [output.cached_tokens for output in outputs] == [0, *[40] * 7]


def test_the_next_round_reads_only_what_is_new(model: CountingLM) -> None:
    reader = Reader(model)
    ids = list(range(3, 103))
    reader.read([logprob_read(ids[:60], first=20)])
    (output,) = reader.read([logprob_read(ids, first=20)])
    assert model.forwards == [59, 40]
    assert (output.cached_tokens, output.cached_values) == (59, 40)


def test_what_was_scored_before_needs_no_forward(model: CountingLM) -> None:
    reader = Reader(model)
    read = logprob_read(range(3, 33), first=5)
    before, after = reader.read([read])[0], reader.read([read])[0]
    assert model.forwards == [29]
    assert after.values == before.values
    assert (before.cached_tokens, before.cached_values) == (0, 0)
    assert (after.cached_tokens, after.cached_values) == (30, 25)


def test_values_outlive_their_block(model: CountingLM) -> None:
    limit = model.context_limit
    reader = Reader(model, cache_bytes=0)
    read = logprob_read(range(3, 53))
    (before,) = reader.read([read])
    reader.read([logprob_read([60 + k % 7 for k in range(limit)])])
    assert all(node.slots is None for node in reader.tree.extend(read.ids).path())
    model.forwards.clear()
    assert reader.read([read])[0].values == before.values
    assert model.forwards == []


def test_sampled_log_probs_are_taken_as_read(model: CountingLM) -> None:
    reader = Reader(model)
    read = logprob_read(range(3, 33), first=5)
    known = plain(model, read)
    model.forwards.clear()
    reader.deposit(read.ids, 5, known)
    (output,) = reader.read([read])
    assert model.forwards == []
    assert output.values == pytest.approx(known, abs=1e-6)
    assert output.cached_tokens == 30


def test_a_long_read_is_computed_a_budget_at_a_time(model: CountingLM) -> None:
    reader = Reader(model, token_budget=64)
    long, short = logprob_read([5 + k % 90 for k in range(200)]), logprob_read([7, 8, 9, 10])
    opened = [reader.open(long), reader.open(short)]
    order: list[OpenRead] = []
    while not all(read.is_finished for read in opened):
        batch = reader.batch()
        # The short one goes first each time, as a scheduler would have it.
        for read in reversed(opened):
            if not read.is_finished:
                batch.add(read)
        order += batch.run()
    assert order == [opened[1], opened[0]]
    assert max(model.forwards) <= 64
    assert opened[0].output is not None
    assert opened[0].output.values == pytest.approx(plain(model, long), abs=1e-4)


def test_reads_that_fill_the_pool_together_still_all_finish(model: CountingLM) -> None:
    reader = Reader(model, cache_bytes=0, token_budget=48)
    limit = model.context_limit
    reads = [logprob_read([3 + (k * j) % 95 for k in range(limit)]) for j in (1, 2, 3, 5)]
    opened = [reader.open(read) for read in reads]
    # All of them begin, and none has room for its end.
    for turn in range(200):
        waiting = [read for read in opened if not read.is_finished]
        if not waiting:
            break
        batch = reader.batch()
        for one in waiting[turn % len(waiting) :] + waiting[: turn % len(waiting)]:
            batch.add(one)
        batch.run()
        reader.tree.check_integrity()
    for read, done in zip(reads, opened, strict=True):
        assert done.output is not None
        assert done.output.values == pytest.approx(plain(model, read), abs=1e-4)


def test_a_failed_forward_leaves_nothing_behind(model: CountingLM) -> None:
    reader = Reader(model)
    read = logprob_read(range(3, 33))
    model.breaks_with = RuntimeError("out of memory")
    opened = reader.open(read)
    batch = reader.batch()
    batch.add(opened)
    with pytest.raises(RuntimeError, match="out of memory"):
        batch.run()
    reader.close(opened)
    reader.tree.check_integrity()
    assert reader.tree.num_slots_used == 0
    model.breaks_with = None
    assert reader.read([read])[0].values == pytest.approx(plain(model, read), abs=1e-4)


def test_values_that_are_no_numbers_fail_their_read_alone(model: CountingLM) -> None:
    reader = Reader(model)
    model.nan_token = 77
    good, bad = logprob_read([3, 4, 5, 6, 7]), logprob_read([3, 4, 77, 6, 7])
    opened = [reader.open(good), reader.open(bad)]
    batch = reader.batch()
    assert [batch.add(read) for read in opened] == [4, 2]
    assert batch.run() == opened
    assert isinstance(opened[1].error, NotFinite)
    assert opened[0].output is not None
    model.nan_token = None
    assert opened[0].output.values == pytest.approx(plain(model, good), abs=1e-4)
    # Nothing that was computed beside it is believed.
    assert reader.read([bad])[0].values == pytest.approx(plain(model, bad), abs=1e-4)


@pytest.fixture
def broken(model: CountingLM) -> Iterator[CountingLM]:
    """A model that reads token 77 as NaN, so that its keys and values are none either."""

    def spoil(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output.masked_fill(inputs[0][..., None] == 77, torch.nan)

    handle = model._body.get_input_embeddings().register_forward_hook(spoil)
    yield model
    handle.remove()


def test_a_prefix_spoilt_before_any_value_was_asked_is_not_kept(broken: CountingLM) -> None:
    reader = Reader(broken, token_budget=24)
    prefix = list(range(3, 23))
    bad = logprob_read([*prefix, 77, *range(30, 50)], first=35)
    good = logprob_read([*prefix, *range(60, 70)], first=10)
    opened = reader.open(bad)
    batch = reader.batch()
    batch.add(opened)
    batch.run()
    assert isinstance(opened.error, NotFinite)
    assert reader.read([good])[0].values == pytest.approx(plain(broken, good), abs=1e-4)


def test_a_read_tried_alone_waits_for_the_room_that_others_hold(broken: CountingLM) -> None:
    limit = broken.context_limit
    reader = Reader(broken, cache_bytes=1, token_budget=limit // 5)
    held = reader.open(logprob_read([3 + n % 60 for n in range(limit)], first=limit - 2))
    for _ in range(3):
        batch = reader.batch()
        batch.add(held)
        batch.run()
    prefix = [70, 71]
    bad = reader.open(logprob_read([*prefix, 77, 5], first=2))
    good = reader.open(logprob_read([*prefix, *(4 + n % 60 for n in range(limit - 4))], first=2))
    batch = reader.batch()
    assert None not in [batch.add(bad), batch.add(good)]
    batch.run()
    assert isinstance(bad.error, NotFinite)
    assert not good.is_finished
    while not (held.is_finished and good.is_finished):
        batch = reader.batch()
        for read in (held, good):
            batch.add(read)
        batch.run()
    assert good.output is not None
    assert good.output.values == pytest.approx(plain(broken, good.read), abs=1e-4)


def test_what_is_read_once_more_is_read_in_one_row(
    model: CountingLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(model)
    ids = list(range(3, 93))
    reader.read([HeadRead(model="m", ids=tuple(ids), positions=(89,), labels=(4,), width=1)])
    rows: list[int] = []

    def counted(pool: KeyValuePool, found: Sequence[Row], **packed: Any) -> PrefixRows:
        rows.append(len(found))
        return PrefixRows(pool, found, **packed)

    monkeypatch.setattr("prm.engine.forward.PrefixRows", counted)
    read = logprob_read(ids)
    opened = reader.open(read)
    batch = reader.batch()
    # The tokens that all but the first log-prob come from count against the budget.
    assert batch.add(opened) == 89
    batch.run()
    assert opened.output is not None
    assert opened.output.values == pytest.approx(plain(model, read), abs=1e-4)
    assert rows == [2]  # the last log-prob comes from a run of its own


def test_deposits_alone_do_not_grow_the_tree(model: CountingLM) -> None:
    reader = Reader(model, cache_bytes=1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        ids = torch.randint(3, 99, (60,), generator=generator).tolist()
        reader.deposit(ids, 30, [-1.0] * 30)
    assert reader.tree.num_tokens <= reader.tree.max_tokens
    reader.tree.check_integrity()


def test_a_deposit_that_is_no_number_is_left_to_a_forward(model: CountingLM) -> None:
    reader = Reader(model)
    read = logprob_read(range(3, 13), first=7)
    reader.deposit(read.ids, 7, [-torch.inf, torch.nan, -1.0])
    values = reader.read([read])[0].values
    assert values[:2] == pytest.approx(plain(model, read)[:2], abs=1e-4)
    assert values[2] == -1.0


def test_the_pool_keeps_to_its_memory(model: CountingLM) -> None:
    pool = model.new_pool()
    reader = Reader(model, cache_bytes=1100 * pool.bytes_per_token)
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        ids = torch.randint(3, 99, (60,), generator=generator).tolist()
        reader.read([logprob_read(ids)])
    assert reader._pool.num_slots == 1100


def test_ids_without_a_row_are_refused(model: CountingLM) -> None:
    with pytest.raises(IndexError, match="between 0 and"):
        Reader(model).open(logprob_read([1, 2, 100_000]))


def test_what_one_version_read_is_nothing_to_another(model: CountingLM, tmp_path: Path) -> None:
    save_model(new_model(TINY, seed=8), tmp_path)
    other = CausalLM.load(tmp_path, device="cpu", dtype=torch.float32)
    read = logprob_read(range(3, 33))
    old, new = Reader(model), Reader(other)
    first, second = old.read([read])[0], new.read([read])[0]
    assert (first.cached_tokens, second.cached_tokens) == (0, 0)
    assert second.values != pytest.approx(first.values, abs=1e-3)
    assert new.tree.num_slots_used == old.tree.num_slots_used == 29


def test_a_swapped_version_takes_its_cache_with_it(model: CountingLM) -> None:
    reader = Reader(model)
    reader.read([logprob_read(range(3, 33))])
    tree = weakref.ref(reader.tree)
    del reader
    gc.collect()
    assert tree() is None
