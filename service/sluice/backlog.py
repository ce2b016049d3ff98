"""How long a worker will be busy with the prompts that it was sent, as far as their senders can know.

Engines compute prompts first come, first served. So a first event says that all prompts sent before that one are done too;
in between, what is left goes down at the speed that first events have shown. Answers that are made whole show no first event:
their prompts are taken to go at that speed, and to be done at the latest when they come.
"""

from __future__ import annotations

# The speed before anything was seen, and how little it weighs: as much as one prompt of so many tokens.
FIRST_TOKENS, FIRST_TOKENS_PER_S = 1000.0, 5000.0
KEPT = 0.97  # of the weight of older prompts, each time another has come: about the last thirty count


class Backlog:
    """The prompts that were sent to one worker. `ends_at` is when it will have computed all, `s_per_token` its speed."""

    __slots__ = ("_done", "_num_unseen", "_seconds", "_sent", "_since", "_tokens", "ends_at", "s_per_token")

    def __init__(self) -> None:
        self.ends_at = 0.0
        self.s_per_token = 1.0 / FIRST_TOKENS_PER_S
        # Tokens that were ever sent, and up to where first events have shown them to be done.
        self._sent = 0
        self._done = 0
        self._since = 0.0  # when the first prompt that is not known to be done began to be computed
        self._num_unseen = 0  # streams without a first event yet
        self._tokens = FIRST_TOKENS
        self._seconds = FIRST_TOKENS / FIRST_TOKENS_PER_S

    def __repr__(self) -> str:
        return f"<Backlog {self._sent - self._done} tokens, {1 / self.s_per_token:.0f} a second>"

    def send(self, tokens: int, now: float, *, shows_first_event: bool) -> int:
        """A prompt goes to the worker, which has to compute so many tokens of it. Returns what `began` wants to know."""
        if not self._num_unseen and self.ends_at <= now:  # idle
            self._done = self._sent
            self._since = now
        self._sent += tokens
        self._num_unseen += shows_first_event
        self.ends_at = max(self.ends_at, now) + tokens * self.s_per_token
        return self._sent

    def began(self, mark: int, now: float) -> None:
        """The first event of the prompt with this mark: it is done, and so are all before it."""
        self._num_unseen -= 1
        if mark <= self._done:
            return
        self._tokens = KEPT * self._tokens + mark - self._done
        self._seconds = KEPT * self._seconds + now - self._since
        self.s_per_token = self._seconds / self._tokens
        self._done = mark
        self._since = now
        self.ends_at = now + (self._sent - mark) * self.s_per_token

    def ended(self, mark: int, now: float) -> None:
        """A call that shows no first event has its answer: its prompt is done, and so are all before it."""
        self.ends_at = min(self.ends_at, now + (self._sent - mark) * self.s_per_token)

    def left(self, tokens: int, mark: int, now: float) -> None:
        """A stream ended before its first event: nobody waits for its prompt any more."""
        self._num_unseen -= 1
        if mark > self._done:
            self.ends_at = max(now, self.ends_at - tokens * self.s_per_token)
