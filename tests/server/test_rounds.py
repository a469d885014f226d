"""The state machine of rounds: every rule once, then random histories."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from secagg.errors import (
    CapacityError,
    ConfigError,
    DuplicateError,
    QuorumError,
    RoundMismatchError,
    ScalesMismatchError,
    SecAggError,
    StateError,
    TransportError,
)
from secagg.protocol.messages import KEPT_ROUNDS
from secagg.server.rounds import Attempt, Due, Rounds, Waiting

TIMEOUT = 10.0


def make(min_clients: int = 2, max_clients: int = 4, *, calibrated: bool = False) -> Rounds:
    return Rounds(min_clients=min_clients, max_clients=max_clients, timeout=TIMEOUT, calibrated=calibrated)


def nonce(text: str) -> bytes:
    return text.encode().ljust(32, b".")


def add(rounds: Rounds, *sites: str, now: float = 0.0) -> None:
    for site in sites:
        own = nonce(f"{site} {rounds.round}")
        assert not rounds.known(site, own, rounds.round, rounds.stage)
        rounds.added(site, own, now)


def complete(rounds: Rounds, now: float = 0.0) -> None:
    rounds.seal(now)
    rounds.complete(now)


def run_round(rounds: Rounds, *sites: str, now: float = 0.0) -> None:
    add(rounds, *sites, now=now)
    complete(rounds, now)


def test_closes_when_all_who_joined_were_added() -> None:
    rounds = make()
    for site in ("a", "b", "c"):
        rounds.join(site, 0.0)
    add(rounds, "a", "b")
    assert rounds.due(1.0) is Due.NOTHING
    assert rounds.snapshot().waiting_for == ("c",)
    add(rounds, "c")
    assert rounds.due(1.0) is Due.COMPLETE
    complete(rounds, 1.0)
    snapshot = rounds.snapshot()
    assert snapshot.attempt == Attempt(1, 1)
    assert snapshot.added == ()
    assert snapshot.waiting_for == ("a", "b", "c")
    assert snapshot.completed == (0,)
    assert snapshot.deadline == 1.0 + TIMEOUT


def test_below_min_clients_it_waits_even_if_all_were_added() -> None:
    rounds = make(min_clients=2)
    add(rounds, "a")
    assert rounds.due(TIMEOUT - 0.001) is Due.NOTHING
    assert rounds.due(TIMEOUT) is Due.FAIL


def test_the_clock_starts_with_the_first_site() -> None:
    rounds = make()
    assert rounds.snapshot().deadline is None
    assert rounds.wake is None
    assert rounds.due(1e9) is Due.NOTHING
    rounds.join("a", 5.0)
    rounds.join("b", 6.0)
    assert rounds.snapshot().deadline == rounds.wake == 5.0 + TIMEOUT


def test_at_the_timeout_it_closes_without_the_missing() -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a", "b")
    assert rounds.due(TIMEOUT) is Due.COMPLETE
    complete(rounds, TIMEOUT)
    assert rounds.snapshot().waiting_for == ("a", "b")


def test_a_site_that_missed_a_round_is_back_when_it_joins() -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a", "b")
    complete(rounds, TIMEOUT)
    with pytest.raises(RoundMismatchError, match="round 0; round 1 is open"):
        rounds.known("slow", nonce("x"), 0)
    assert rounds.snapshot().waiting_for == ("a", "b")
    rounds.join("slow", TIMEOUT)
    assert rounds.snapshot().waiting_for == ("a", "b", "slow")


def test_a_site_that_skips_is_not_waited_for() -> None:
    rounds = make()
    rounds.join("idle", 0.0)
    add(rounds, "a", "b")
    assert rounds.due(1.0) is Due.NOTHING
    assert rounds.skip("idle", 0, 1.0)
    assert not rounds.skip("idle", 0, 1.0)
    snapshot = rounds.snapshot()
    assert (snapshot.added, snapshot.skipped, snapshot.waiting_for) == (("a", "b"), ("idle",), ())
    assert rounds.due(1.0) is Due.COMPLETE
    complete(rounds, 1.0)
    assert not rounds.skip("idle", 0, 1.0)  # a retry
    snapshot = rounds.snapshot()
    assert (snapshot.skipped, snapshot.waiting_for) == ((), ("a", "b", "idle"))


def test_a_site_may_skip_without_joining_first() -> None:
    rounds = make(max_clients=2)
    rounds.skip("idle", 0, 5.0)
    assert rounds.snapshot().deadline == 5.0 + TIMEOUT
    rounds.join("a", 5.0)
    with pytest.raises(CapacityError, match="'b'"):
        rounds.skip("b", 0, 5.0)


def test_too_few_updates_are_no_sum_however_many_skip() -> None:
    rounds = make()
    add(rounds, "a")
    rounds.skip("idle", 0, 0.0)
    rounds.skip("other", 0, 0.0)
    assert rounds.due(TIMEOUT - 0.001) is Due.NOTHING
    assert rounds.due(TIMEOUT) is Due.FAIL
    rounds.fail(TIMEOUT)
    snapshot = rounds.snapshot()
    assert (snapshot.added, snapshot.skipped, snapshot.waiting_for) == (("a",), (), ())
    add(rounds, "b", now=TIMEOUT)
    assert rounds.due(TIMEOUT) is Due.COMPLETE


def test_a_round_that_all_skip_lapses_and_has_not_failed() -> None:
    """As after the last round of a training: whoever comes later has the whole timeout."""
    rounds = make()
    run_round(rounds, "a", "b")
    rounds.skip("a", 1, 1.0)
    rounds.skip("b", 1, 1.0)
    waiting = rounds.wait(1)
    with pytest.raises(StateError, match="round 1 has not lapsed: nothing is due"):
        rounds.lapse(TIMEOUT - 0.001)
    assert rounds.due(TIMEOUT) is Due.LAPSE
    with pytest.raises(StateError, match="lapse is due"):
        rounds.fail(TIMEOUT)
    rounds.lapse(TIMEOUT)
    with pytest.raises(QuorumError, match="round 1 has no update after 10 s: all who joined it skip it"):
        rounds.ready(waiting)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.waiting_for, snapshot.skipped) == (Attempt(1, 1), (), ())
    assert rounds.wake is None
    add(rounds, "a", "b", now=50.0)
    assert rounds.due(50.0) is Due.COMPLETE


def test_a_site_that_joins_a_round_that_all_skip_has_the_whole_timeout() -> None:
    rounds = make()
    rounds.skip("a", 0, 0.0)
    rounds.skip("b", 0, 0.0)
    rounds.join("late", TIMEOUT - 1.0)
    assert rounds.due(TIMEOUT) is Due.NOTHING
    assert rounds.due(2 * TIMEOUT - 1.0) is Due.FAIL
    rounds.skip("late", 0, TIMEOUT)
    assert rounds.due(2 * TIMEOUT - 1.0) is Due.LAPSE


def test_a_round_that_is_waited_for_fails_however_many_skip() -> None:
    rounds = make()
    rounds.join("a", 0.0)
    rounds.skip("b", 0, 0.0)
    assert rounds.due(TIMEOUT) is Due.FAIL


def test_an_update_that_was_lost_is_waited_for() -> None:
    rounds = make()
    add(rounds, "a")
    rounds.skip("b", 0, 0.0)
    rounds.lost("a")
    assert rounds.due(TIMEOUT) is Due.FAIL


def test_who_skips_may_upload_all_the_same() -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a")
    rounds.skip("b", 0, 0.0)
    add(rounds, "b")
    snapshot = rounds.snapshot()
    assert (snapshot.added, snapshot.skipped) == (("a", "b"), ())
    assert rounds.due(1.0) is Due.NOTHING
    with pytest.raises(DuplicateError, match="'b' skips round 0, and an update of it is already in the sum"):
        rounds.skip("b", 0, 0.0)


def test_who_joins_again_skips_no_more() -> None:
    rounds = make()
    rounds.skip("back", 0, 0.0)
    rounds.join("back", 0.0)
    add(rounds, "a", "b")
    assert rounds.snapshot().waiting_for == ("back",)
    assert rounds.due(1.0) is Due.NOTHING


def test_another_round_cannot_be_skipped() -> None:
    rounds = make()
    for _ in range(KEPT_ROUNDS + 1):
        run_round(rounds, "a", "b")
    for round in (0, KEPT_ROUNDS + 2):
        with pytest.raises(RoundMismatchError, match=f"'c' skips round {round}; round {KEPT_ROUNDS + 1} is open"):
            rounds.skip("c", round, 0.0)
    assert rounds.snapshot().waiting_for == ("a", "b")


def test_who_is_refused_is_not_waited_for() -> None:
    rounds = make()
    add(rounds, "a")
    for round, own in ((0, nonce("a 0")), (1, nonce("early"))):
        with pytest.raises(SecAggError):
            rounds.known("b", own, round)
    assert rounds.snapshot().waiting_for == ()


def test_below_min_clients_at_the_timeout_the_round_goes_on_with_what_was_added() -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a")
    waiting = rounds.wait(0, nonce("a 0"))
    assert not rounds.ready(waiting)
    rounds.fail(TIMEOUT)
    for _ in range(2):
        with pytest.raises(QuorumError, match="1 of at least 2 .* what was uploaded stays in it"):
            rounds.ready(waiting)
    assert not rounds.ready(rounds.wait(0, nonce("a 0")))  # who asks now waits for the next attempt
    snapshot = rounds.snapshot()
    assert snapshot.attempt == Attempt(0, 2)
    assert snapshot.added == ("a",)
    assert snapshot.waiting_for == ()
    assert snapshot.deadline == 2 * TIMEOUT
    assert rounds.known("a", nonce("a 0"), 0)
    with pytest.raises(DuplicateError):
        rounds.known("a", nonce("another"), 0)
    run_round(rounds, "b", now=TIMEOUT)
    assert rounds.ready(rounds.wait(0))
    assert rounds.ready(waiting)
    assert rounds.known("a", nonce("a 0"), 0)


def test_an_attempt_without_any_update_stops_the_clock() -> None:
    rounds = make()
    rounds.join("a", 0.0)
    rounds.fail(TIMEOUT)
    assert rounds.snapshot().waiting_for == ()
    assert rounds.snapshot().deadline is rounds.wake is None
    assert rounds.due(1e9) is Due.NOTHING
    rounds.join("a", 3 * TIMEOUT)
    assert rounds.snapshot().deadline == 4 * TIMEOUT


def test_a_sealed_round_stands_still() -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a", "b")
    rounds.seal(TIMEOUT)
    assert rounds.due(2 * TIMEOUT) is Due.NOTHING
    assert rounds.wake is None
    own = nonce("slow 0")
    assert not rounds.known("slow", own, 0)  # it may be received meanwhile …
    with pytest.raises(StateError, match="too late"):  # … and comes too late, or in time if the round is unsealed
        rounds.added("slow", own, TIMEOUT)
    with pytest.raises(StateError):
        rounds.seal(TIMEOUT)


def test_an_aggregate_that_cannot_be_stored_is_tried_again() -> None:
    rounds = make()
    add(rounds, "a", "b")
    waiting = rounds.wait(0, nonce("a 0"))
    now = 1.0
    pauses = []
    for _ in range(2):
        rounds.seal(now)
        rounds.unseal(now, TransportError("disk full"))
        assert not rounds.ready(waiting)  # there is time yet
        assert rounds.wake is not None
        assert rounds.due(now) is Due.NOTHING
        pauses.append(rounds.wake - now)
        now = rounds.wake
        assert rounds.due(now) is Due.COMPLETE
    assert pauses[0] < pauses[1]
    assert rounds.snapshot().attempt == Attempt(0, 1)
    now = TIMEOUT
    rounds.seal(now)
    rounds.unseal(now, TransportError("disk full"))
    with pytest.raises(TransportError, match="disk full"):
        rounds.ready(waiting)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.added, snapshot.waiting_for) == (Attempt(0, 2), ("a", "b"), ())
    assert rounds.wake is not None
    complete(rounds, rounds.wake)
    assert rounds.ready(waiting)


def test_a_pause_that_is_over_wakes_nobody() -> None:
    """Another site came during the pause: the round waits for it, until its deadline."""
    rounds = make()
    add(rounds, "a", "b")
    rounds.seal(0.0)
    rounds.unseal(0.0, TransportError("disk full"))
    rounds.join("c", 0.5)
    assert rounds.wake is not None
    now = rounds.wake
    assert now < TIMEOUT
    assert rounds.due(now) is Due.NOTHING
    assert rounds.wake == TIMEOUT


def test_goes_on_in_the_middle_of_a_round() -> None:
    rounds = make(max_clients=3)
    rounds.restore(4, ["a", "b", "b", "c", "d"], {"b", "d"}, 5.0)
    snapshot = rounds.snapshot()
    assert snapshot.attempt == Attempt(0, 4)
    assert (snapshot.added, snapshot.skipped, snapshot.waiting_for) == ((), ("b",), ("a", "c"))
    assert snapshot.deadline == 5.0 + TIMEOUT
    add(rounds, "a", now=5.0)
    assert not rounds.ready(rounds.wait(0, nonce("a 0")))
    idle = make()
    idle.restore(2, [], [], 5.0)
    assert idle.snapshot().deadline is None


def test_an_update_that_was_lost_must_come_again() -> None:
    rounds = make()
    add(rounds, "a", "b")
    waiting = rounds.wait(0, nonce("a 0"))
    rounds.lost("a")
    with pytest.raises(StateError, match="upload it again"):
        rounds.ready(waiting)
    assert rounds.due(1.0) is Due.NOTHING
    assert rounds.snapshot().waiting_for == ("a",)
    add(rounds, "a")
    assert not rounds.ready(waiting)
    assert rounds.due(1.0) is Due.COMPLETE


def test_the_same_update_is_added_once() -> None:
    rounds = make()
    add(rounds, "a")
    assert rounds.known("a", nonce("a 0"), 0)
    with pytest.raises(StateError, match="twice"):
        rounds.added("a", nonce("a 0"), 0.0)
    assert rounds.snapshot().added == ("a",)


def test_a_retry_after_the_end_of_the_round_was_added_too() -> None:
    rounds = make()
    run_round(rounds, "a", "b")
    assert rounds.known("a", nonce("a 0"), 0)
    with pytest.raises(RoundMismatchError):
        rounds.known("b", nonce("a 0"), 0)


def test_another_update_of_the_same_site_is_a_duplicate() -> None:
    rounds = make()
    add(rounds, "a")
    with pytest.raises(DuplicateError, match="'a'"):
        rounds.known("a", nonce("other"), 0)


def test_another_site_with_the_same_nonce_is_a_duplicate() -> None:
    rounds = make()
    add(rounds, "a")
    with pytest.raises(DuplicateError, match="nonce"):
        rounds.known("b", nonce("a 0"), 0)


@pytest.mark.parametrize("round", [0, 2])
def test_another_round_is_refused(round: int) -> None:
    rounds = make()
    run_round(rounds, "a", "b")
    with pytest.raises(RoundMismatchError, match=f"of round {round}; round 1 is open"):
        rounds.known("c", nonce("c"), round)
    assert rounds.snapshot().added == ()


def test_the_roster_holds_max_clients() -> None:
    rounds = make(max_clients=2)
    rounds.join("a", 0.0)
    rounds.join("b", 0.0)
    rounds.join("a", 0.0)
    with pytest.raises(CapacityError, match="'c'"):
        rounds.join("c", 0.0)
    assert not rounds.known("c", nonce("c"), 0)
    with pytest.raises(CapacityError):
        rounds.added("c", nonce("c"), 0.0)
    assert rounds.snapshot().added == ()


def test_a_broken_upload_may_be_tried_again() -> None:
    rounds = make()
    assert not rounds.known("a", nonce("first"), 0)  # and nothing follows
    assert not rounds.known("a", nonce("first"), 0)
    assert not rounds.known("a", nonce("second"), 0)
    rounds.added("a", nonce("second"), 3.0)
    assert rounds.snapshot().added == ("a",)


def test_waiting_for_rounds_that_cannot_come() -> None:
    rounds = make()
    for _ in range(KEPT_ROUNDS + 1):
        run_round(rounds, "a", "b")
    assert rounds.snapshot().completed == (1, 2)
    with pytest.raises(RoundMismatchError, match="round 0 is not kept any more; kept are: 1, 2"):
        rounds.wait(0)
    with pytest.raises(RoundMismatchError, match="round 4 has not begun; round 3 is open"):
        rounds.wait(4)
    assert rounds.ready(rounds.wait(1))
    assert rounds.ready(rounds.wait(2, nonce("a site that missed the round")))
    assert not rounds.ready(rounds.wait(3))


def test_waiting_with_an_update_that_is_not_in_the_sum() -> None:
    rounds = make()
    with pytest.raises(StateError, match="upload it again"):
        rounds.wait(0, nonce("a 0"))


def test_goes_on_after_completed_rounds() -> None:
    completed = {n: {"a": nonce(f"a {n}"), "b": nonce(f"b {n}")} for n in (5, 6, 7)}
    rounds = Rounds(min_clients=2, max_clients=3, timeout=TIMEOUT, completed=completed)
    assert rounds.snapshot().attempt == Attempt(8, 1)
    assert rounds.snapshot().completed == (6, 7)
    assert rounds.known("a", nonce("a 7"), 7)


def test_ends_only_when_due() -> None:
    rounds = make()
    rounds.join("c", 0.0)
    add(rounds, "a")
    for step in (rounds.seal, rounds.complete, rounds.fail, lambda now: rounds.unseal(now, TransportError("full"))):
        with pytest.raises(StateError):
            step(1.0)
    assert rounds.snapshot().attempt == Attempt(0, 1)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        Rounds(min_clients=2, max_clients=3, timeout=timeout)


def test_a_round_has_two_stages() -> None:
    rounds = make(calibrated=True)
    for site in ("a", "b", "c"):
        rounds.join(site, 0.0)
    add(rounds, "a", "b")
    scales, aggregate = rounds.wait(0, nonce("a 0"), "calibration"), rounds.wait(0)
    assert rounds.due(1.0) is Due.NOTHING
    add(rounds, "c", now=1.0)
    assert not rounds.ready(scales)
    complete(rounds, 2.0)
    assert rounds.ready(scales)
    assert not rounds.ready(aggregate)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.deadline) == (Attempt(0, 1, "update"), 2.0 + TIMEOUT)
    assert (snapshot.added, snapshot.waiting_for, snapshot.scaled, snapshot.completed) == (
        (),
        ("a", "b", "c"),
        (0,),
        (),
    )
    run_round(rounds, "a", "b", "c", now=3.0)
    assert rounds.ready(aggregate)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.deadline) == (Attempt(1, 1, "calibration"), 3.0 + TIMEOUT)
    assert (snapshot.waiting_for, snapshot.scaled, snapshot.completed) == (("a", "b", "c"), (0,), (0,))


def test_who_did_not_calibrate_is_waited_for_all_the_same() -> None:
    """It has trained longer than the calibration has waited, and its update counts: but for one timeout more."""
    rounds = make(max_clients=3, calibrated=True)
    rounds.join("slow", 0.0)
    add(rounds, "a", "b")
    assert rounds.due(TIMEOUT) is Due.COMPLETE
    complete(rounds, TIMEOUT)
    assert rounds.snapshot().waiting_for == ("a", "b", "slow")
    with pytest.raises(CapacityError, match="'late'"):
        rounds.added("late", nonce("late"), TIMEOUT)
    add(rounds, "a", "b", now=TIMEOUT)
    assert rounds.due(2 * TIMEOUT - 1) is Due.NOTHING
    assert rounds.due(2 * TIMEOUT) is Due.COMPLETE
    complete(rounds, 2 * TIMEOUT)
    assert rounds.snapshot().waiting_for == ("a", "b")  # who gave nothing at all is not waited for any more


def test_who_skips_a_round_skips_both_stages() -> None:
    rounds = make(calibrated=True)
    rounds.skip("idle", 0, 0.0)
    add(rounds, "a", "b")
    complete(rounds)
    snapshot = rounds.snapshot()
    assert (snapshot.skipped, snapshot.waiting_for) == (("idle",), ("a", "b"))
    run_round(rounds, "a", "b")
    snapshot = rounds.snapshot()
    assert (snapshot.skipped, snapshot.waiting_for) == ((), ("a", "b", "idle"))


def test_who_has_calibrated_may_skip_its_update() -> None:
    """In either stage; what it calibrated stays in the sum."""
    rounds = make(calibrated=True)
    rounds.join("slow", 0.0)
    add(rounds, "a", "b", "c")
    assert rounds.skip("a", 0, 0.0)
    assert not rounds.skip("a", 0, 0.0)
    snapshot = rounds.snapshot()
    assert (snapshot.added, snapshot.skipped, snapshot.waiting_for) == (("a", "b", "c"), ("a",), ("slow",))
    rounds.skip("slow", 0, 0.0)
    complete(rounds)
    snapshot = rounds.snapshot()
    assert (snapshot.skipped, snapshot.waiting_for) == (("a", "slow"), ("b", "c"))
    add(rounds, "b")
    assert rounds.skip("c", 0, 0.0)
    with pytest.raises(DuplicateError, match="'b' skips round 0"):
        rounds.skip("b", 0, 0.0)
    assert rounds.due(1.0) is Due.NOTHING  # one update is no sum
    add(rounds, "a")
    assert rounds.snapshot().skipped == ("c", "slow")
    assert rounds.due(1.0) is Due.COMPLETE


def test_a_calibration_without_quorum_is_repeated() -> None:
    rounds = make(calibrated=True)
    rounds.join("slow", 0.0)
    add(rounds, "a")
    rounds.skip("a", 0, 0.0)
    waiting = [rounds.wait(0, nonce("a 0"), "calibration"), rounds.wait(0)]
    rounds.fail(TIMEOUT)
    for one in waiting:
        with pytest.raises(QuorumError, match="round 0 has 1 of at least 2 calibrations after 10 s; it goes on"):
            rounds.ready(one)
    snapshot = rounds.snapshot()
    assert snapshot.attempt == Attempt(0, 2, "calibration")
    assert (snapshot.added, snapshot.skipped, snapshot.waiting_for) == (("a",), ("a",), ())
    assert rounds.known("a", nonce("a 0"), 0, "calibration")
    add(rounds, "b", now=TIMEOUT)
    complete(rounds, TIMEOUT)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.skipped) == (Attempt(0, 1, "update"), ("a",))  # attempts count by stages


def test_updates_without_quorum_need_no_other_calibration() -> None:
    rounds = make(calibrated=True)
    run_round(rounds, "a", "b")
    add(rounds, "a")
    rounds.fail(TIMEOUT)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.scaled) == (Attempt(0, 2, "update"), (0,))
    assert (snapshot.added, snapshot.waiting_for) == (("a",), ())
    assert rounds.ready(rounds.wait(0, stage="calibration"))


def test_a_round_lapses_in_either_stage() -> None:
    rounds = make(calibrated=True)
    rounds.skip("a", 0, 0.0)
    assert rounds.due(TIMEOUT) is Due.LAPSE
    rounds.lapse(TIMEOUT)
    assert rounds.snapshot().attempt == Attempt(0, 1, "calibration")
    run_round(rounds, "a", "b", now=TIMEOUT)
    rounds.skip("a", 0, TIMEOUT)
    rounds.skip("b", 0, TIMEOUT)
    assert rounds.due(2 * TIMEOUT) is Due.LAPSE
    rounds.lapse(2 * TIMEOUT)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.waiting_for, snapshot.deadline) == (Attempt(0, 1, "update"), (), None)


def test_what_belongs_to_the_other_stage_is_refused() -> None:
    rounds = make(calibrated=True)
    with pytest.raises(ScalesMismatchError, match="the update of 'a' is of round 0, which has no scales yet: upload"):
        rounds.known("a", nonce("update"), 0)
    with pytest.raises(StateError, match="the update is not in the sum of round 0; upload it again"):
        rounds.wait(0, nonce("update"))
    run_round(rounds, "a", "b")
    assert rounds.known("a", nonce("a 0"), 0, "calibration")  # a retry
    for own in (nonce("another"), nonce("b 0")):
        with pytest.raises(RoundMismatchError, match="the calibration of 'a' is of round 0, whose scales are there"):
            rounds.known("a", own, 0, "calibration")
    assert not rounds.known("a", nonce("a 0"), 0)  # in the sum of calibrations, not of updates
    run_round(rounds, "a", "b")
    assert rounds.known("a", nonce("a 0"), 0, "calibration")
    with pytest.raises(RoundMismatchError, match="the calibration of 'c' is of round 0; round 1 is open"):
        rounds.known("c", nonce("c"), 0, "calibration")
    add(rounds, "a")
    with pytest.raises(DuplicateError, match="another calibration of 'a' is already in the sum of round 1"):
        rounds.known("a", nonce("another"), 1, "calibration")
    with pytest.raises(DuplicateError, match="the nonce of the calibration of 'b'"):
        rounds.known("b", nonce("a 1"), 1, "calibration")


def test_waiting_for_scales_that_cannot_come() -> None:
    rounds = make(calibrated=True)
    with pytest.raises(StateError, match="the calibration is not in the sum of round 0; upload it again"):
        rounds.wait(0, nonce("a 0"), "calibration")
    for _ in range(2 * KEPT_ROUNDS + 2):
        run_round(rounds, "a", "b")
    run_round(rounds, "a", "b")
    assert rounds.snapshot().attempt == Attempt(3, 1, "update")
    assert (rounds.snapshot().completed, rounds.snapshot().scaled) == ((1, 2), (1, 2, 3))
    with pytest.raises(RoundMismatchError, match="the scales of round 0 are not kept any more; kept are: 1, 2, 3"):
        rounds.wait(0, b"", "calibration")
    with pytest.raises(RoundMismatchError, match="round 4 has not begun; round 3 is open"):
        rounds.wait(4, b"", "calibration")
    for round in (1, 2, 3):
        assert rounds.ready(rounds.wait(round, nonce("a site that missed it"), "calibration"))


@pytest.mark.parametrize("scaled", [False, True])
def test_goes_on_in_either_stage(scaled: bool) -> None:
    nonces = {site: nonce(f"{site} 0") for site in ("a", "b")}
    rounds = Rounds(
        min_clients=2, max_clients=3, timeout=TIMEOUT, calibrated=True, scaled={0: nonces} if scaled else {}
    )
    stage = "update" if scaled else "calibration"
    rounds.restore(3, ["a", "b", "c"], {"c"}, 5.0)
    snapshot = rounds.snapshot()
    assert (snapshot.attempt, snapshot.skipped, snapshot.waiting_for) == (Attempt(0, 3, stage), ("c",), ("a", "b"))
    if scaled:
        assert rounds.known("a", nonce("a 0"), 0, "calibration")
        assert rounds.ready(rounds.wait(0, nonce("a 0"), "calibration"))


SITES = ("a", "b", "c", "d")


class RoundHistories(RuleBasedStateMachine):
    """Random histories; the model is the list of everything that was added."""

    MIN_CLIENTS, MAX_CLIENTS = 2, 3
    CALIBRATED = False

    def __init__(self) -> None:
        super().__init__()
        self.rounds = make(self.MIN_CLIENTS, self.MAX_CLIENTS, calibrated=self.CALIBRATED)
        self.scaled: list[dict[str, bytes]] = []
        self.now = 0.0
        self.sum: dict[str, bytes] = {}
        self.skipped: set[str] = set()
        self.completed: list[dict[str, bytes]] = []
        self.failures: list[type[SecAggError]] = []
        self.mended = 0  # so many of them were of stages that have ended well since
        self.retry = 0.0
        self.waiting: list[tuple[Waiting, int]] = []
        self.nonces = 0

    @property
    def stage(self) -> str:
        return "calibration" if self.CALIBRATED and len(self.scaled) == len(self.completed) else "update"

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, TIMEOUT]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(site=st.sampled_from(SITES))
    def join(self, site: str) -> None:
        before = self.roster()
        if len(before) == self.MAX_CLIENTS and site not in before:
            with pytest.raises(CapacityError):
                self.rounds.join(site, self.now)
            assert self.roster() == before
        else:
            self.rounds.join(site, self.now)
            assert self.roster() == before | {site}
            self.skipped.discard(site)

    @rule(site=st.sampled_from(SITES), offset=st.sampled_from([-1, 0, 0, 0, 1]))
    def skip(self, site: str, offset: int) -> None:
        before, full = self.roster(), len(self.roster() | {site}) > self.MAX_CLIENTS
        try:
            new = self.rounds.skip(site, self.rounds.round + offset, self.now)
        except CapacityError:
            assert full
        except RoundMismatchError:
            assert offset == 1 or not self.completed
        except DuplicateError:
            assert site in self.sum
            assert self.stage == "update"
        else:
            assert new == (offset == 0 and site not in self.skipped)
            if new:
                self.skipped.add(site)
                assert self.roster() == before | {site}
                return
        assert self.roster() == before

    @rule(
        site=st.sampled_from(SITES),
        offset=st.sampled_from([-1, 0, 0, 0, 1]),
        breaks=st.booleans(),
        other=st.sampled_from([False, False, False, True]),
    )
    def upload(self, site: str, offset: int, breaks: bool, other: bool) -> None:
        self.nonces += 1
        stage = self.stage
        if other and self.CALIBRATED:
            stage = "update" if stage == "calibration" else "calibration"
        own = self.nonces.to_bytes(32, "big")
        round = self.rounds.round + offset
        before, full = self.sum.copy(), len(self.roster() | {site}) > self.MAX_CLIENTS
        try:
            already_added = self.rounds.known(site, own, round, stage)
        except RoundMismatchError:
            assert offset != 0 or (stage, self.stage) == ("calibration", "update")
        except ScalesMismatchError:
            assert (stage, self.stage) == ("update", "calibration")
        except DuplicateError:
            assert site in self.sum
        else:
            assert stage == self.stage
            assert not already_added
            assert offset == 0
            assert site not in self.sum
            if not breaks and not full:
                self.rounds.added(site, own, self.now)
                self.sum[site] = own
                self.skipped.discard(site)
                return
            if full:
                with pytest.raises(CapacityError):
                    self.rounds.added(site, own, self.now)
        assert self.sum == before
        assert self.rounds.snapshot().added == tuple(sorted(before))

    @precondition(lambda self: self.sum or self.completed)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        known = [("update", round, nonces) for round, nonces in enumerate(self.completed)][-KEPT_ROUNDS:]
        known += [("calibration", round, self.scaled[round]) for round in self.kept(self.scaled)]
        known.append((self.stage, len(self.completed), self.sum))
        stage, round, nonces = data.draw(st.sampled_from([item for item in known if item[2]]))
        site = data.draw(st.sampled_from(sorted(nonces)))
        assert self.rounds.known(site, nonces[site], round, stage)
        assert self.rounds.snapshot().added == tuple(sorted(self.sum))

    @rule(stage=st.sampled_from(["update", "calibration"]))
    def wait(self, stage: str) -> None:
        stage = stage if self.CALIBRATED else "update"
        self.waiting.append((self.rounds.wait(self.rounds.round, b"", stage), len(self.failures)))

    @precondition(lambda self: self.sum)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        site = data.draw(st.sampled_from(sorted(self.sum)))
        roster = self.roster()
        self.rounds.lost(site)
        del self.sum[site]
        assert self.roster() == roster

    @rule(stored=st.booleans())
    def settle(self, stored: bool) -> None:
        due, roster = self.rounds.due(self.now), self.roster()
        deadline = self.rounds.snapshot().deadline
        late = deadline is not None and self.now >= deadline
        if due is Due.NOTHING:
            waits = not late and (len(self.sum) < self.MIN_CLIENTS or roster != self.sum.keys() | self.skipped)
            assert waits or self.now < self.retry
            assert self.rounds.wake is None or self.rounds.wake > self.now
            return
        assert self.now >= self.retry
        if due is Due.FAIL:
            assert late
            assert len(self.sum) < self.MIN_CLIENTS
            assert self.sum or roster != self.skipped
            self.rounds.fail(self.now)
            self.failures.append(QuorumError)
        elif due is Due.LAPSE:
            assert late
            assert not self.sum
            assert roster == self.skipped
            attempt = self.rounds.snapshot().attempt
            self.rounds.lapse(self.now)
            assert self.rounds.snapshot().attempt == attempt
            self.failures.append(QuorumError)
        else:
            assert len(self.sum) >= self.MIN_CLIENTS
            assert late or roster == self.sum.keys() | self.skipped
            self.rounds.seal(self.now)
            if stored:
                calibration, self.mended = self.stage == "calibration", len(self.failures)
                self.rounds.complete(self.now)
                (self.scaled if calibration else self.completed).append(self.sum)
                assert self.roster() == (roster if calibration else self.sum.keys() | self.skipped)
                self.sum, self.skipped = {}, self.skipped if calibration else set()
                return
            self.rounds.unseal(self.now, TransportError("disk full"))
            assert self.rounds.wake is not None
            self.retry = self.rounds.wake
            assert self.retry > self.now
            if late:
                self.failures.append(TransportError)
        assert self.roster() == (self.sum.keys() if late else roster)  # what was added stays
        if late:
            self.skipped &= self.sum.keys()

    def kept(self, sums: list[dict[str, bytes]]) -> tuple[int, ...]:
        return tuple(range(max(0, len(self.completed) - KEPT_ROUNDS), len(sums)))

    def roster(self) -> set[str]:
        snapshot = self.rounds.snapshot()
        return {*snapshot.added, *snapshot.skipped, *snapshot.waiting_for}

    @invariant()
    def agrees_with_the_model(self) -> None:
        snapshot = self.rounds.snapshot()
        assert snapshot.attempt.round == len(self.completed)
        assert snapshot.added == tuple(sorted(self.sum))
        assert snapshot.skipped == tuple(sorted(self.skipped))
        assert snapshot.attempt.stage == self.rounds.stage == self.stage
        both = set(snapshot.added).intersection(snapshot.skipped)
        assert not both or self.stage == "calibration"
        assert len(self.roster()) == len((*snapshot.added, *snapshot.skipped, *snapshot.waiting_for)) - len(both)
        assert len(self.roster()) <= self.MAX_CLIENTS
        assert (snapshot.deadline is None) == (not self.roster())
        assert snapshot.completed == self.kept(self.completed)
        assert snapshot.scaled == self.kept(self.scaled)

    @invariant()
    def all_who_wait_get_what_is_theirs(self) -> None:
        for attempt, failures in self.waiting:
            outcome: bool | type[SecAggError]
            try:
                outcome = self.rounds.ready(attempt)
            except SecAggError as error:
                outcome = type(error)
            sums = self.completed if attempt.stage == "update" else self.scaled
            if attempt.round in self.kept(sums):
                assert outcome is True
            elif attempt.round < len(sums):
                assert outcome is RoundMismatchError
            elif len(self.failures) > max(failures, self.mended):
                assert outcome is self.failures[-1]
            else:
                assert outcome is False


class CalibratedRoundHistories(RoundHistories):
    CALIBRATED = True


RoundHistories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
CalibratedRoundHistories.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestRoundHistories = RoundHistories.TestCase
TestCalibratedRoundHistories = CalibratedRoundHistories.TestCase
