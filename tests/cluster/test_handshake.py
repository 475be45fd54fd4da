"""The handshake on paper: messages in, whole lists of effects out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from wiring import CLIENT_TERMS, HOST_TERMS, OTHER_TOKEN, TOKEN

from atoll.cluster.handshake import (
    WRONG_TOKEN,
    Admit,
    ClientHandshake,
    ClientState,
    End,
    HostHandshake,
    HostState,
    Open,
    Refusal,
    Say,
    client_mac,
    host_mac,
)
from atoll.cluster.wire import ANY_APP, PROTOCOL_VERSION, Challenge, Hello, Proof, Refused, Welcome

CLIENT_NONCE = bytes([1]) * 32
HOST_NONCE = bytes([2]) * 32


def host(**changes: Any) -> HostHandshake:
    return HostHandshake(msgspec.structs.replace(HOST_TERMS, **changes), TOKEN, HOST_NONCE)


def client(token: Any = TOKEN, **changes: Any) -> ClientHandshake:
    return ClientHandshake(msgspec.structs.replace(CLIENT_TERMS, **changes), token, CLIENT_NONCE)


def welcome(client_id: int) -> Welcome:
    return Welcome(client_id, 7, 256, 4096, 1 << 20, 1024, 1000, 1 << 20, 1 << 24, app="bank")


def refusal(code: Refusal, reason: str) -> list[Any]:
    return [Say(Refused(code, reason)), End(code, reason)]


def said(effects: list[Any]) -> Any:
    assert isinstance(effects[0], Say)
    return effects[0].message


def test_a_new_client_is_registered_and_welcomed() -> None:
    """The whole exchange, effect by effect, at both ends."""
    ours, theirs = client(), host()
    hello = Hello(PROTOCOL_VERSION, "bank", "client", CLIENT_NONCE, 0, 0, 1 << 24)
    assert ours.hello == hello
    challenge = Challenge(PROTOCOL_VERSION, HOST_NONCE, host_mac(TOKEN, hello, HOST_NONCE, 7), 7)
    assert theirs.received(hello) == [Say(challenge)]
    proof = Proof(client_mac(TOKEN, hello, HOST_NONCE, 7))
    assert ours.received(challenge) == [Say(proof)]
    assert theirs.received(proof) == [Admit(0)]
    assert theirs.admitted(41) == [Say(welcome(41)), Open(welcome(41))]
    assert ours.received(welcome(41)) == [Open(welcome(41))]
    assert (ours.state, theirs.state) == (ClientState.OPEN, HostState.OPEN)


def test_a_client_of_any_database_learns_which_it_met() -> None:
    """S10: the host says which of how many it works for, and who looks for that one is let in as well."""
    told = msgspec.structs.replace(welcome(41), stripe=1, stripes=3)
    for wanted in (None, 1):
        ours, theirs = client(stripe=wanted), host(stripe=1, stripes=3)
        theirs.received(said(ours.received(said(theirs.received(ours.hello)))))
        assert theirs.admitted(41) == [Say(told), Open(told)]
        assert ours.received(told) == [Open(told)]


def test_who_looks_for_a_host_of_another_database_is_refused() -> None:
    """S10: before any proof, and no session is looked up: incarnations and clients of two databases have the same
    numbers. The refusal stays until somebody acts."""
    theirs = host(stripe=1, stripes=3)
    effects = theirs.received(client(stripe=0).hello)
    assert (said(effects).code, theirs.state) == (Refusal.STRIPE, HostState.ENDED)
    assert "database 2 of 3 lives here, not of 1" in said(effects).reason
    assert not Refusal.STRIPE.temporary


@pytest.mark.parametrize(
    ("wanted", "stripe", "stripes"), [(None, 3, 3), (None, 0, 0), (None, 0, 257), (0, 1, 3)], ids=str
)
def test_a_welcome_to_a_database_that_cannot_be_is_refused(wanted: int | None, stripe: int, stripes: int) -> None:
    """R03: one beyond their number, none at all, more than shards, and another than the one that was looked for."""
    ours, theirs = client(stripe=wanted), host()
    hello = msgspec.structs.replace(ours.hello, stripe=0)
    challenge = said(theirs.received(hello))
    forged = Challenge(PROTOCOL_VERSION, HOST_NONCE, host_mac(TOKEN, ours.hello, HOST_NONCE, 7), 7)
    ours.received(forged if wanted is not None else challenge)
    (_, end) = ours.received(msgspec.structs.replace(welcome(41), stripe=stripe, stripes=stripes))
    assert end.refusal is Refusal.PROTOCOL


def test_a_coordinator_needs_no_session() -> None:
    """It proves the token like everybody, and no store is asked."""
    ours, theirs = client(role="coordinator"), host()
    proof = said(ours.received(said(theirs.received(ours.hello))))
    assert theirs.received(proof) == [Say(welcome(0)), Open(welcome(0))]
    assert ours.received(welcome(0)) == [Open(welcome(0))]


def test_an_expired_session_is_told_so() -> None:
    """The client learns that it must register anew; it is not given another ID behind its back."""
    ours, theirs = client(client=12), host()
    proof = said(ours.received(said(theirs.received(ours.hello))))
    assert theirs.received(proof) == [Admit(12)]
    effects = theirs.admitted(None)
    assert effects == refusal(Refusal.SESSION_EXPIRED, effects[1].reason)
    assert "connect as a new client" in effects[1].reason
    assert ours.received(said(effects)) == [effects[1]]


def test_another_version_is_refused_with_what_to_do() -> None:
    """R03: wrong version. Said before anything is proved, as the proof itself may have changed."""
    hello = msgspec.structs.replace(client().hello, version=3)
    reason = "protocol 3 is not spoken here, only 2: install the same version of atoll on both sides"
    assert host().received(hello) == refusal(Refusal.VERSION, reason)


def test_a_host_of_another_version_is_refused() -> None:
    """The same seen from the client."""
    reason = "the host speaks protocol 3, this client 2: install the same version of atoll on both sides"
    assert client().received(Challenge(3, HOST_NONCE, bytes(32), 7)) == refusal(Refusal.VERSION, reason)


def test_another_app_is_refused_without_naming_ours() -> None:
    """Two apps at swapped addresses do not mix, and a stranger does not learn what lives here."""
    effects = host().received(client(app="shop").hello)
    assert effects == refusal(Refusal.APP, "app 'shop' does not live here: check the address and the app's name")


def test_a_client_that_asks_for_any_app_learns_which_one_it_reached() -> None:
    """It knows an address and a token, no name; the name comes in the Welcome, so only after the proof."""
    ours, theirs = client(app=ANY_APP), host()
    proof = said(ours.received(said(theirs.received(ours.hello))))
    assert theirs.received(proof) == [Admit(0)]
    assert said(theirs.admitted(41)).app == "bank"


def test_a_host_that_is_not_registered_yet_asks_to_come_back() -> None:
    """The listener is open before the incarnation is known."""
    effects = host(incarnation=0).received(client().hello)
    assert effects == refusal(Refusal.BUSY, "this host is starting: try again")
    assert Refusal.BUSY.temporary


def test_a_client_with_another_token_notices_and_proves_nothing() -> None:
    """R04: nothing made with the client's token reaches a host that does not hold it."""
    theirs = host()
    ours = client(OTHER_TOKEN)
    assert ours.received(said(theirs.received(ours.hello))) == refusal(Refusal.TOKEN, WRONG_TOKEN)


def test_a_wrong_proof_is_refused_and_nobody_is_asked() -> None:
    """R04: no session is looked up for a peer that does not hold the token, and it learns only that."""
    theirs = host()
    theirs.received(client().hello)
    assert theirs.received(Proof(client_mac(OTHER_TOKEN, client().hello, HOST_NONCE, 7))) == refusal(
        Refusal.TOKEN, WRONG_TOKEN
    )
    assert not theirs.proved


def test_a_replayed_proof_is_refused() -> None:
    """R04: the host's nonce is new in each connection, so a recorded exchange proves nothing."""
    hello = client().hello
    recorded = Proof(client_mac(TOKEN, hello, HOST_NONCE, 7))
    theirs = HostHandshake(HOST_TERMS, TOKEN, bytes([3]) * 32)
    theirs.received(hello)
    assert theirs.received(recorded) == refusal(Refusal.TOKEN, WRONG_TOKEN)


def test_a_replayed_challenge_is_refused() -> None:
    """R04: the client's nonce is new in each connection, so a recorded host proves nothing either."""
    recorded = said(host().received(client().hello))
    ours = ClientHandshake(CLIENT_TERMS, TOKEN, bytes([4]) * 32)
    assert ours.received(recorded) == refusal(Refusal.TOKEN, WRONG_TOKEN)


def test_a_hosts_own_proof_sent_back_is_refused() -> None:
    """R04: a reflection attack. Each side's MAC carries its side, so one side's words never pass as the other's."""
    theirs = host()
    challenge = said(theirs.received(client().hello))
    assert theirs.received(Proof(challenge.mac)) == refusal(Refusal.TOKEN, WRONG_TOKEN)


def test_a_second_connection_is_no_oracle_for_the_first() -> None:
    """R04: what a host signs for a peer that sends it a host's nonce is still signed as a host."""
    first, second = host(), HostHandshake(HOST_TERMS, TOKEN, bytes([5]) * 32)
    challenge = said(first.received(client().hello))
    borrowed = said(second.received(msgspec.structs.replace(client().hello, nonce=challenge.nonce)))
    assert first.received(Proof(borrowed.mac)) == refusal(Refusal.TOKEN, WRONG_TOKEN)


@pytest.mark.parametrize("field", ["role", "client", "generation", "frame_bytes_max", "software"])
def test_every_field_of_hello_is_under_the_proof(field: str) -> None:
    """R04: whoever changes a Hello on its way makes the proof worthless."""
    hello = client().hello
    changed = {"role": "coordinator", "software": "other"}.get(field, 99)
    forged = msgspec.structs.replace(hello, **{field: changed})
    theirs = host()
    theirs.received(forged)
    assert theirs.received(Proof(client_mac(TOKEN, hello, HOST_NONCE, 7)))[1] == End(Refusal.TOKEN, WRONG_TOKEN)


@pytest.mark.parametrize("state", list(HostState))
def test_a_host_refuses_what_it_does_not_expect(state: HostState) -> None:
    """R03: every message that the table does not have ends an unfinished handshake, and has no effect on a finished one."""
    hello = client().hello
    messages = [
        hello,
        Challenge(PROTOCOL_VERSION, HOST_NONCE, bytes(32), 7),
        Proof(bytes(32)),
        welcome(1),
        Refused(6, "no"),
    ]
    for message in messages:
        theirs = host()
        theirs.hello = hello
        theirs.state = state
        if (state, type(message)) in theirs._STEPS:
            continue
        effects = theirs.received(message)
        if state in (HostState.OPEN, HostState.ENDED):
            assert effects == []
        else:
            assert effects == refusal(Refusal.PROTOCOL, f"{type(message).__name__} while {state.value}")


def test_a_client_refuses_a_welcome_without_a_challenge() -> None:
    """R04: a host that has not proved the token is not believed."""
    reason = "Welcome while awaiting Challenge"
    assert client().received(welcome(41)) == refusal(Refusal.PROTOCOL, reason)


@pytest.mark.parametrize(
    ("mine", "changes", "problem"),
    [
        (0, {"client": 0}, "another client"),
        (12, {"client": 13}, "another client"),
        (0, {"incarnation": 8}, "another incarnation"),
        (0, {"shards": 0}, "without shards"),
    ],
)
def test_a_client_checks_the_terms(mine: int, changes: dict[str, int], problem: str) -> None:
    """Terms that cannot be are refused, and not worked with."""
    ours, theirs = client(client=mine), host()
    ours.received(said(theirs.received(ours.hello)))
    effects = ours.received(msgspec.structs.replace(welcome(41), **changes))
    assert isinstance(effects[1], End)
    assert effects[1].refusal is Refusal.PROTOCOL
    assert problem in effects[1].reason


def test_a_late_word_of_the_store_changes_nothing() -> None:
    """The peer left while its session was looked up."""
    ours, theirs = client(), host()
    theirs.received(said(ours.received(said(theirs.received(ours.hello)))))
    assert theirs.received(Refused(Refusal.TIMEOUT, "too slow")) == [End(Refusal.TIMEOUT, "too slow")]
    assert theirs.admitted(41) == []


def test_a_refusal_of_a_newer_peer_is_taken_for_a_permanent_one() -> None:
    """Its number is not known here: repeating is not promised to help."""
    assert client().received(Refused(99, "new")) == [End(Refusal.PROTOCOL, "new")]
