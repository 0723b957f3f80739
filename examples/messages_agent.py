"""An agent on the Anthropic-compatible endpoint, ``/v1/messages``.

    pip install anthropic
    python examples/messages_agent.py http://127.0.0.1:30000

The server runs with ``--tool-call-parser`` and ``--ext-tools enforce``. A call that was cut off or
is not valid is never shown as one; ``metadata`` says what was withheld and why.
"""

import sys

from anthropic import Anthropic

TURNS = 3
TOOL = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 40},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}


def get_weather(city: str, days: int) -> str:
    """The tool itself."""
    return f"{city}: rain, 12 degrees, for {days} days"


def main(base_url: str) -> None:
    """The first answer must call the tool; after that the model decides."""
    client = Anthropic(base_url=base_url, api_key="none")
    messages = [{"role": "user", "content": "What is the weather in Paris for 3 days?"}]
    for turn in range(TURNS):
        answer = client.messages.create(
            model="any",
            max_tokens=128,
            messages=messages,
            tools=[TOOL],
            tool_choice={"type": "auto" if turn else "any"},
            extra_body={"temperature": 0.0},
        )
        for withheld in (
            (answer.model_extra or {}).get("metadata", {}).get("tool_calls_withheld", ())
        ):
            print(f"withheld: {withheld['reason']}: {withheld['detail']}")
        calls = [block for block in answer.content if block.type == "tool_use"]
        if not calls:
            print("".join(block.text for block in answer.content if block.type == "text"))
            return
        messages.append({"role": "assistant", "content": answer.content})
        results = []
        for call in calls:
            print(f"{call.name}({call.input})")
            result = get_weather(**call.input)
            results.append({"type": "tool_result", "tool_use_id": call.id, "content": result})
        messages.append({"role": "user", "content": results})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
