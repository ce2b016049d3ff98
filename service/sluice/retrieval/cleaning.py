"""Retrieved text made harmless as far as text can be: what a tokenizer, a screen or our own markers would take for more.

Gone are control tokens of chat templates, invisible characters (zero-width, bidirectional, Unicode tags, variation selectors
that hide data) and C0 and C1 controls. What remains is words, and words can still ask a model for things: no filter is
complete, which is why the prompt frames them as data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_TITLE_CHARS = 200

# Zero-width and joiners, soft hyphen, bidirectional controls, Unicode tags, fillers, variation selectors, interlinear notes;
# C0 (but tab and line feed) and C1. Written by code point: the characters themselves cannot be seen.
INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e0fff\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")

# Control tokens by family: <|...|> and DeepSeek's full-width form; Gemma's turns; Llama 2's and Mistral's brackets; sentence
# pieces; tags that templates give a meaning to; StarCoder's, which SmolLM has.
CONTROL_TOKENS = (
    r"<\|[^<>|\n]{0,64}\|>",
    r"<[｜][^<>\n]{0,64}[｜]>",
    r"<(?:start|end)_of_(?:turn|image)>|<(?:start|end)_of_(?:role|text)>",
    r"</?(?:s|bos|eos|pad|unk|mask|cls|sep|im_start|im_end|reserved_\d+|unused\d+)>",
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|ARGS|CALL_ID|IMG|THINK|SYS)\]",
    r"\[(?:CLS|SEP|PAD|UNK|MASK|BOS|EOS|gMASK|sMASK)\]",
    r"<</?SYS>>",
    r"</?(?:tool_call|tool_response|tools|think|thinking|function_calls?|sop|eop|eod)>",
    r"<extra_id_\d+>|<0x[0-9A-F]{2}>",
    r"<(?:repo_?name|file_sep|filename|gh_stars|issue_(?:start|comment|closed)|jupyter_\w+|empty_output|commit_\w+|fim_\w+)>",
)


class Cleaner:
    """Cleans text for prompts. `more` are further control tokens, literally, such as a model's own special tokens."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        literal = [re.escape(token) for token in sorted(set(more), key=len, reverse=True) if token.strip()]
        self._tokens = re.compile("|".join([*literal, *CONTROL_TOKENS]), re.IGNORECASE)

    def text(self, text: str) -> str:
        """The same text without anything that is not text. A control token leaves a space: its neighbours form no new one."""
        return self._tokens.sub(" ", INVISIBLE.sub("", LINE_ENDS.sub("\n", text)))

    def title(self, text: str) -> str:
        """The same on one line, bounded."""
        return " ".join(self.text(text[: 4 * MAX_TITLE_CHARS]).split())[:MAX_TITLE_CHARS]
