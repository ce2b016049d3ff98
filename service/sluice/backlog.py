"""How long a worker will be busy with the prompts that it was sent, as far as their senders can know.

Engines compute prompts first come, first served. So a first event says that all prompts sent before that one are done too;
in between, what is left goes down at the speed that first events have shown. Answers that are made whole show no first event:
their prompts are taken to go at that speed, and to be done at the latest when they come. What other gateways say that they
have sent, and have seen begin, is put in its place among our own: it is heard a little late.
"""

from __future__ import annotations

from collections import deque
from math import inf

# The speed before anything was seen, and how little it weighs: as much as one prompt of so many tokens.
FIRST_TOKENS, FIRST_TOKENS_PER_S = 1000.0, 5000.0
KEPT = 0.97  # of the weight of older prompts, each time another has come: about the last thirty count
# What a first event takes beside its prompt, in tokens of one: the step of the engine that it waits for, the way and back.
BESIDE_TOKENS = 256.0
TICK_S = 1e-6  # by which prompts that were sent at the same time are told apart


class Backlog:
    """The prompts that were sent to one worker. `ends_at` is when it will have computed all, `s_per_token` its speed.

    A prompt's mark is when it was sent.
    """

    __slots__ = (
        "_done",
        "_left",
        "_num_begun",
        "_num_unseen",
        "_prompts",
        "_seconds",
        "_since",
        "_tokens",
        "_uncounted",
        "ends_at",
        "s_per_token",
        "seen_at",
        "seen_mark",
    )

    def __init__(self) -> None:
        self.ends_at = 0.0
        self.s_per_token = 1.0 / FIRST_TOKENS_PER_S
        # The latest first event that this gateway saw: of the prompt with this mark, at this time.
        self.seen_mark = self.seen_at = 0.0
        # The prompts that are not known to be done, oldest first: their marks and tokens; and their tokens in all.
        self._prompts: deque[tuple[float, int]] = deque()
        self._left = 0
        self._done = -inf  # the mark up to which all are done
        self._since = 0.0  # when the first prompt that is not known to be done began to be computed
        self._num_unseen = 0  # our streams without a first event yet
        self._tokens = FIRST_TOKENS
        self._num_begun = 1.0  # first events that these tokens had
        self._seconds = FIRST_TOKENS / FIRST_TOKENS_PER_S
        self._uncounted = 0  # tokens that are done, and took time that was not counted yet

    def __repr__(self) -> str:
        return f"<Backlog {self._left} tokens, {1 / self.s_per_token:.0f} a second>"

    def time_s(self, tokens: float) -> float:
        """How long a prompt of so many tokens takes there to its first event. By the speed alone a worker that has had small
        prompts would look slow for a large one, and large ones would all go where large ones went before."""
        share = self._tokens / (self._tokens + BESIDE_TOKENS * self._num_begun)
        return (tokens + BESIDE_TOKENS) * share * self.s_per_token

    def send(self, tokens: int, now: float, *, shows_first_event: bool) -> float:
        """A prompt goes to the worker, which has to compute so many tokens of it. Returns its mark."""
        prompts = self._prompts
        if not self._num_unseen and self.ends_at <= now:
            self._rest(now)
        mark = now
        if prompts and prompts[-1][0] >= now:
            mark = prompts[-1][0] + TICK_S
        prompts.append((mark, tokens))
        self._left += tokens
        self._num_unseen += shows_first_event
        self.ends_at = max(self.ends_at, now) + tokens * self.s_per_token
        return mark

    def began(self, mark: float, now: float) -> None:
        """The first event of the prompt with this mark: it is done, and so are all before it."""
        self._num_unseen -= 1
        if mark > self.seen_mark:
            self.seen_mark, self.seen_at = mark, now
        self._begun(mark, now)

    def ended(self, mark: float, now: float) -> None:
        """A call that shows no first event has its answer: its prompt is done, and so are all before it."""
        self._uncounted += self._pass(mark)
        self.ends_at = min(self.ends_at, now + self._left * self.s_per_token)

    def left(self, mark: float, now: float) -> None:
        """A stream ended before its first event: nobody waits for its prompt any more."""
        self._num_unseen -= 1
        for prompt in self._prompts:
            if prompt[0] == mark:
                self._prompts.remove(prompt)
                self._left -= prompt[1]
                self.ends_at = max(now, self.ends_at - prompt[1] * self.s_per_token)
                return

    def sent_elsewhere(self, tokens: int, at: float) -> None:
        """Another gateway sent a prompt there, a moment ago."""
        if at <= self._done:
            self._tokens += tokens  # its time was counted, for our own
            return
        if not self._num_unseen and self.ends_at <= at:
            self._rest(at)
        prompts, place = self._prompts, len(self._prompts)
        while place and prompts[place - 1][0] > at:
            place -= 1
        if not place and prompts and prompts[0][0] == self._since:
            self._since = at  # the worker was not idle when ours came
        prompts.insert(place, (at, tokens))
        self._left += tokens
        self.ends_at = max(self.ends_at, at) + tokens * self.s_per_token

    def began_elsewhere(self, mark: float, at: float) -> None:
        """Another gateway saw the first event of what it sent at the time `mark`."""
        if at >= self._since:
            self._begun(mark, at)
        else:
            self._uncounted += self._pass(mark)

    def _begun(self, mark: float, now: float) -> None:
        if mark <= self._done:
            return
        tokens = self._pass(mark) + self._uncounted
        self._uncounted = 0
        self._tokens = KEPT * self._tokens + tokens
        self._num_begun = KEPT * self._num_begun + 1.0
        self._seconds = KEPT * self._seconds + now - self._since
        self.s_per_token = self._seconds / self._tokens
        self._since = now
        self.ends_at = now + self._left * self.s_per_token

    def _pass(self, mark: float) -> int:
        """All up to this mark are done; how many tokens that is."""
        prompts, tokens = self._prompts, 0
        while prompts and prompts[0][0] <= mark:
            tokens += prompts.popleft()[1]
        self._left -= tokens
        if mark > self._done:
            self._done = mark
        return tokens

    def _rest(self, now: float) -> None:
        """The worker is idle, and has been."""
        self._prompts.clear()
        self._left = self._uncounted = 0
        self._since = now
