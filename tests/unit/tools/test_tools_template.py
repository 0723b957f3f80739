"""What a chat template tells of the spelling of calls, on real templates of Jinja."""

import json

import jinja2
import pytest

from sglang_ext.tools.ebnf import Separators
from sglang_ext.tools.forms import FORMS, VARIANTS
from sglang_ext.tools.template import Spelling, read_template

HERMES = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}{% for call in message.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": ARGUMENTS}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}"""
PREAMBLE = """Write <tool_call>
{"name": "look_up", "arguments": {"place": "here", "numbers": [1, 2]}}
</tool_call>
"""


def rendering(text, **dumps):
    environment = jinja2.Environment()  # noqa: S701 - no HTML
    environment.filters["tojson"] = lambda value: json.dumps(value, **dumps)
    template = environment.from_string(
        text.replace("ARGUMENTS", "{{ call.function.arguments | tojson }}")
    )
    return lambda messages, tools: template.render(messages=messages, tools=tools)


@pytest.mark.parametrize(
    ("dumps", "separators"),
    [({}, Separators(", ", ": ")), ({"separators": (",", ":")}, Separators(",", ":"))],
    ids=["spaced", "compact"],
)
@pytest.mark.parametrize("preamble", ["", PREAMBLE])
def test_a_template_that_agrees_tells_its_separators(dumps, separators, preamble):
    spelling = read_template([FORMS["hermes"]], rendering(preamble + HERMES, **dumps))
    assert spelling.form == FORMS["hermes"].with_separators(separators)
    assert spelling.rendered.count("look_up") == 1


def test_a_template_that_spells_calls_otherwise():
    other = HERMES.replace('"arguments"', '"parameters"')
    spelling = read_template([FORMS["hermes"]], rendering(PREAMBLE + other))
    assert spelling.form is None
    assert '"parameters"' in spelling.rendered
    assert read_template([FORMS["hermes"]], rendering(HERMES, indent=2)).form is None


@pytest.mark.parametrize("call_id", ["", "[CALL_ID]{{ call.id }}"])
def test_the_spelling_that_the_template_has_is_taken(call_id):
    newer = (
        "{% for message in messages %}{{ message.content }}"
        "{% for call in message.tool_calls or [] %}"
        "[TOOL_CALLS]{{ call.function.name }}" + call_id + "[ARGS]ARGUMENTS"
        "{% endfor %}{% endfor %}"
    )
    forms = [FORMS["mistral"], *VARIANTS["mistral"]]
    assert read_template(forms, rendering(newer)).form == VARIANTS["mistral"][0]
    older = newer.replace("[TOOL_CALLS]", '[TOOL_CALLS] [{"name": "').replace(
        "[ARGS]", '", "arguments": '
    )
    older = older.replace(call_id, "").replace("ARGUMENTS", "ARGUMENTS}]")
    assert read_template(forms, rendering(older)).form == FORMS["mistral"]


def test_a_template_without_calls_or_one_that_fails():
    silent = rendering("{% for message in messages %}{{ message.content }}{% endfor %}")
    assert read_template([FORMS["hermes"]], silent).form is None
    failing = rendering("{{ messages[0].nothing.more }}")
    assert read_template([FORMS["hermes"]], failing) == Spelling()


def test_the_template_of_smollm2_agrees(smollm2):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)

    def render(messages, tools):
        return tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)

    assert read_template([FORMS["hermes"]], render).form == FORMS["hermes"]
