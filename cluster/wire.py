"""Frames: how messages become bytes and back. Sans-I/O; knows nothing of sockets, tokens or what messages mean.

    +----------------+---------------------------------------------+
    | 4 bytes, big-  | MessagePack array of messages,              |
    | endian: length | each an array [tag, field, ...]             |
    +----------------+---------------------------------------------+

Rules:
- A frame's length is checked on its prefix, before anything of its body is kept: `HANDSHAKE_FRAME_BYTES_MAX` until the
  peer is trusted, the setting `frame_bytes_max` afterwards. A frame holds at most `FRAME_MESSAGES_MAX` messages.
- Each end decodes only what its peer may say (`FROM_CLIENT`, `FROM_HOST` ...): a strange tag, a number out of range or
  a field of another type is refused by the decoder, and never reaches a handler.
- Whatever is wrong with the bytes is a `ProtocolError` that says what; no other exception leaves this module.
- Where the network cuts the stream makes no difference to what comes out, nor to when it is refused.

The messages of a trusted connection stand in sharding/messages.py (tags 1-15), those of the handshake here (16-31).
A later version may append fields, with defaults. Of `Hello` the tag and the version stay where they are for ever, so
that any two versions can tell each other that they differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import msgspec

from ..actors.errors import AtollError
from ..sharding.messages import (
    Answer,
    Call,
    Confirm,
    Credit,
    Goodbye,
    Load,
    Message,
    Moved,
    Natural,
    OutOfOrder,
    Ping,
    Poke,
    Pong,
    StripeHosts,
    TableUpdate,
)

PROTOCOL_VERSION = 2
"""Both ends must speak the same one; it changes when a field changes its meaning or goes away."""

HANDSHAKE_FRAME_BYTES_MAX = 4096
"""All that an unproved peer can make us keep. The longest honest handshake message is under 1 KiB."""

FRAME_MESSAGES_MAX = 65_535
"""The smallest messages are two bytes: without this bound a frame of 16 MiB could become eight million objects. It is
what MessagePack's 16-bit array header counts, so that one byte tells (no honest frame needs the 32-bit one)."""

NONCE_BYTES = 32
"""As long as the MAC that is made over it: nobody meets the same nonce twice."""

REASON_CHARACTERS_MAX = 500
"""Of a reason that we send. Four bytes each at worst, it fits a handshake frame."""

ANY_APP = "*"
"""In a Hello: whichever app lives there. The token tells whether that is the one that is meant."""

_PREFIX_BYTES = 4
_ARRAY_32 = 0xDD

Role = Literal["client", "coordinator", "host"]

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Nonce = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
_Mac = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class ProtocolError(AtollError):
    """The peer sent what no peer of this version sends; the text says what. The connection cannot go on."""


class Hello(msgspec.Struct, array_like=True, tag=16, frozen=True, gc=False):
    """client -> host, the first frame of a connection."""

    version: Natural
    app: _Name
    role: Role
    """`client` sends calls, `coordinator` only pokes, `host` sends the calls that its handlers wait for."""
    nonce: _Nonce
    client: Natural
    """The session to go on with; 0 asks for a new one."""
    generation: Natural
    """Grows with each connection of that client."""
    frame_bytes_max: Natural
    """The longest frame that the client reads."""
    software: Annotated[str, msgspec.Meta(max_length=128)] = ""
    """The peer's version of Atoll, for logs."""
    stripe: Natural = 0
    """1 + the stripe whose hosts it looks for; 0: any."""


class Challenge(msgspec.Struct, array_like=True, tag=17, frozen=True, gc=False):
    """host -> client: the host's proof, and the nonce for the client's."""

    version: Natural
    nonce: _Nonce
    mac: _Mac
    incarnation: Natural


class Proof(msgspec.Struct, array_like=True, tag=18, frozen=True, gc=False):
    """client -> host: the client's proof."""

    mac: _Mac


class Welcome(msgspec.Struct, array_like=True, tag=19, frozen=True, gc=False):
    """host -> client: trusted from here on, and the terms."""

    client: Natural
    """The session's client ID; 0 for a coordinator."""
    incarnation: Natural
    shards: Natural
    window_commands: Natural
    """The first limits of this connection, in calls and in bytes of arguments (credits.py)."""
    window_bytes: Natural
    shard_window: Natural
    mailbox_commands_max: Natural
    arguments_bytes_max: Natural
    frame_bytes_max: Natural
    """The longest frame that the host reads."""
    software: str = ""
    app: str = ""
    """The host's app, for a client that asked for any."""
    stripe: Natural = 0
    """Which of the app's databases the host works for,"""
    stripes: Natural = 1
    """and how many there are."""


class Refused(msgspec.Struct, array_like=True, tag=20, frozen=True, gc=False):
    """Either way, instead of the next handshake message: why not. The connection closes behind it."""

    code: Natural
    """A `Refusal` (cluster/handshake.py); a receiver takes one that it does not know for a permanent one."""
    reason: str


HandshakeMessage = Hello | Challenge | Proof | Welcome | Refused
AnyMessage = HandshakeMessage | Message
Decoder = msgspec.msgpack.Decoder[Any]
"""Of a list of messages. Which ones, the constants below say."""

HANDSHAKE: Decoder = msgspec.msgpack.Decoder(list[HandshakeMessage])
FROM_CLIENT: Decoder = msgspec.msgpack.Decoder(list[Call | Confirm | Poke | Ping | Pong | Goodbye])
FROM_COORDINATOR: Decoder = msgspec.msgpack.Decoder(list[Poke | StripeHosts | Ping | Pong | Goodbye])
FROM_HOST: Decoder = msgspec.msgpack.Decoder(
    list[Answer | Moved | OutOfOrder | TableUpdate | StripeHosts | Credit | Poke | Load | Ping | Pong | Goodbye]
)

_encoder = msgspec.msgpack.Encoder()


def encode_frame(messages: Sequence[AnyMessage], frame_bytes_max: int) -> bytes:
    """Return `messages` as one frame, or as several, one after the other, when one would be over a limit.

    Raises `ValueError` when a single message is longer than `frame_bytes_max`, or cannot be encoded at all (a lone
    surrogate, a number of more than 64 bits): the caller's limits should have refused it.
    """
    try:
        body = _encoder.encode(messages) if len(messages) <= FRAME_MESSAGES_MAX else None
    except (OverflowError, TypeError) as error:
        raise ValueError(f"a message cannot be encoded: {error}") from error
    if body is not None and len(body) <= frame_bytes_max:
        return len(body).to_bytes(_PREFIX_BYTES) + body
    if len(messages) == 1:
        kind = type(messages[0]).__name__
        raise ValueError(f"one {kind} is over frame_bytes_max ({frame_bytes_max}): raise it, or send less at once")
    middle = len(messages) // 2
    return encode_frame(messages[:middle], frame_bytes_max) + encode_frame(messages[middle:], frame_bytes_max)


class FrameReader:
    """Cuts one direction of a connection into frames and decodes them."""

    __slots__ = ("_decoder", "_frame_bytes_max", "_kept", "_wanted")

    def __init__(self, frame_bytes_max: int = HANDSHAKE_FRAME_BYTES_MAX, decoder: Decoder = HANDSHAKE) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._decoder = decoder
        self._kept = bytearray()
        """The beginning of a frame that has not arrived whole: less than a prefix and a frame."""
        self._wanted = _PREFIX_BYTES
        """Bytes that `_kept` must have before a look at it is worth while."""

    @property
    def kept_bytes(self) -> int:
        return len(self._kept)

    def trust(self, decoder: Decoder, frame_bytes_max: int) -> None:
        """From the next frame on: another set of messages and another limit. May be called between two frames of one
        `feed`, as a host's first messages stand right behind its Welcome."""
        self._decoder = decoder
        self._frame_bytes_max = frame_bytes_max

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """Yield the messages of each frame that `data` completes. Run it to its end, or drop the connection.

        Raises `ProtocolError` when it comes to what is wrong, after everything before that was yielded.
        """
        chunk: bytes | bytearray = data
        if self._kept:
            # Amortised: a long frame is appended piece by piece, and looked at again only when it is whole.
            self._kept += data
            if len(self._kept) < self._wanted:
                return
            chunk, self._kept = self._kept, bytearray()
        start, end = 0, len(chunk)
        with memoryview(chunk) as view:
            while end - start >= _PREFIX_BYTES:
                body = start + _PREFIX_BYTES
                length = int.from_bytes(view[start:body])
                if length > self._frame_bytes_max:
                    raise ProtocolError(f"a frame of {length} bytes, at most {self._frame_bytes_max} are read here")
                if end - body < length:
                    self._wanted = _PREFIX_BYTES + length
                    break
                start = body + length
                yield self._decoded(view[body:start])
            else:
                self._wanted = _PREFIX_BYTES
            if start < end:
                self._kept += view[start:]

    def _decoded(self, body: memoryview) -> list[Any]:
        with body:
            if len(body) and body[0] == _ARRAY_32:
                raise ProtocolError(f"a frame of more than {FRAME_MESSAGES_MAX} messages")
            try:
                messages: list[Any] = self._decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ProtocolError(f"a frame that cannot be read: {error}") from None
            except RecursionError:
                raise ProtocolError("a frame that is nested too deep") from None
        if not messages:
            raise ProtocolError("a frame without messages")
        return messages
