"""The handshake: both ends prove that they hold the cluster's token, without showing it. Sans-I/O; no clock, no luck.

    client                                             host
      |  Hello(version, app, role, nonce, client ...)    |
      |------------------------------------------------->|  version, app
      |  Challenge(version, nonce, mac, incarnation)     |
      |<-------------------------------------------------|
      |  is this a host that holds my token?             |
      |  Proof(mac)                                      |
      |------------------------------------------------->|  is this one who holds my token?
      |                                                  |  session: registered, or still known?
      |  Welcome(client, terms)                          |
      |<-------------------------------------------------|

    client:  AWAITING_CHALLENGE --Challenge--> AWAITING_WELCOME --Welcome--> OPEN
    host:    AWAITING_HELLO --Hello--> AWAITING_PROOF --Proof--> ADMITTING --admitted--> OPEN
                                                         +------ coordinator --------------^
    either:  any state but OPEN --what is not expected, or Refused--> ENDED

Rules:
- A MAC is HMAC-SHA256 under the token over a label of its maker's side and *all* fields of Hello and Challenge. Both
  ends put in a nonce of their own, so nothing recorded earlier fits; the labels differ, so nothing said by one side can
  be sent back to it as the other side's proof.
- Before the proof a host says nothing but `Challenge` and `Refused`, asks no store, and keeps no more than a frame.
- Who does not hold the token learns that, and nothing else: not which side is wrong, nor how.
- An end gets messages and returns effects, in order; the shell (connection.py) performs them.
"""

from __future__ import annotations

import enum
import hmac
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

import msgspec

from ..sharding.messages import STRIPES_MAX
from .token import Token
from .wire import (
    ANY_APP,
    PROTOCOL_VERSION,
    REASON_CHARACTERS_MAX,
    Challenge,
    HandshakeMessage,
    Hello,
    Proof,
    Refused,
    Role,
    Welcome,
)

_HOST_LABEL = "atoll server"
_CLIENT_LABEL = "atoll client"

WRONG_TOKEN = "the two ends do not hold the same token: give this end the cluster's token file"  # noqa: S105 - a message


class Refusal(enum.IntEnum):
    """Why a connection was not opened. Sent as its number: never changes its meaning."""

    PROTOCOL = 1
    """The other end does not keep to the handshake: not Atoll, or a broken one."""
    VERSION = 2
    """The two speak different versions of the protocol."""
    APP = 3
    """Another app lives at this address."""
    TOKEN = 4
    """The tokens differ."""
    SESSION_EXPIRED = 5
    """The client's session is forgotten. It must register anew; what it lacks an answer for has an unknown outcome."""
    BUSY = 6
    """Not now: starting, full, or the store does not answer."""
    TIMEOUT = 7
    """The handshake took too long."""
    STRIPE = 8
    """A host of another of the app's databases lives at this address."""

    @property
    def temporary(self) -> bool:
        """The same Hello may succeed later: try again after a pause. The other refusals stay until somebody acts."""
        return self in (Refusal.BUSY, Refusal.TIMEOUT)


# ---- effects: what the shell is to do, in order --------------------------------------------------------------------


class Say(msgspec.Struct, frozen=True):
    """Send this message at once."""

    message: HandshakeMessage


class Admit(msgspec.Struct, frozen=True):
    """Register (0) or look up the client's session, then call `admitted` or `refuse`."""

    client: int


class Open(msgspec.Struct, frozen=True):
    """The connection is trusted from the next frame on."""

    welcome: Welcome


class End(msgspec.Struct, frozen=True):
    """Close the connection."""

    refusal: Refusal
    reason: str


Effect = Say | Admit | Open | End
Effects = list[Effect]


class HostTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is and offers, the same for all its connections."""

    app: str
    incarnation: int
    """0: listening already, but not yet registered; everybody is asked to come back."""
    shards: int
    stripe: int = 0
    """Which of the app's databases it works for,"""
    stripes: int = 1
    """and how many there are."""
    window_commands: int
    window_bytes: int
    shard_window: int
    mailbox_commands_max: int
    arguments_bytes_max: int
    frame_bytes_max: int
    software: str = ""


class ClientTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What a client says of itself."""

    app: str
    role: Role = "client"
    client: int = 0
    """The session to go on with; 0 asks for a new one."""
    generation: int = 0
    """Grows with each connection of that client."""
    frame_bytes_max: int
    """The longest frame that the client reads."""
    software: str = ""
    stripe: int | None = None
    """The one whose hosts it looks for; None: any."""


class _RefusedHere(Exception):
    """How a step says no."""

    def __init__(self, refusal: Refusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason


def host_mac(token: Token, hello: Hello, nonce: bytes, incarnation: int) -> bytes:
    """The host's proof, for its Challenge."""
    return token.sign(_transcript(_HOST_LABEL, hello, nonce, incarnation))


def client_mac(token: Token, hello: Hello, nonce: bytes, incarnation: int) -> bytes:
    """The client's proof. `nonce` and `incarnation` are those of the Challenge."""
    return token.sign(_transcript(_CLIENT_LABEL, hello, nonce, incarnation))


def _transcript(label: str, hello: Hello, nonce: bytes, incarnation: int) -> bytes:
    # MessagePack carries the length of every field: no two different transcripts are the same bytes.
    return msgspec.msgpack.encode((label, PROTOCOL_VERSION, hello, nonce, incarnation))


# ---- the host's end ------------------------------------------------------------------------------------------------


class HostState(enum.Enum):
    AWAITING_HELLO = "awaiting Hello"
    AWAITING_PROOF = "awaiting Proof"
    ADMITTING = "looking up the session"
    OPEN = "open"
    ENDED = "ended"


_HostStep = Callable[[Any, Any], tuple[HostState, Effects]]
_ClientStep = Callable[[Any, Any], Effects]


class HostHandshake:
    """One connection's handshake, as the host sees it."""

    def __init__(self, terms: HostTerms, token: Token, nonce: bytes) -> None:
        """`nonce`: 32 unpredictable bytes, used for this connection only."""
        self.state = HostState.AWAITING_HELLO
        self.hello: Hello | None = None
        """What the peer says of itself; true only once the state is past AWAITING_PROOF."""
        self._terms = terms
        self._token = token
        self._nonce = nonce

    @property
    def proved(self) -> bool:
        """The peer holds the token."""
        return self.state in (HostState.ADMITTING, HostState.OPEN)

    def received(self, message: HandshakeMessage) -> Effects:
        step = self._STEPS.get((self.state, type(message)))
        if step is None:
            return self.refuse(Refusal.PROTOCOL, f"{type(message).__name__} while {self.state.value}")
        accept, successors = step
        try:
            state, effects = accept(self, message)
        except _RefusedHere as no:
            return self.refuse(no.refusal, no.reason)
        assert state in successors, f"{self.state} led to {state}, which the table does not have"
        self.state = state
        return effects

    def admitted(self, client: int | None) -> Effects:
        """The store's word on the session: its client ID, None when it has expired. No effect on a handshake that is
        over."""
        if self.state is not HostState.ADMITTING:
            return []
        if client is None:
            return self.refuse(
                Refusal.SESSION_EXPIRED,
                "this client's session has expired: connect as a new client; "
                "the outcome of what it lacks an answer for is unknown",
            )
        self.state = HostState.OPEN
        return self._opening(client)

    def refuse(self, refusal: Refusal, reason: str) -> Effects:
        """End it for a reason from outside (a time-out, a full host, a store that does not answer). No effect on a
        handshake that is over."""
        if self.state in (HostState.OPEN, HostState.ENDED):
            return []
        self.state = HostState.ENDED
        reason = reason[:REASON_CHARACTERS_MAX]
        return [Say(Refused(refusal, reason)), End(refusal, reason)]

    def _hello(self, hello: Hello) -> tuple[HostState, Effects]:
        if hello.version != PROTOCOL_VERSION:
            raise _RefusedHere(
                Refusal.VERSION,
                f"protocol {hello.version} is not spoken here, only {PROTOCOL_VERSION}: "
                "install the same version of atoll on both sides",
            )
        if hello.app not in (self._terms.app, ANY_APP):
            raise _RefusedHere(
                Refusal.APP, f"app {hello.app!r} does not live here: check the address and the app's name"
            )
        if hello.stripe not in (0, self._terms.stripe + 1):
            raise _RefusedHere(
                Refusal.STRIPE,
                f"a host of database {self._terms.stripe + 1} of {self._terms.stripes} lives here, not of "
                f"{hello.stripe}: it was looked for at an old address",
            )
        if self._terms.incarnation == 0:
            raise _RefusedHere(Refusal.BUSY, "this host is starting: try again")
        self.hello = hello
        mac = host_mac(self._token, hello, self._nonce, self._terms.incarnation)
        challenge = Challenge(PROTOCOL_VERSION, self._nonce, mac, self._terms.incarnation)
        return HostState.AWAITING_PROOF, [Say(challenge)]

    def _proof(self, proof: Proof) -> tuple[HostState, Effects]:
        assert self.hello is not None
        expected = client_mac(self._token, self.hello, self._nonce, self._terms.incarnation)
        if not hmac.compare_digest(expected, proof.mac):
            raise _RefusedHere(Refusal.TOKEN, WRONG_TOKEN)
        if self.hello.role == "coordinator":
            return HostState.OPEN, self._opening(0)
        return HostState.ADMITTING, [Admit(self.hello.client)]

    def _refused(self, refused: Refused) -> tuple[HostState, Effects]:
        return HostState.ENDED, [_ended_by_peer(refused)]

    def _opening(self, client: int) -> Effects:
        terms = self._terms
        welcome = Welcome(
            client=client,
            incarnation=terms.incarnation,
            shards=terms.shards,
            window_commands=terms.window_commands,
            window_bytes=terms.window_bytes,
            shard_window=terms.shard_window,
            mailbox_commands_max=terms.mailbox_commands_max,
            arguments_bytes_max=terms.arguments_bytes_max,
            frame_bytes_max=terms.frame_bytes_max,
            software=terms.software,
            app=terms.app,
            stripe=terms.stripe,
            stripes=terms.stripes,
        )
        return [Say(welcome), Open(welcome)]

    _STEPS: ClassVar[Mapping[tuple[HostState, type], tuple[_HostStep, frozenset[HostState]]]] = {
        (HostState.AWAITING_HELLO, Hello): (_hello, frozenset({HostState.AWAITING_PROOF})),
        (HostState.AWAITING_PROOF, Proof): (_proof, frozenset({HostState.ADMITTING, HostState.OPEN})),
        (HostState.AWAITING_HELLO, Refused): (_refused, frozenset({HostState.ENDED})),
        (HostState.AWAITING_PROOF, Refused): (_refused, frozenset({HostState.ENDED})),
        (HostState.ADMITTING, Refused): (_refused, frozenset({HostState.ENDED})),
    }
    """Every transition that a message can cause: how it is checked, and where it may lead when it is accepted."""


# ---- the client's end ----------------------------------------------------------------------------------------------


class ClientState(enum.Enum):
    AWAITING_CHALLENGE = "awaiting Challenge"
    AWAITING_WELCOME = "awaiting Welcome"
    OPEN = "open"
    ENDED = "ended"


class ClientHandshake:
    """One connection's handshake, as the client sees it. Begin by sending `hello`."""

    def __init__(self, terms: ClientTerms, token: Token, nonce: bytes) -> None:
        """`nonce`: 32 unpredictable bytes, used for this connection only."""
        self.state = ClientState.AWAITING_CHALLENGE
        self.hello = Hello(
            version=PROTOCOL_VERSION,
            app=terms.app,
            role=terms.role,
            nonce=nonce,
            client=terms.client,
            generation=terms.generation,
            frame_bytes_max=terms.frame_bytes_max,
            software=terms.software,
            stripe=0 if terms.stripe is None else terms.stripe + 1,
        )
        self._token = token
        self._incarnation = 0

    def received(self, message: HandshakeMessage) -> Effects:
        step = self._STEPS.get((self.state, type(message)))
        if step is None:
            return self.refuse(Refusal.PROTOCOL, f"{type(message).__name__} while {self.state.value}")
        accept, successor = step
        try:
            effects = accept(self, message)
        except _RefusedHere as no:
            return self.refuse(no.refusal, no.reason)
        self.state = successor
        return effects

    def refuse(self, refusal: Refusal, reason: str) -> Effects:
        """End it for a reason from outside. No effect on a handshake that is over."""
        if self.state in (ClientState.OPEN, ClientState.ENDED):
            return []
        self.state = ClientState.ENDED
        reason = reason[:REASON_CHARACTERS_MAX]
        return [Say(Refused(refusal, reason)), End(refusal, reason)]

    def _challenge(self, challenge: Challenge) -> Effects:
        if challenge.version != PROTOCOL_VERSION:
            self._refuse_version(challenge.version)
        expected = host_mac(self._token, self.hello, challenge.nonce, challenge.incarnation)
        if not hmac.compare_digest(expected, challenge.mac):
            # Before our own proof: a host that cannot prove itself gets nothing made with the token.
            raise _RefusedHere(Refusal.TOKEN, WRONG_TOKEN)
        self._incarnation = challenge.incarnation
        return [Say(Proof(client_mac(self._token, self.hello, challenge.nonce, challenge.incarnation)))]

    def _welcome(self, welcome: Welcome) -> Effects:
        if welcome.incarnation != self._incarnation:
            raise _RefusedHere(Refusal.PROTOCOL, "Welcome of another incarnation than the Challenge")
        if self.hello.role != "coordinator" and (welcome.client == 0 or self.hello.client not in (0, welcome.client)):
            raise _RefusedHere(Refusal.PROTOCOL, "Welcome for another client than the one that said Hello")
        if welcome.shards == 0:
            raise _RefusedHere(Refusal.PROTOCOL, "Welcome to a cluster without shards")
        if not welcome.stripe < welcome.stripes <= min(welcome.shards, STRIPES_MAX):
            raise _RefusedHere(Refusal.PROTOCOL, "Welcome to a database that cannot be")
        if self.hello.stripe not in (0, welcome.stripe + 1):
            raise _RefusedHere(Refusal.PROTOCOL, "Welcome by a host of another database than the one looked for")
        return [Open(welcome)]

    def _refused(self, refused: Refused) -> Effects:
        return [_ended_by_peer(refused)]

    @staticmethod
    def _refuse_version(version: int) -> NoReturn:
        raise _RefusedHere(
            Refusal.VERSION,
            f"the host speaks protocol {version}, this client {PROTOCOL_VERSION}: "
            "install the same version of atoll on both sides",
        )

    _STEPS: ClassVar[Mapping[tuple[ClientState, type], tuple[_ClientStep, ClientState]]] = {
        (ClientState.AWAITING_CHALLENGE, Challenge): (_challenge, ClientState.AWAITING_WELCOME),
        (ClientState.AWAITING_WELCOME, Welcome): (_welcome, ClientState.OPEN),
        (ClientState.AWAITING_CHALLENGE, Refused): (_refused, ClientState.ENDED),
        (ClientState.AWAITING_WELCOME, Refused): (_refused, ClientState.ENDED),
    }
    """Every transition that a message can cause: how it is checked, and where it leads when it is accepted."""


def _ended_by_peer(refused: Refused) -> End:
    try:
        refusal = Refusal(refused.code)
    except ValueError:
        refusal = Refusal.PROTOCOL  # a newer peer's word: not temporary, as far as we can know
    return End(refusal, refused.reason[:REASON_CHARACTERS_MAX])
