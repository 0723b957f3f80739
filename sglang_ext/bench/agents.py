"""Tool-using agents on the ``openai`` client: they ask, execute the calls, and tell the results.

An agent works through tasks of BFCL in one growing conversation. A turn is: the user's words (in
later turns with a listing of the workspace), a call that the server is made to produce
(``tool_choice`` "required", strict schemas), its execution, and the result as a ``tool`` message.
Before the last turn each agent waits for all others, as a user does who comes back after a break:
by then the others have taken its place in the upper tiers.

Messages are only ever appended, so each prompt begins with the one before it, up to the spelling
of the model's own call, which the chat template writes its way.

Every request body is recorded: a replay sends the same bodies in the same order to another
server, and executes nothing.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from threading import Barrier, Event
from typing import TYPE_CHECKING, Any

from sglang_ext.bench import bfcl
from sglang_ext.bench.answers import Answer, Exchange, ask
from sglang_ext.errors import DemoError

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = [
    "Agent",
    "Workload",
    "replay",
    "run_agents",
    "workload",
]


# Tools that the tasks need least. Without them six turns on three servers stay below ten minutes
# on two cores: the server without a cache computes the tools again with every request.
_NOT_OFFERED = frozenset({"du", "echo", "pwd", "rmdir", "touch", "wc"})


@dataclass(frozen=True)
class Workload:
    """What all agents share, and how far their conversations grow.

    The limits keep SmolLM2's 8,192 positions from being exceeded: a context grows by at most
    about 900 tokens a turn, and beyond ``context_tokens`` nothing but the user's words and the
    first characters of a result are added.
    """

    system: str
    tools: Sequence[Mapping[str, Any]]
    classes: tuple[str, ...]
    turns: int = 6
    call_tokens: int = 40
    listing_from: int = 5  # in this turn and later ones the user shows a listing
    listing_chars: int = 2_100
    result_chars: int = 300
    context_tokens: int = 6_000


def workload(turns: int) -> Workload:
    """The demonstration's workload: BFCL's file system, about 1,700 tokens of system and tools."""
    classes = ("GorillaFileSystem",)
    system = (
        "You carry out the user's wishes on a file system, one function call at a time. "
        f"{bfcl.class_description(classes[0])} Paths are not accepted where a function asks for a "
        "name in the current directory."
    )
    tools = [
        tool for tool in bfcl.tool_schemas(classes) if tool["function"]["name"] not in _NOT_OFFERED
    ]
    return Workload(system, tools, classes, turns)


class Agent:
    """One conversation over several tasks; used by one thread.

    Args:
        number: counts from 1; decides where in the list of tasks this agent begins.
        agents: how many there are, so that they begin far from each other.
        tasks: shared by all agents; an agent that comes to the end goes on at the beginning.
        load: what the agents share.
    """

    def __init__(
        self, number: int, agents: int, tasks: Sequence[bfcl.Task], load: Workload
    ) -> None:
        if not tasks:
            raise DemoError(f"bfcl-eval has no task for the tools {', '.join(load.classes)}")
        first = (number - 1) * len(tasks) // agents
        self.number = number
        self._load = load
        self._tasks = [*tasks[first:], *tasks[:first]]
        self._messages: list[dict[str, Any]] = [{"role": "system", "content": load.system}]
        self._context_tokens = 0

    def run(
        self, send: Callable[[Mapping[str, Any]], Answer], pause: Callable[[], object]
    ) -> Iterator[Exchange]:
        """Work through all turns; yields each request with its answer as it is done.

        Args:
            send: sends one request.
            pause: called before the last turn; comes back when the agent shall go on.
        """
        for turn, (words, box) in enumerate(self._script(), start=1):
            if turn == self._load.turns:
                pause()
            self._messages.append({"role": "user", "content": self._user_text(turn, words, box)})
            yield self._turn(send, turn, box)

    def _script(self) -> Iterator[tuple[str, bfcl.ToolBox]]:
        """The user's words of each turn, with the tools in the state of the task they belong to."""
        done = 0
        while True:
            for task in self._tasks:
                box = bfcl.ToolBox(self._load.classes, task.initial_config, long_context=True)
                for words in task.user_turns:
                    if done == self._load.turns:
                        return
                    yield words, box
                    done += 1

    def _user_text(self, turn: int, words: str, box: bfcl.ToolBox) -> str:
        if self._full or turn < self._load.listing_from:
            return words
        listing = box.call("find", {"path": "."})[: self._load.listing_chars]
        return f"{words}\n\nThe workspace now (cut after {len(listing)} characters): {listing}"

    @property
    def _full(self) -> bool:
        return self._context_tokens >= self._load.context_tokens

    def _turn(
        self, send: Callable[[Mapping[str, Any]], Answer], turn: int, box: bfcl.ToolBox
    ) -> Exchange:
        body = {
            "model": "default",
            "messages": list(self._messages),
            "tools": self._load.tools,
            "tool_choice": "required",
            "max_tokens": self._load.call_tokens,
            "temperature": 0,
            "seed": 0,
            # One call a turn: behind its end the grammar would let the model talk on.
            "stop": ["</tool_call>"],
        }
        answer = send(body)
        self._context_tokens = answer.tokens.prompt + len(answer.output_ids)
        self._take(answer, box)
        return Exchange(self.number, turn, body, answer)

    def _take(self, answer: Answer, box: bfcl.ToolBox) -> None:
        """Append the answer and the results of its calls to the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        parsed = [(call, parse_arguments(call.arguments)) for call in answer.calls]
        if parsed:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    # SGLang refuses a history with arguments that are not a JSON object.
                    "function": {
                        "name": call.name,
                        "arguments": call.arguments if arguments is not None else "{}",
                    },
                }
                for call, arguments in parsed
            ]
        self._messages.append(message)
        for call, arguments in parsed:
            if arguments is None:
                reason = "cut off" if answer.finish_reason == "length" else "malformed"
                result = json.dumps({"error": f"the call was {reason}; nothing was done"})
            else:
                result = box.call(call.name, arguments)
            limit = self._load.result_chars // (8 if self._full else 1)
            if len(result) > limit:
                result = f"{result[:limit]} (cut after {limit} of {len(result)} characters)"
            self._messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def parse_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of a call, or None when they are not a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def run_agents(
    client: "OpenAI", agents: Sequence[Agent], on_exchange: Callable[[Exchange], None]
) -> list[Exchange]:
    """Run all agents, a thread each; ``on_exchange`` is called from their threads.

    Returns:
        All exchanges, by agent and in the order in which each agent had them.

    Raises:
        DemoError: of the first agent that failed; the others end with their present request.
    """
    pause = _Break(len(agents))
    runs = [
        agent.run(partial(ask, client), partial(pause.wait, index))
        for index, agent in enumerate(agents)
    ]
    return _at_once(runs, on_exchange, pause)


def replay(
    client: "OpenAI", recorded: Sequence[Exchange], on_exchange: Callable[[Exchange], None]
) -> list[Exchange]:
    """Send recorded requests again: all agents at once, each in its own order.

    Returns:
        The new exchanges, by agent and in the order of ``recorded``.
    """
    numbers = list(dict.fromkeys(exchange.agent for exchange in recorded))
    pause = _Break(len(numbers))

    def again(index: int, number: int) -> Iterator[Exchange]:
        mine = [old for old in recorded if old.agent == number]
        for old in mine:
            if old.turn == mine[-1].turn:
                pause.wait(index)
            yield replace(old, answer=ask(client, old.body))

    runs = [again(index, number) for index, number in enumerate(numbers)]
    return _at_once(runs, on_exchange, pause)


class _Break:
    """All agents stop, then come back one after another, each once the one before is answered.

    Whoever comes back finds that the others have taken its place in L1 and L2. If all came in the
    same instant SGLang would prefetch for the first alone: it fetches at most half of L2 at a time.
    """

    def __init__(self, agents: int) -> None:
        self._barrier = Barrier(max(1, agents))
        self._turns = [Event() for _ in range(agents + 1)]
        self._turns[0].set()
        self._back: set[int] = set()

    def wait(self, index: int) -> None:
        """Stop until all have, and until it is the turn of agent ``index``."""
        self._barrier.wait()
        self._turns[index].wait()
        self._back.add(index)

    def answered(self, index: int) -> None:
        """Agent ``index`` has an answer: if it was back, the next may come."""
        if index in self._back:
            self._turns[index + 1].set()

    def abort(self) -> None:
        """Let everybody go; those who wait for the others get ``BrokenBarrierError``."""
        self._barrier.abort()
        for turn in self._turns:
            turn.set()


def _at_once(
    runs: Sequence[Iterator[Exchange]], on_exchange: Callable[[Exchange], None], pause: _Break
) -> list[Exchange]:
    """Exhaust all ``runs`` in threads; each begins once the one before has its first answer.

    Agents do not come in the same millisecond. If they did, none would find the shared prefix in
    a cache, and SGLang, which prefetches at most half of L2 at a time, would compute it again.

    ``pause`` is what the runs wait at; it is broken when one of them fails.
    """
    begin = [Event() for _ in range(len(runs) + 1)]
    begin[0].set()
    stop = Event()

    def work(index: int) -> list[Exchange]:
        done = []
        begin[index].wait()
        try:
            while not stop.is_set() and (exchange := next(runs[index], None)):
                on_exchange(exchange)
                done.append(exchange)
                begin[index + 1].set()
                pause.answered(index)
        finally:
            begin[index + 1].set()
        return done

    pool = ThreadPoolExecutor(max_workers=max(1, len(runs)))
    try:
        futures = [pool.submit(work, index) for index in range(len(runs))]
        for future in as_completed(futures):
            future.result()  # the first error, as soon as it is there, and not what it causes
        return [exchange for future in futures for exchange in future.result()]
    finally:
        # After an error or Ctrl-C nobody waits for requests under way: the caller ends the server,
        # and they with it.
        stop.set()
        pause.abort()
        pool.shutdown(wait=False, cancel_futures=True)
