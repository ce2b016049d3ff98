"""What a call will cost, before a worker has said so; each route learns its own ratios from the usage that workers report."""

from __future__ import annotations

from collections import deque

from sluice.types import Call, PromptSize, Usage

# Tokens for each ASCII, CJK and other character, and each message; media are worth hundreds of tokens. Where learning begins.
FIRST_WEIGHTS = (0.27, 0.75, 0.6, 6.0, 500.0)
BOUNDS = ((0.02, 2.0), (0.05, 4.0), (0.05, 4.0), (0.0, 200.0), (0.0, 20_000.0))
# A weight that moves by this share of itself moves the sum as much as its part in it: the scale of each one's steps.
LEARNING_RATE = 0.1
GOOD_ENOUGH = 0.02  # an estimate so near teaches nothing
FIRST_OUTPUT_TOKENS = 512
FIRST_TOKEN_S = 0.02
NUM_OUTPUTS = 256  # the last answers that the p90 is taken of
MIN_OUTPUTS = 20
P90_EVERY = 32


class RouteEstimate:
    """The running estimates of one route.

    The prompt is a weighted sum of what it is made of. Each exact usage moves the weights a tenth of the way (normalised least
    mean squares, each weight on its own scale), within bounds: a worker that lies can bend an estimate, not break it. Of the
    output, where the client names no bound, the 90th percentile of the last answers is taken.
    """

    def __init__(self) -> None:
        self._weights = list(FIRST_WEIGHTS)
        self._outputs: deque[int] = deque(maxlen=NUM_OUTPUTS)
        self._num_outputs = 0
        self._token_s = FIRST_TOKEN_S
        self.p90_output_tokens = FIRST_OUTPUT_TOKENS

    def __repr__(self) -> str:
        weights = ", ".join(f"{weight:.3g}" for weight in self._weights)
        return f"<RouteEstimate [{weights}; p90 {self.p90_output_tokens}]>"

    def prompt_tokens(self, size: PromptSize) -> int:
        ascii_, cjk, other, messages, media = self._weights
        estimated = size.ascii * ascii_ + size.cjk * cjk + size.other * other + size.messages * messages + size.media * media
        return size.token_ids + int(estimated + 0.999)

    def output_tokens(self, max_tokens: int | None, num_choices: int, prompt_tokens: int, context: int | None) -> int:
        """Of all answers together: what was asked for, else the p90; no answer is longer than the context has room."""
        each = self.p90_output_tokens if max_tokens is None else max_tokens
        if context is not None:
            each = min(each, max(0, context - prompt_tokens))
        return each * num_choices

    def learn(self, call: Call, usage: Usage, seconds: float) -> None:
        """What the call really cost, as its worker says, and how long the worker had it."""
        self._learn_prompt(call.size, usage.prompt_tokens)
        if call.num_choices and usage.completion_tokens:
            each = usage.completion_tokens / call.num_choices
            self._token_s += (seconds / max(1.0, each) - self._token_s) * LEARNING_RATE
            if call.max_tokens is None:
                self._learn_output(int(each))

    def spent(self, call: Call, usage: Usage, seconds: float) -> Usage:
        """What a call has cost whose worker did not come to say it: the events that we have counted, or, of an answer that
        was to come whole, as much as its worker will have done in that time. The prompt as it was estimated."""
        tokens = usage.completion_tokens
        if not call.stream and call.num_choices:
            tokens = min(call.output_tokens, int(seconds / self._token_s) * call.num_choices)
        return Usage(call.prompt_tokens, tokens, exact=False)

    def _learn_prompt(self, size: PromptSize, prompt_tokens: int) -> None:
        told = prompt_tokens - size.token_ids
        error = told - (self.prompt_tokens(size) - size.token_ids)
        if abs(error) <= 1 + told * GOOD_ENOUGH:
            return
        parts = (size.ascii, size.cjk, size.other, size.messages, size.media)
        power = sum([(part * scale) ** 2 for part, scale in zip(parts, FIRST_WEIGHTS, strict=True)])
        if not power:
            return
        step = LEARNING_RATE * error / power
        for i, part in enumerate(parts):
            low, high = BOUNDS[i]
            self._weights[i] = min(high, max(low, self._weights[i] + step * part * FIRST_WEIGHTS[i] ** 2))

    def _learn_output(self, tokens: int) -> None:
        self._outputs.append(tokens)
        self._num_outputs += 1
        if self._num_outputs >= MIN_OUTPUTS and self._num_outputs % P90_EVERY in (0, MIN_OUTPUTS):
            self.p90_output_tokens = max(1, sorted(self._outputs)[len(self._outputs) * 9 // 10])
