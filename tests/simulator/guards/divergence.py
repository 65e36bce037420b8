"""Guards of the digests."""

from __future__ import annotations

from replidict.protocol.peer_messages import DigestAt
from replidict.raft.divergence import Divergence, _Comparison
from replidict.raft.progress import Peer
from replidict.storage.scrubber import Scrubber
from tests.simulator import divergence_scenarios as stories
from tests.simulator.guards.guard import Replacements, guard


@guard("promise 15", scenario=stories.a_follower_applies_in_another_way)
def compare_digests() -> Replacements:
    """A node that applied a command in another way than the others goes on, and differs for ever."""

    def question(self: Divergence, peer: Peer) -> DigestAt | None:
        return None

    yield Divergence, "question", question


@guard("promise 15", scenario=stories.a_row_of_a_follower_is_flipped)
def tell_who_differs() -> Replacements:
    """The leader knows that a follower differs, and the follower does not."""

    def verdict(self: Divergence, peer: Peer) -> DigestAt | None:
        return None

    yield Divergence, "verdict", verdict


@guard("promise 15", scenario=stories.a_row_of_the_leader_is_flipped)
def stop_the_leader_too() -> Replacements:
    """A leader that differs from all others goes on to lead."""

    def judge(self: Divergence, index: int, comparison: _Comparison) -> None:
        comparison.digests[self._state.address] = next(reversed(comparison.digests.values()))
        original(self, index, comparison)

    original = Divergence._judge
    yield Divergence, "_judge", judge


@guard("promise 15", scenario=stories.a_leader_applies_in_another_way)
def believe_a_majority_only() -> Replacements:
    """Who differs from the leader stops, though it is the leader who is wrong."""

    def reached(self: Divergence) -> None:
        index, leader = self._state.last_applied, self._state.leader
        original(self)
        if self.differing and leader is not None:
            self._stop(index, self._known[index], self._leaders[index])

    original = Divergence.reached
    yield Divergence, "reached", reached


@guard("promise 15", scenario=stories.a_row_of_a_running_node_is_flipped)
def scrub() -> Replacements:
    """What is wrong in the file of a node that runs is not known before it is started anew."""

    def step(self: Scrubber) -> None:
        return None

    yield Scrubber, "step", step


@guard("promise 15", scenario=stories.a_row_of_a_running_node_is_flipped)
def hold_rows_against_memory() -> Replacements:
    """Of rows in the file only the checksums are looked at, and how many there are."""

    def differs(self: Scrubber, what: str) -> None:
        return None

    yield Scrubber, "_differs", differs


@guard("promise 15", scenario=stories.nobody_differs_under_load)
def compare_at_the_same_index() -> Replacements:
    """A follower tells the digest that it has when it is asked, and is compared with what it is not."""

    def hear_leader(self: Divergence, asked: DigestAt | None, agreed: DigestAt | None) -> None:
        original(self, None, agreed)
        if asked is not None:
            self._known[asked.index] = self._digest()
            self._answer = DigestAt(asked.index, self._known[asked.index])

    original = Divergence.hear_leader
    yield Divergence, "hear_leader", hear_leader
