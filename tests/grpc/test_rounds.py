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
    SecAggError,
    StateError,
    TransportError,
)
from secagg.integrations.grpc.rounds import KEPT_ROUNDS, Admission, Attempt, Due, Rounds

TIMEOUT = 10.0


def make(min_clients: int = 2, max_clients: int = 4) -> Rounds:
    return Rounds(min_clients=min_clients, max_clients=max_clients, timeout=TIMEOUT)


def nonce(text: str) -> bytes:
    return text.encode().ljust(32, b".")


def add(rounds: Rounds, *sites: str, now: float = 0.0) -> None:
    for site in sites:
        own = nonce(f"{site} {rounds.round}")
        assert rounds.admit(site, own, rounds.round, now) is Admission.ADD
        rounds.added(site, own, now)


def run_round(rounds: Rounds, *sites: str, now: float = 0.0) -> None:
    add(rounds, *sites, now=now)
    rounds.complete(now)


def test_closes_when_all_who_joined_were_added() -> None:
    rounds = make()
    for site in ("a", "b", "c"):
        rounds.join(site, 0.0)
    add(rounds, "a", "b")
    assert rounds.due(1.0) is Due.NOTHING
    assert rounds.snapshot().waiting_for == ("c",)
    add(rounds, "c")
    assert rounds.due(1.0) is Due.COMPLETE
    rounds.complete(1.0)
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
    assert rounds.deadline is None
    assert rounds.due(1e9) is Due.NOTHING
    rounds.join("a", 5.0)
    rounds.join("b", 6.0)
    assert rounds.deadline == 5.0 + TIMEOUT


def test_at_the_timeout_it_closes_without_the_missing() -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a", "b")
    assert rounds.due(TIMEOUT) is Due.COMPLETE
    rounds.complete(TIMEOUT)
    assert rounds.snapshot().waiting_for == ("a", "b")


@pytest.mark.parametrize("call", ["join", "upload", "late upload"])
def test_a_site_that_missed_a_round_is_back_with_its_next_call(call: str) -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a", "b")
    rounds.complete(TIMEOUT)
    if call == "join":
        rounds.join("slow", TIMEOUT)
    elif call == "upload":
        assert rounds.admit("slow", nonce("x"), 1, TIMEOUT) is Admission.ADD
    else:
        with pytest.raises(RoundMismatchError, match="round 0; round 1 is open"):
            rounds.admit("slow", nonce("x"), 0, TIMEOUT)
    assert rounds.snapshot().waiting_for == ("a", "b", "slow")


def test_below_min_clients_at_the_timeout_the_round_is_tried_again() -> None:
    rounds = make()
    rounds.join("slow", 0.0)
    add(rounds, "a")
    waiting = rounds.wait(0, nonce("a 0"))
    assert not rounds.ready(waiting)
    rounds.fail(TIMEOUT)
    with pytest.raises(QuorumError, match="1 of at least 2"):
        rounds.ready(waiting)
    with pytest.raises(QuorumError):  # who uploaded, but asks only now
        rounds.wait(0, nonce("a 0"))
    snapshot = rounds.snapshot()
    assert snapshot.attempt == Attempt(0, 2)
    assert snapshot.added == ()
    assert snapshot.waiting_for == ("a",)
    add(rounds, "a", "b", now=TIMEOUT)  # the same update again: the sum began anew
    assert not rounds.ready(rounds.wait(0, nonce("a 0")))
    rounds.complete(TIMEOUT)
    assert rounds.ready(rounds.wait(0))
    assert rounds.ready(waiting)


def test_an_attempt_without_any_update_stops_the_clock() -> None:
    rounds = make()
    rounds.join("a", 0.0)
    rounds.fail(TIMEOUT)
    assert rounds.snapshot().waiting_for == ()
    assert rounds.deadline is None
    assert rounds.due(1e9) is Due.NOTHING


def test_another_failure_is_told_to_those_who_wait() -> None:
    rounds = make()
    add(rounds, "a", "b")
    waiting = rounds.wait(0, nonce("a 0"))
    rounds.fail(1.0, TransportError("disk full"))
    with pytest.raises(TransportError, match="disk full"):
        rounds.ready(waiting)
    assert rounds.snapshot().waiting_for == ("a", "b")


def test_the_same_update_is_added_once() -> None:
    rounds = make()
    add(rounds, "a")
    assert rounds.admit("a", nonce("a 0"), 0, 0.0) is Admission.ALREADY_ADDED
    with pytest.raises(StateError, match="twice"):
        rounds.added("a", nonce("a 0"), 0.0)
    assert rounds.snapshot().added == ("a",)


def test_a_retry_after_the_end_of_the_round_was_added_too() -> None:
    rounds = make()
    run_round(rounds, "a", "b")
    assert rounds.admit("a", nonce("a 0"), 0, 0.0) is Admission.ALREADY_ADDED
    with pytest.raises(RoundMismatchError):
        rounds.admit("b", nonce("a 0"), 0, 0.0)


def test_another_update_of_the_same_site_is_a_duplicate() -> None:
    rounds = make()
    add(rounds, "a")
    with pytest.raises(DuplicateError, match="'a'"):
        rounds.admit("a", nonce("other"), 0, 0.0)


def test_another_site_with_the_same_nonce_is_a_duplicate() -> None:
    rounds = make()
    add(rounds, "a")
    with pytest.raises(DuplicateError, match="nonce"):
        rounds.admit("b", nonce("a 0"), 0, 0.0)


@pytest.mark.parametrize("round", [0, 2])
def test_another_round_is_refused(round: int) -> None:
    rounds = make()
    run_round(rounds, "a", "b")
    with pytest.raises(RoundMismatchError, match=f"of round {round}; round 1 is open"):
        rounds.admit("c", nonce("c"), round, 0.0)
    assert rounds.snapshot().added == ()


def test_the_roster_holds_max_clients() -> None:
    rounds = make(max_clients=2)
    rounds.join("a", 0.0)
    rounds.join("b", 0.0)
    rounds.join("a", 0.0)
    with pytest.raises(CapacityError, match="'c'"):
        rounds.join("c", 0.0)
    with pytest.raises(CapacityError):
        rounds.admit("c", nonce("c"), 0, 0.0)


def test_a_broken_upload_may_be_tried_again() -> None:
    rounds = make()
    assert rounds.admit("a", nonce("first"), 0, 0.0) is Admission.ADD  # and nothing follows
    assert rounds.admit("a", nonce("first"), 0, 1.0) is Admission.ADD
    assert rounds.admit("a", nonce("second"), 0, 2.0) is Admission.ADD
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
    assert rounds.admit("a", nonce("a 7"), 7, 0.0) is Admission.ALREADY_ADDED


def test_ends_only_when_due() -> None:
    rounds = make()
    rounds.join("c", 0.0)
    add(rounds, "a")
    with pytest.raises(StateError):
        rounds.complete(1.0)
    with pytest.raises(StateError):
        rounds.fail(1.0)
    assert rounds.snapshot().attempt == Attempt(0, 1)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_timeout_must_be_positive(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout"):
        Rounds(min_clients=2, max_clients=3, timeout=timeout)


SITES = ("a", "b", "c", "d")


class RoundHistories(RuleBasedStateMachine):
    """Random histories; the model is the list of everything that was added."""

    MIN_CLIENTS, MAX_CLIENTS = 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.rounds = make(self.MIN_CLIENTS, self.MAX_CLIENTS)
        self.now = 0.0
        self.sum: dict[str, bytes] = {}
        self.completed: list[dict[str, bytes]] = []
        self.failures = 0
        self.waiting: list[tuple[Attempt, int]] = []
        self.nonces = 0

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

    @rule(site=st.sampled_from(SITES), offset=st.sampled_from([-1, 0, 0, 0, 1]), breaks=st.booleans())
    def upload(self, site: str, offset: int, breaks: bool) -> None:
        self.nonces += 1
        own = self.nonces.to_bytes(32, "big")
        round = self.rounds.round + offset
        before, full = self.sum.copy(), len(self.roster() | {site}) > self.MAX_CLIENTS
        try:
            admission = self.rounds.admit(site, own, round, self.now)
        except CapacityError:
            assert full
        except RoundMismatchError:
            assert offset != 0
        except DuplicateError:
            assert site in self.sum
        else:
            assert admission is Admission.ADD
            assert offset == 0
            assert site not in self.sum
            assert not full
            if not breaks:
                self.rounds.added(site, own, self.now)
                self.sum[site] = own
                return
        assert self.sum == before
        assert self.rounds.snapshot().added == tuple(sorted(before))

    @precondition(lambda self: self.sum or self.completed)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        known = [(len(self.completed), self.sum), *list(enumerate(self.completed))[-KEPT_ROUNDS:]]
        round, nonces = data.draw(st.sampled_from([item for item in known if item[1]]))
        site = data.draw(st.sampled_from(sorted(nonces)))
        assert self.rounds.admit(site, nonces[site], round, self.now) is Admission.ALREADY_ADDED
        assert self.rounds.snapshot().added == tuple(sorted(self.sum))

    @rule()
    def wait(self) -> None:
        self.waiting.append((self.rounds.wait(self.rounds.round), self.failures))

    @rule()
    def settle(self) -> None:
        due, roster = self.rounds.due(self.now), self.roster()
        deadline = self.rounds.deadline
        late = deadline is not None and self.now >= deadline
        if due is Due.COMPLETE:
            assert len(self.sum) >= self.MIN_CLIENTS
            assert late or roster == self.sum.keys()
            self.rounds.complete(self.now)
            self.completed.append(self.sum)
        elif due is Due.FAIL:
            assert late
            assert len(self.sum) < self.MIN_CLIENTS
            self.rounds.fail(self.now)
            self.failures += 1
        else:
            assert not late
            assert len(self.sum) < self.MIN_CLIENTS or roster != self.sum.keys()
            return
        assert self.roster() == self.sum.keys()
        self.sum = {}

    def roster(self) -> set[str]:
        snapshot = self.rounds.snapshot()
        return {*snapshot.added, *snapshot.waiting_for}

    @invariant()
    def agrees_with_the_model(self) -> None:
        snapshot = self.rounds.snapshot()
        assert snapshot.attempt.round == len(self.completed)
        assert snapshot.added == tuple(sorted(self.sum))
        assert not {*snapshot.added} & {*snapshot.waiting_for}
        assert len(self.roster()) <= self.MAX_CLIENTS
        assert (snapshot.deadline is None) == (not self.roster())
        first = max(0, len(self.completed) - KEPT_ROUNDS)
        assert snapshot.completed == tuple(range(first, len(self.completed)))

    @invariant()
    def all_who_wait_get_what_is_theirs(self) -> None:
        for attempt, failures in self.waiting:
            outcome: bool | type[SecAggError]
            try:
                outcome = self.rounds.ready(attempt)
            except SecAggError as error:
                outcome = type(error)
            done = len(self.completed) - attempt.round
            if done > KEPT_ROUNDS:
                assert outcome is RoundMismatchError
            elif done > 0:
                assert outcome is True
            elif self.failures > failures:
                assert outcome is QuorumError
            else:
                assert outcome is False


RoundHistories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRoundHistories = RoundHistories.TestCase
