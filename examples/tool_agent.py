"""An agent on the OpenAI-compatible endpoint, with the OpenAI Agents SDK.

    pip install openai-agents
    python examples/tool_agent.py http://127.0.0.1:30000

The server runs with ``--tool-call-parser`` and ``--ext-tools enforce``: every call that reaches
this program names one of its tools and is valid for it, so none is spent on asking again.
"""

import sys
from typing import Annotated

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from agents.exceptions import MaxTurnsExceeded
from openai import AsyncOpenAI
from pydantic import Field

TURNS = 4


@function_tool
def get_weather(
    city: Annotated[str, Field(max_length=40)], days: Annotated[int, Field(ge=1, le=9)]
) -> str:
    """Weather of a city for some days."""
    print(f"get_weather(city={city!r}, days={days})")
    return f"{city}: rain, 12 degrees, for {days} days"


def main(base_url: str) -> None:
    """The first answer must call the tool; after that the model decides."""
    set_tracing_disabled(True)  # traces would go to OpenAI
    client = AsyncOpenAI(base_url=f"{base_url}/v1", api_key="none")
    agent = Agent(
        name="traveller",
        instructions="Look up the weather, then give advice.",
        model=OpenAIChatCompletionsModel("any", client),
        model_settings=ModelSettings(temperature=0.0, max_tokens=128, tool_choice="required"),
        tools=[get_weather],
    )
    try:
        question = "I go to Paris for 3 days. What should I wear?"
        print(Runner.run_sync(agent, question, max_turns=TURNS).final_output)
    except MaxTurnsExceeded:
        print(f"no advice after {TURNS} turns")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
