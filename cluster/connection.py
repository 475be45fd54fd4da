"""A connection: the asyncio shell around frames and handshake, the same at both ends. Decides nothing about commands.

    connecting --handshake--> open --close / Goodbye / silence / broken frame--> closing --linger--> closed
        +--refused, late, broken frame----------------------------------------------^

Rules:
- What is sent during one tick of the loop leaves together (twice the throughput, measured): in one frame, or at every
  `_FRAME_MESSAGES` in one of its own, so that the peer begins with the first while the rest is still being made.
- Silence: after each `heartbeat_s` without a byte from the peer a Ping leaves; after `PINGS_UNANSWERED_MAX` of them the
  peer counts as dead. An end that does not read for a while (see below) says so by pinging: it lives.
- Memory: what the peer does not take is kept up to `window_bytes + frame_bytes_max` (a window of answers, and the frame
  that goes over it), then the peer is dropped; it comes back and asks again. From `_WRITE_HIGH_BYTES` on a host stops
  reading from that peer, so that it cannot ask for more. A client goes on reading: if both stopped, both would wait.
- The last words: whoever closes says why (Goodbye, or Refused during the handshake), half-closes, and drops what still
  comes in for `LINGER_S`. Closing at once would answer the peer's unread bytes with a reset, which destroys the reason.

The two ends are `Link` (link.py, the client's) and `ServerConnection` (server.py, the host's).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Any, cast

from ..actors.settings import Settings
from ..actors.world import World
from ..sharding.messages import Answer, Goodbye, Message, Ping, Pong
from .handshake import ClientHandshake, Effects, End, HostHandshake, Open, Refusal, Say
from .wire import REASON_CHARACTERS_MAX, AnyMessage, Decoder, FrameReader, ProtocolError, Welcome, encode_frame

PINGS_UNANSWERED_MAX = 3
"""One lost or late answer is no proof; with `heartbeat_s` = 1 a dead peer is found within four to five seconds."""

LINGER_S = 1.0
"""How long a closing connection waits for the peer to read the reason and close too."""

_WRITE_HIGH_BYTES = 1 << 20
"""Unsent bytes at which a host stops reading from a peer: several round trips' worth, so that a healthy one never
meets it."""

UNSENT_BYTES = 16 << 10
"""Unsent bytes of one connection that a host counts: less is what every healthy one has between two ticks."""

_FRAME_MESSAGES = 64
"""Messages that wait for the end of the tick at most. Without this bound client and host take turns: each makes its
whole window of messages before the other sees the first."""

_FRAME_BYTES = 256 << 10
"""The same for the bytes of answers: what waits here is not yet counted as unsent, and is copied once more."""

_CONTROL = frozenset((Ping, Pong, Goodbye))
_PING = Ping()
_PONG = Pong()


class Connection(asyncio.Protocol, ABC):
    """What both ends share. Subclasses say what opens, arrives and ends."""

    def __init__(self, settings: Settings, world: World) -> None:
        self._settings = settings
        self._world = world
        self._reader = FrameReader()
        self._outbox: list[AnyMessage] = []
        """What this tick wants to send. Not empty: a flush is scheduled."""
        self._outbox_bytes = 0
        """Of its answers."""
        self._frame_bytes_max = settings.frame_bytes_max
        """The longest frame that the peer reads."""
        self._outgoing_bytes_max = settings.window_bytes + settings.frame_bytes_max
        self._trusted = False
        self._closing = False
        self._reported = False
        self._reason = ""
        self._heard = False
        """Bytes came in since the last beat."""
        self._pings_unanswered = 0
        self._reading = True
        self._write_paused = False
        self._written = 0
        """Bytes given to the transport so far."""
        self._taken = 0
        """Of those, what the kernel had taken at the last beat."""
        self._beats_stuck = 0
        self._timer: asyncio.TimerHandle | None = None
        """One at a time: handshake time-out, then heartbeat, then linger."""

    # ---- what the two ends fill in ---------------------------------------------------------------------------

    @property
    @abstractmethod
    def _handshake(self) -> HostHandshake | ClientHandshake: ...

    @abstractmethod
    def _opened(self, welcome: Welcome) -> None:
        """The peer is trusted from the next frame on: call `_trust`, then tell those who wait."""

    @abstractmethod
    def _arrived(self, messages: list[Any]) -> None:
        """Messages of one frame, without Ping, Pong and Goodbye."""

    @abstractmethod
    def _ended(self, reason: str) -> None:
        """Nothing arrives or leaves any more. Called once, whatever ended it."""

    # ---- sending ---------------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message; those of one loop tick leave in one frame. Dropped before the connection is open and after
        it closed."""
        if not self._outbox:
            if self._closing or not self._trusted:
                return
            self._loop.call_soon(self._flush)
        self._outbox.append(message)
        if type(message) is Answer:
            self._outbox_bytes += len(message.payload)
        if len(self._outbox) >= _FRAME_MESSAGES or self._outbox_bytes >= _FRAME_BYTES:
            self._flush()

    def close(self, reason: str) -> None:
        """Send what is queued, say Goodbye with the reason, and close. May be called twice."""
        if self._closing:
            return
        if self._trusted:
            self._outbox.append(Goodbye(reason[:REASON_CHARACTERS_MAX]))
            self._flush()
        self._finish(reason)

    def _flush(self) -> None:
        outbox = self._outbox
        if not outbox or self._closing:
            return
        self._outbox = []
        self._outbox_bytes = 0
        try:
            frame = encode_frame(outbox, self._frame_bytes_max)
        except ValueError as error:
            self._finish(f"cannot send: {error}")
            return
        self._write(frame)

    def _write(self, frame: bytes) -> None:
        self._written += len(frame)
        self._transport.write(frame)
        waiting = self._transport.get_write_buffer_size()
        if waiting > self._outgoing_bytes_max:
            self.drop()
        elif waiting > UNSENT_BYTES:
            self._unsent(waiting)

    def _unsent(self, waiting: int) -> None:
        """So many bytes wait for the peer: worth counting."""

    @property
    def unsent_bytes(self) -> int:
        """What the peer has not taken."""
        return self._transport.get_write_buffer_size()

    def drop(self) -> None:
        """Give up a peer that does not take what it asked for: a Goodbye would only queue up behind that."""
        self._finish(f"the peer does not read: {self.unsent_bytes} bytes wait for it")
        self._transport.abort()

    # ---- what asyncio calls ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self._timer = self._loop.call_later(self._settings.handshake_timeout_s, self._handshake_late)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return  # lingering: read, so that the peer gets our reason, and dropped
        self._heard = True
        try:
            for messages in self._reader.feed(data):
                if self._trusted:
                    self._dispatch(messages)
                else:
                    self._shake(messages)
                if self._closing:
                    return
        except ProtocolError as error:
            self._broken(str(error))

    def eof_received(self) -> bool:
        self._finish("the peer closed the connection", linger=False)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._report(f"connection lost: {exc}" if exc is not None else "connection closed")

    def pause_writing(self) -> None:
        self._write_paused = True
        self._taken = self._written - self._transport.get_write_buffer_size()
        self._beats_stuck = 0
        self._steer_reading()

    def resume_writing(self) -> None:
        self._write_paused = False
        self._steer_reading()

    # ---- reading ---------------------------------------------------------------------------------------------

    def _wants_reading(self) -> bool:
        return True

    def _steer_reading(self) -> None:
        wanted = self._wants_reading()
        if wanted is self._reading or self._closing:
            return
        self._reading = wanted
        if wanted:
            self._heard = True  # the silence so far was ours
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _dispatch(self, messages: list[Any]) -> None:
        for message in messages:
            if type(message) in _CONTROL:
                break
        else:
            self._arrived(messages)
            return
        rest = []
        goodbye: Goodbye | None = None
        for message in messages:
            if type(message) is Ping:
                self.send(_PONG)
            elif type(message) is Goodbye:
                goodbye = message
                break
            elif type(message) is not Pong:
                rest.append(message)
        if rest:
            self._arrived(rest)
        if goodbye is not None:
            self._finish(goodbye.reason[:REASON_CHARACTERS_MAX], linger=False)

    def _shake(self, messages: list[Any]) -> None:
        for message in messages:
            if self._trusted:
                raise ProtocolError(f"{type(message).__name__} after the handshake")
            self._perform(self._handshake.received(message))
            if self._closing:
                return

    def _broken(self, problem: str) -> None:
        """The peer broke the protocol: no byte that comes after can be trusted to stand where a frame begins."""
        if self._trusted:
            self.close(f"protocol error: {problem}")
        else:
            self._perform(self._handshake.refuse(Refusal.PROTOCOL, problem))

    # ---- handshake -------------------------------------------------------------------------------------------

    def _perform(self, effects: Effects) -> None:
        for effect in effects:
            if self._closing:
                return
            if isinstance(effect, Say):
                self._write(encode_frame([effect.message], self._frame_bytes_max))
            elif isinstance(effect, Open):
                self._opened(effect.welcome)
            elif isinstance(effect, End):
                self._refused(effect)
            else:
                self._admit(effect.client)

    def _refused(self, end: End) -> None:
        self._finish(end.reason)

    def _admit(self, client: int) -> None:
        raise AssertionError("only a host admits")

    def _handshake_late(self) -> None:
        limit = self._settings.handshake_timeout_s
        self._perform(self._handshake.refuse(Refusal.TIMEOUT, f"the handshake was not done within {limit:g} s"))

    def _trust(self, decoder: Decoder, frame_bytes_max_of_peer: int) -> None:
        self._trusted = True
        self._frame_bytes_max = frame_bytes_max_of_peer
        self._reader.trust(decoder, self._settings.frame_bytes_max)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._settings.heartbeat_s, self._beat)

    # ---- heartbeat -------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        if self._closing:
            return
        self._timer = self._loop.call_later(self._settings.heartbeat_s, self._beat)
        if self._reading:
            self._listen_for_life()
        elif self._write_paused:
            self._watch_progress()
        else:
            self.send(_PING)  # we hold its bytes back and cannot answer its pings: this is our sign of life

    def _listen_for_life(self) -> None:
        if self._heard:
            self._heard = False
            self._pings_unanswered = 0
        elif self._pings_unanswered < PINGS_UNANSWERED_MAX:
            self._pings_unanswered += 1
            self.send(_PING)
        else:
            self.close(f"no sign of life: {PINGS_UNANSWERED_MAX} pings in a row were not answered")

    def _watch_progress(self) -> None:
        taken = self._written - self._transport.get_write_buffer_size()
        if taken > self._taken:
            self._taken = taken
            self._beats_stuck = 0
            return
        self._beats_stuck += 1
        if self._beats_stuck > PINGS_UNANSWERED_MAX:
            self._finish(f"the peer takes nothing: {self._written - taken} bytes wait for it")
            self._transport.abort()  # a Goodbye would only queue up behind them

    # ---- the end ---------------------------------------------------------------------------------------------

    def _finish(self, reason: str, *, linger: bool = True) -> None:
        """Nothing goes in or out from here on; what was written still leaves."""
        if self._closing:
            return
        self._closing = True
        self._reason = reason
        self._outbox.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self._transport.abort)
        if linger and self._transport.can_write_eof() and not self._transport.is_closing():
            if not self._reading:
                self._transport.resume_reading()
            try:
                self._transport.write_eof()
            except OSError:  # asyncio's own transport: the peer is gone, and nobody has read that yet
                self._transport.abort()
        else:
            self._transport.close()
        # Not from here: whoever closes a connection must not be called back in the middle of it.
        self._loop.call_soon(self._report, reason)

    def _report(self, reason: str) -> None:
        if not self._reported:
            self._reported = True
            self._ended(self._reason or reason)
