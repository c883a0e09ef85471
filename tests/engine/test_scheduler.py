"""Who has a slot, whose prompt is read next, and who waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptj.engine.job import Job, State
from gptj.engine.request import SamplingParams
from gptj.engine.scheduler import Scheduler
from gptj.engine.text import TextWriter


def job(number: int = 0, leader: Job | None = None) -> Job:
    return Job(
        number, 0, [1, 2], SamplingParams(), 1, 8, [], frozenset(), TextWriter(None, ()),
        leader=leader,
    )  # fmt: skip


def queued(scheduler: Scheduler, count: int) -> list[Job]:
    jobs = [job(number) for number in range(count)]
    scheduler.waiting.extend(jobs)
    return jobs


def test_who_waited_longest_has_the_first_free_slot():
    scheduler = Scheduler(2, 1)
    first, second, third = queued(scheduler, 3)
    assert scheduler.admit() == [first, second]
    assert (first.slot, second.slot, third.slot) == (0, 1, -1)
    assert [each.state for each in (first, second, third)] == [
        State.READING, State.READING, State.WAITING,
    ]  # fmt: skip
    assert scheduler.slots == [first, second]
    assert list(scheduler.waiting) == [third]
    assert scheduler.admit() == []
    scheduler.leave(second)
    assert scheduler.admit() == [third]
    assert third.slot == 1


def test_reading_while_a_prompt_is_on_its_way_and_drawing_after():
    scheduler = Scheduler(3, 1)
    one, two, _ = queued(scheduler, 3)
    assert not scheduler.reading
    scheduler.admit()
    assert scheduler.reading
    assert scheduler.drawing == []
    scheduler.has_read(two)
    scheduler.has_read(one)
    assert scheduler.drawing == [one, two]  # in the order of their slots
    assert scheduler.reading
    scheduler.leave(scheduler.slots[2])
    assert not scheduler.reading


def test_each_part_reads_the_prompt_that_came_first_to_it():
    scheduler = Scheduler(6, 3)
    jobs = queued(scheduler, 5)
    scheduler.admit()
    assert scheduler.next_readers() == [jobs[0], jobs[2], jobs[4]]
    scheduler.has_read(jobs[2])
    scheduler.has_read(jobs[4])
    assert scheduler.next_readers() == [jobs[0], jobs[3], None]


def test_within_a_part_it_is_the_order_of_coming_and_not_of_slots():
    scheduler = Scheduler(2, 1)
    first, second, late = queued(scheduler, 3)
    scheduler.admit()
    scheduler.leave(first)
    scheduler.admit()
    assert late.slot < second.slot
    assert scheduler.next_readers() == [second]


@pytest.mark.parametrize("state", [State.WAITING, State.READING])
def test_who_follows_waits_until_its_leader_has_read_and_holds_up_the_others(state):
    scheduler = Scheduler(3, 1)
    leader = job(0)
    leader.state = state
    follower, other = job(1, leader), job(2)
    scheduler.waiting.extend([follower, other])
    assert scheduler.admit() == []
    leader.state = State.DRAWING
    assert scheduler.admit() == [follower, other]


def test_a_leader_that_left_holds_nobody_up():
    scheduler = Scheduler(2, 1)
    leader = job(0)
    follower = job(1, leader)
    scheduler.waiting.extend([leader, follower])
    assert scheduler.admit() == [leader]
    scheduler.leave(leader)
    assert scheduler.admit() == [follower]


def test_leaving_is_leaving_from_anywhere():
    scheduler = Scheduler(2, 1)
    reads, draws, waits = queued(scheduler, 3)
    scheduler.admit()
    scheduler.has_read(draws)
    for each in (waits, draws, reads):
        scheduler.leave(each)
        assert each.is_done
    assert scheduler.slots == [None, None]
    assert not scheduler.waiting
    assert scheduler.next_readers() == [None]


def test_who_left_already_takes_no_slot_from_who_came_after():
    scheduler = Scheduler(1, 1)
    one, two = queued(scheduler, 2)
    scheduler.admit()
    scheduler.leave(one)
    scheduler.admit()
    scheduler.leave(one)
    assert scheduler.slots == [two]


@given(
    size=st.integers(1, 3), parts=st.integers(1, 3),
    doings=st.lists(st.sampled_from(["come", "admit", "read", "leave"]), max_size=60),
    which=st.integers(0, 1000),
)  # fmt: skip
def test_nobody_is_lost_and_no_slot_has_two(size, parts, doings, which):
    scheduler, here, count = Scheduler(size * parts, parts), list[Job](), 0
    for doing in doings:
        reading = [each for each in here if each.state is State.READING]
        if doing == "come":
            here.append(job(count))
            scheduler.waiting.append(here[-1])
            count += 1
        elif doing == "admit":
            scheduler.admit()
            assert not scheduler.waiting or None not in scheduler.slots
        elif doing == "read" and reading:
            scheduler.has_read(reading[which % len(reading)])
        elif doing == "leave" and here:
            scheduler.leave(here.pop(which % len(here)))
        held = [each for each in scheduler.slots if each]
        assert sorted(each.request for each in [*held, *scheduler.waiting]) == [
            each.request for each in sorted(here, key=lambda each: each.request)
        ]
        assert all(scheduler.slots[each.slot] is each for each in held)
        assert scheduler.reading == any(each.state is State.READING for each in here)
        for part, reader in enumerate(scheduler.next_readers()):
            own = [each for each in held if each.slot // size == part]
            waiting = [each for each in own if each.state is State.READING]
            assert reader is min(waiting, key=lambda each: each.request, default=None)
