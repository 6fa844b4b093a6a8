from __future__ import annotations

import heapq
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kie_wav_async.core.policies import RateLimit
from kie_wav_async.core.rate_limiter import SlidingWindowLimiter

# Times are whole numbers of ticks, so that sums of floats are exact.
CALLS = st.sampled_from(["acquire", "release", "pause"])
LATENCIES = st.lists(st.integers(0, 60), min_size=1, max_size=60)


def drive(
    limit: RateLimit, latencies: list[int], wishes: list[int] | None = None
) -> list[tuple[float, float]]:
    """
    Return when each submit went out and was answered, sent as early as can be.

    Submit *n* is wanted *wishes[n]* after the one before it was sent, and is
    answered *latencies[n]* after it was sent. The driver asks only when told to:
    at the moment `acquire` names, or after a release.
    """
    limiter = SlidingWindowLimiter(limit)
    now = 0.0
    sent: list[tuple[float, float]] = []
    answers: list[float] = []
    wanted_at = 0.0
    while len(sent) < len(latencies):
        wanted_at = max(wanted_at, now)
        while answers and answers[0] <= now:
            limiter.release(heapq.heappop(answers))
        again = limiter.acquire(now) if wanted_at <= now else wanted_at
        if again is None:
            index = len(sent)
            sent.append((now, now + latencies[index]))
            heapq.heappush(answers, now + latencies[index])
            wanted_at = now + (wishes[index] if wishes else 0)
        else:
            assert again > now
            now = min([again, *answers[:1]])
            assert math.isfinite(now), "nothing will ever free a place"
    return sent


@given(
    count=st.integers(1, 7),
    per_s=st.integers(1, 40),
    trips=st.lists(
        st.tuples(st.integers(0, 60), st.floats(0, 1), st.integers(0, 30)), min_size=1, max_size=60
    ),
)
def test_no_window_holds_more_than_count(count, per_s, trips):
    """Wherever between sending and answer a submit arrives, no window sees more than count."""
    latencies = [latency for latency, _, _ in trips]
    sent = drive(RateLimit(count, per_s=per_s), latencies, [wish for _, _, wish in trips])
    arrivals = sorted(
        start + (end - start) * share
        for (start, end), (_, share, _) in zip(sent, trips, strict=True)
    )

    # A window [t, t + per_s) that holds the most begins with an arrival.
    assert all(
        later - first >= per_s for first, later in zip(arrivals, arrivals[count:], strict=False)
    )


@given(count=st.integers(1, 7), per_s=st.integers(1, 40), latencies=LATENCIES)
def test_arrivals_may_be_as_unkind_as_can_be(count, per_s, latencies):
    """Even with all arrivals late and then all early, no window sees more than count."""
    sent = drive(RateLimit(count, per_s=per_s), latencies)

    # Of any count + 1 submits the last is sent per_s after the first was answered
    # that had to be for its place.
    for index in range(count, len(sent)):
        start = sent[index][0]
        assert sum(end + per_s > start for _, end in sent[:index]) < count


@given(count=st.integers(1, 7), per_s=st.integers(1, 40), trip=st.integers(0, 60))
def test_a_constant_round_trip_uses_it_in_full(count, per_s, trip):
    """With one round trip for all, exactly count submits go out per window and trip."""
    sent = drive(RateLimit(count, per_s=per_s), [trip] * (count * 5))

    assert [start for start, _ in sent] == [
        (per_s + trip) * (index // count) for index in range(count * 5)
    ]


@given(
    count=st.integers(1, 5),
    per_s=st.integers(1, 20),
    steps=st.lists(
        st.tuples(
            st.integers(0, 15),
            st.sampled_from(["acquire", "release", "pause"]),
            st.integers(-10, 30),
        ),
        max_size=80,
    ),
)
def test_the_limiter_does_what_a_naive_one_does(count, per_s, steps):
    """Any sequence of calls is answered as by a list of all submits and their answers."""
    limiter = SlidingWindowLimiter(RateLimit(count, per_s=per_s))
    now = 0
    unanswered = 0
    answered: list[int] = []
    pauses: list[int] = []
    for step, call, length in steps:
        now += step
        if call == "pause":
            limiter.pause(now + length)
            pauses.append(now + length)
        elif call == "release":
            if unanswered:
                limiter.release(now)
                unanswered -= 1
                answered.append(now)
        else:
            held = [moment + per_s for moment in answered if moment + per_s > now]
            if now < max(pauses, default=-1):
                expected: float | None = max(pauses)
            elif unanswered + len(held) >= count:
                expected = min(held, default=math.inf)
            else:
                expected = None
                unanswered += 1
            assert expected == limiter.acquire(now)


def test_an_empty_window_grants_count_at_once():
    """The first count submits wait for nothing."""
    limiter = SlidingWindowLimiter(RateLimit(20, per_s=10.0))

    assert [limiter.acquire(5.0) for _ in range(21)] == [None] * 20 + [math.inf]


def test_a_place_is_free_again_one_window_after_the_answer():
    """The window of a submit begins with its answer and ends exactly per_s later."""
    limiter = SlidingWindowLimiter(RateLimit(1, per_s=10.0))
    assert limiter.acquire(0.0) is None
    limiter.release(3.0)

    assert limiter.acquire(12.999) == 13.0
    assert limiter.acquire(13.0) is None


def test_an_unanswered_submit_holds_its_place():
    """Without an answer a place is held for ever."""
    limiter = SlidingWindowLimiter(RateLimit(1, per_s=10.0))
    assert limiter.acquire(0.0) is None

    assert limiter.acquire(1e9) == math.inf


def test_the_earliest_place_is_named():
    """With all places in their windows the earliest end is the moment to ask again."""
    limiter = SlidingWindowLimiter(RateLimit(2, per_s=10.0))
    limiter.acquire(0.0)
    limiter.acquire(0.0)
    limiter.release(1.0)
    limiter.release(2.0)

    assert limiter.acquire(5.0) == 11.0


def test_a_pause_grants_nothing():
    """A pause holds submits back although there are places, and ends when it said."""
    limiter = SlidingWindowLimiter(RateLimit(5, per_s=10.0))
    limiter.pause(7.0)

    assert limiter.acquire(0.0) == 7.0
    assert limiter.acquire(6.999) == 7.0
    assert limiter.acquire(7.0) is None


@pytest.mark.parametrize("pauses", [(9.0, 4.0), (4.0, 9.0), (9.0, -1.0, 0.0)], ids=str)
def test_a_pause_is_never_shortened(pauses):
    """Of several pauses the longest holds."""
    limiter = SlidingWindowLimiter(RateLimit(5, per_s=10.0))
    for until in pauses:
        limiter.pause(until)

    assert limiter.acquire(5.0) == 9.0


def test_a_refused_acquire_takes_no_place():
    """Asking during a pause, or with no place free, changes nothing."""
    limiter = SlidingWindowLimiter(RateLimit(1, per_s=10.0))
    limiter.pause(1.0)
    limiter.acquire(0.0)

    assert limiter.acquire(1.0) is None
    assert limiter.acquire(1.0) == math.inf
    limiter.release(2.0)
    assert limiter.acquire(12.0) is None


def test_times_may_be_negative():
    """A monotonic clock may start anywhere, even below zero."""
    limiter = SlidingWindowLimiter(RateLimit(1, per_s=10.0))
    assert limiter.acquire(-1e6) is None
    limiter.release(-1e6)

    assert limiter.acquire(-1e6) == -1e6 + 10


def test_the_window_is_given_by_name():
    """A rate reads as 20 per 10 s, and its window cannot be mistaken for a count."""
    assert RateLimit(20, per_s=10.0) == RateLimit(count=20, per_s=10.0)
    with pytest.raises(TypeError):
        RateLimit(20, 10.0)


def test_window_of_an_earlier_run() -> None:
    """Submits of an earlier run keep their places until they are free, the last of them."""
    limiter = SlidingWindowLimiter(RateLimit(2, per_s=10.0))
    limiter.restore([107.0, 103.0, 101.0])
    assert 103.0 == limiter.acquire(100.0)
    assert limiter.acquire(103.0) is None
    assert 107.0 == limiter.acquire(103.0)
    limiter.release(104.0)
    assert limiter.acquire(107.0) is None
    assert 114.0 == limiter.acquire(107.0)


def test_no_earlier_run() -> None:
    """Nothing restored takes no place."""
    limiter = SlidingWindowLimiter(RateLimit(1, per_s=10.0))
    limiter.restore([])
    assert limiter.acquire(0.0) is None
