"""Text from token ids as they come, without ever taking back what was shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Decoder(Protocol):
    """What turns ids into text; a transformers tokenizer does."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str: ...


class TextStream:
    """Turns ids into text piece by piece. Held back until it is clear what they are: the bytes of
    an unfinished character, and an ending that may be the beginning of a stop string. The text
    ends before the first stop string.

    Only the ids since the last piece but one are decoded at each step, since how a token reads can
    depend on the one before it but not on earlier ones.
    """

    def __init__(self, decoder: Decoder, stop_strings: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._stops = tuple(stop_strings)
        self._ids: list[int] = []
        self._context = 0
        self._shown = 0
        self._held = ""
        self.stopped = False

    def put(self, token: int) -> str:
        """The text that the token makes certain; often empty."""
        self._ids.append(token)
        text = self._new_text()
        if not text or text.endswith(INCOMPLETE):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return self._release(text)

    def finish(self) -> str:
        """The rest of the text, when no more tokens come."""
        rest = self._release(self._new_text())
        self._shown = len(self._ids)
        if self.stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._context : self._shown])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._decoder.decode(ids, skip_special_tokens=True)

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        places = [text.find(stop) for stop in self._stops if stop in text]
        if places:
            self.stopped, self._held = True, ""
            return text[: min(places)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        split = len(text) - keep
        self._held = text[split:]
        return text[:split]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest ending of text that stop begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
