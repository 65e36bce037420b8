"""What proves that the process which led has ended, and what follows from it, as tables."""

from __future__ import annotations

import pytest

from replidict.protocol.peer_messages import RequestVote, VoteReply
from replidict.raft.role import Role
from tests.raft_parts import OPTIONS, TIMEOUT, Parts, a_node

Seen = tuple[str, ...]
"""What befell the connections with the others: "closed b", "refused b", "connected b", or "led by b"; "closed b?" where
b may hold a lease."""


def see(a: Parts, *seen: str) -> None:
    for each in seen:
        what, name = each.rsplit(" ", 1)
        peer = a.peer(name.rstrip("?"))
        if what == "led by":
            a.elections.follow(peer, a.state.term + 1)
        elif what == "connected":
            peer.connected = True
        elif what == "closed":
            peer.connected = False
            a.leader_death.on_closed(peer, name.endswith("?"))
        else:
            a.leader_death.on_refused(peer)


@pytest.mark.parametrize(
    ("seen", "dead"),
    [
        (("closed b", "refused b"), True),
        # One half is none: its process may live, and have closed this one connection, or nobody may answer for long.
        (("closed b",), False),
        (("refused b",), False),
        (("refused b", "closed b"), False),
        # About another member than the leader.
        (("closed c", "refused c"), False),
        (("closed b", "refused c"), False),
        # It may read under a lease: its voters have promised their silence for a time.
        (("closed b?", "refused b"), False),
        # It is connected again.
        (("closed b", "connected b", "refused b"), False),
        # Another one leads meanwhile, or the same one in a later term.
        (("closed b", "led by c", "refused b"), False),
        (("closed b", "led by c", "led by b", "refused b"), False),
        (("closed b", "led by b", "refused b"), False),
    ],
)
def test_evidence(seen: Seen, dead: bool) -> None:
    """The present leader's process has ended when it has closed its connection and a later call was refused, if it
    reads under no lease; only then is it given up before its election timeout is over."""
    with a_node("11", term=5) as a:
        see(a, "led by b", *seen)
        term = a.state.term
        assert a.elections.leader_is_alive() != dead
        assert (a.elections.next_deadline() < a.now + OPTIONS.heartbeat / 2) == dead
        assert a.state.leader == (None if dead else "c:1" if "led by c" in seen and "led by b" not in seen else "b:1")
        assert (a.state.term, a.state.role) == (term, Role.FOLLOWER)


@pytest.mark.parametrize(("seen", "probed"), [("closed b", ["b"]), ("closed b?", []), ("closed c", [])])
def test_who_is_probed(seen: str, probed: list[str]) -> None:
    """Only a leader whose end would say something is called when it has closed its connection."""
    with a_node("11", term=5) as a:
        see(a, "led by b", seen)
        assert a.network.probed == probed


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize(("seen", "granted"), [((), False), (("closed b",), False), (("closed b", "refused b"), True)])
def test_a_voter_grants_what_it_has_seen_itself(seen: Seen, granted: bool, pre: bool) -> None:
    """A candidate that asks before the time gets the vote, or the promise of one, of who has seen the leader end."""
    with a_node("11", term=5) as a:
        see(a, "led by b", *seen)
        asked = 7
        request = RequestVote(asked - pre, 2, 1, pre)
        (reply,) = a.hear(a.elections.on_request_vote, "c", request)
        assert isinstance(reply, VoteReply) and (reply.granted, reply.asked) == (granted, asked)
        assert a.state.term == (7 if granted and not pre else 6)


def test_who_has_promised_a_vote_lets_the_other_stand_first() -> None:
    """Two that have seen the same and stood at once would split the votes of three."""
    with a_node("11", term=5) as a:
        see(a, "led by b", "closed b", "refused b")
        a.hear(a.elections.on_request_vote, "c", RequestVote(6, 2, 1, True))
        a.now += OPTIONS.heartbeat
        a.elections.tick()
        assert a.said("c") == [VoteReply(6, True, True, 7)]
        a.now += OPTIONS.heartbeat
        a.elections.tick()
        assert a.said("c")[1:] == [RequestVote(6, 2, 1, True)]


@pytest.mark.parametrize(("dead_for", "waits"), [(0.0, OPTIONS.heartbeat), (1.0, TIMEOUT)])
def test_a_split_vote_is_soon_repeated(dead_for: float, waits: float) -> None:
    """Who has seen the leader end and was not elected asks again after a heartbeat or two, but after an election
    timeout in vain it waits as long as ever: votes may take that long here."""
    with a_node("11", term=5) as a:
        see(a, "led by b", "closed b", "refused b")
        a.now += dead_for * TIMEOUT
        a.elections._stand(transfer=False)
        assert waits <= a.elections.next_deadline() - a.now < 2 * waits


def test_who_is_heard_again_leads_as_before() -> None:
    """Evidence was wrong, as a firewall can make it look: whoever was called dead and speaks is followed, and waited
    for."""
    with a_node("11", term=5) as a:
        see(a, "led by b", "closed b", "refused b")
        a.elections.follow(a.peer("b"), 6)
        assert (a.state.leader, a.elections.leader_is_alive()) == ("b:1", True)
        assert a.elections.next_deadline() >= a.now + TIMEOUT
