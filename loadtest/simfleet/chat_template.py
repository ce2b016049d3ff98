"""The chat template: ChatML with tools, as Qwen's and SmolLM2's, optionally with message content stripped as Llama-3's.

The text it makes is tokenised as a whole, so a final message that is to be continued merges with what stands before it.
"""

from typing import Any

import orjson

from loadtest.simfleet.errors import ApiError
from loadtest.simfleet.tokenizer import BOS, SPECIAL_TOKENS

DEFAULT_SYSTEM = "You are a helpful assistant."
GENERATION_PROMPT = "<|im_start|>assistant\n"
_TOOLS = """

# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


class ChatTemplate:
    """The template of one model."""

    def __init__(self, model: str, *, trim: bool) -> None:
        self._model = model
        self._trim = trim

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        """The prompt's text, the beginning-of-text token included."""
        system, rest = DEFAULT_SYSTEM, messages
        if messages and messages[0]["role"] == "system":
            system, rest = self._content(messages[0]), messages[1:]
        if tools:
            system += _TOOLS.format(tools="\n".join(orjson.dumps(tool).decode() for tool in tools))
        parts = [SPECIAL_TOKENS[BOS], f"<|im_start|>system\n{system}<|im_end|>\n"]
        parts += [f"<|im_start|>{_role(message)}\n{self._body(message)}<|im_end|>\n" for message in rest]
        if continue_final_message:
            parts[-1] = parts[-1].removesuffix("<|im_end|>\n")
        elif add_generation_prompt:
            parts.append(GENERATION_PROMPT)
        return "".join(parts)

    def text_of(self, content: Any) -> str:
        """A message's content as text: a string, or the text parts of a list."""
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        texts = []
        for part in content:
            kind = part.get("type", "text") if isinstance(part, dict) else "text"
            if kind not in ("text", "input_text", "refusal"):
                raise ApiError(f"{self._model} is not a multimodal model")
            texts.append(part if isinstance(part, str) else str(part.get("text", "")))
        return "\n".join(texts)

    def _content(self, message: dict[str, Any]) -> str:
        text = self.text_of(message.get("content"))
        return text.strip() if self._trim else text

    def _body(self, message: dict[str, Any]) -> str:
        text = self._content(message)
        if message["role"] == "tool":
            return f"<tool_response>\n{text}\n</tool_response>"
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            name = orjson.dumps(function.get("name")).decode()
            text += f'\n<tool_call>\n{{"name": {name}, "arguments": {function.get("arguments")}}}\n</tool_call>'
        return text


def _role(message: dict[str, Any]) -> str:
    return "user" if message["role"] == "tool" else str(message["role"])
