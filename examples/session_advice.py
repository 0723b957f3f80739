"""An agent that tells the server when it pauses, and when it is done.

    python examples/session_advice.py http://127.0.0.1:30000

The server runs with ``--ext-cache``. Only the standard library is used.
"""

import json
import sys
import urllib.request


def post(url, body):
    """Send JSON, return the answer's."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        return json.load(answer)


def main(base_url):
    """Two turns of one session, with a tool between them."""
    session = "agent-7"

    def ask(messages):
        body = {"model": "any", "messages": messages, "max_tokens": 16, "temperature": 0}
        # Any one of these names the session: metadata, the header X-Session-Id, or user.
        answer = post(
            f"{base_url}/v1/chat/completions", {**body, "metadata": {"session_id": session}}
        )
        cached = (answer["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        print(f"{answer['usage']['prompt_tokens']} prompt tokens, {cached} from cache")
        return answer["choices"][0]["message"]["content"]

    def advise(action, seconds=0):
        body = {"session": session, "action": action, "seconds": seconds}
        print(post(f"{base_url}/v1/ext/session", body))

    messages = [
        {"role": "system", "content": "You run tests. " * 60},
        {"role": "user", "content": "Is the build green?"},
    ]
    messages.append({"role": "assistant", "content": ask(messages)})
    advise("pause", 90)  # the tool takes a minute and a half
    advise("pin", 5)  # and a little must not be lost whatever comes
    messages.append({"role": "user", "content": "The tests passed."})
    advise("resume", 1)  # back in a second
    ask(messages)
    advise("end")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:30000")
