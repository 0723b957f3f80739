"""What the enforcement of tool calls stands on."""

from sglang_ext.upstream.symbols import Symbol

__all__ = [
    "CALL_PARSER",
    "CHAT",
    "MESSAGES",
    "RESPONSES",
    "SAMPLING",
    "SAMPLING_PARAMS",
    "SYMBOLS",
]

CHAT = "sglang.srt.entrypoints.openai.serving_chat:OpenAIServingChat"
RESPONSES = "sglang.srt.entrypoints.openai.serving_responses:OpenAIServingResponses"
MESSAGES = "sglang.srt.entrypoints.anthropic.serving:AnthropicServing"
SAMPLING_PARAMS = "sglang.srt.entrypoints.openai.protocol:ChatCompletionRequest.to_sampling_params"
CALL_PARSER = "sglang.srt.function_call.function_call_parser:FunctionCallParser"
SAMPLING = "sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo"

SYMBOLS: tuple[Symbol, ...] = (
    Symbol(
        "sglang.srt.runtime_context:publish",
        "called once in each process when its arguments are known, before it serves",
        ("server_args", "role"),
    ),
    Symbol(
        f"{CHAT}._validate_request",
        "returns why a request is refused, or None",
        ("request",),
    ),
    Symbol(f"{CHAT}._effective_tools", "the tools of a request", ("request",)),
    Symbol(
        f"{CHAT}._process_tool_calls",
        "an answer that was not streamed, through the tool-call parser; finish_reason is the "
        "dict of the result's meta_info",
        ("text", "tools", "finish_reason"),
    ),
    Symbol(
        f"{CHAT}._process_tool_call_stream",
        "a piece of a streamed answer; parser_dict holds the parser of each choice",
        ("index", "delta", "parser_dict", "content", "request", "created", "flush"),
    ),
    Symbol(
        f"{CHAT}._build_chat_response",
        "the response, whose metadata is a dict of anything",
        ("request", "ret", "created"),
    ),
    Symbol(
        f"{RESPONSES}._response_tools_to_chat_tools",
        "tools of /v1/responses as those of chat, with strict false where nothing was said",
        ("request",),
    ),
    Symbol(
        f"{MESSAGES}._convert_to_chat_completion_request",
        "a request of /v1/messages as one of chat, with strict false where nothing was said",
        ("anthropic_request",),
    ),
    Symbol(
        f"{CALL_PARSER}.__init__",
        "made for each request and each answer",
        ("tools", "tool_call_parser", "tool_choice"),
    ),
    Symbol(
        f"{CALL_PARSER}.get_structure_constraint",
        "the constraint of a request; a ValueError is answered with 400",
        ("tool_choice", "parallel_tool_calls", "thinking_mode"),
    ),
    Symbol(f"{CALL_PARSER}.has_tool_call", "whether a text is parsed at all", ("text",)),
    Symbol(f"{CALL_PARSER}.owns_tool_format", "whether this parser reads required calls"),
    Symbol(f"{CALL_PARSER}.parse_non_stream", "content and calls of a text", ("full_text",)),
    Symbol(f"{CALL_PARSER}.parse_stream_chunk", "the same, of a piece", ("chunk_text",)),
    Symbol(f"{CALL_PARSER}.parse_stream_end", "the same, when nothing follows"),
    Symbol(
        "sglang.srt.constrained.xgrammar_backend:XGrammarGrammarBackend.__init__",
        "makes cache, executor, grammar_compiler and _tokenizer_info",
        ("tokenizer", "vocab_size"),
    ),
    Symbol(
        "sglang.srt.constrained.base_grammar_backend:BaseGrammarBackend.get_cached_or_future_value",
        "a grammar, or the future of one, and whether it was there",
        ("key", "require_reasoning"),
    ),
    Symbol(
        "sglang.srt.constrained.base_grammar_backend:BaseGrammarBackend._init_value_dispatch",
        "compiles a grammar, or returns an InvalidGrammarObject without ctx; safe in any thread",
        ("key", "require_reasoning"),
    ),
    Symbol(
        "sglang.srt.constrained.grammar_manager:GrammarManager.process_req_with_grammar",
        "req.grammar is the request's own when it was cached",
        ("req",),
    ),
    Symbol(
        "sglang.srt.constrained.grammar_manager:GrammarManager.get_ready_grammar_requests",
        "returns the requests whose grammar is compiled",
    ),
    Symbol(
        "sglang.srt.constrained.xgrammar_backend:XGrammarGrammar.fill_vocab_mask",
        "fills one row of 32-bit words before a token is sampled",
        ("vocab_mask", "idx"),
    ),
    Symbol(
        "sglang.srt.constrained.xgrammar_backend:XGrammarGrammar.accept_token",
        "takes the token that was sampled",
        ("token",),
    ),
    Symbol(
        "sglang.srt.managers.schedule_batch:Req.update_finish_state",
        "sets finished_reason, whose to_json() is the finish_reason of meta_info",
        ("new_accepted_len",),
    ),
    Symbol(
        "sglang.srt.managers.schedule_batch:FINISH_LENGTH",
        "the reason of an answer that was cut off",
        ("length",),
    ),
    Symbol(
        f"{SAMPLING}.update_regex_vocab_mask",
        "fills a mask from self.grammars, one a row, before each sampling; not in speculative "
        "decoding",
    ),
    Symbol(
        f"{SAMPLING}._apply_pre_grammar_logits_transforms",
        "applies penalties to the logits in place, before the mask",
        ("logits",),
    ),
    Symbol(
        f"{SAMPLING}._apply_post_grammar_logits_transforms",
        "the last change of the logits before they are sampled, in place",
        ("logits",),
    ),
    Symbol(
        f"{CHAT}._process_messages",
        "asks the tool-call parser for the constraint of a request",
        ("request", "is_multimodal"),
    ),
    Symbol(
        f"{CHAT}._convert_to_internal_request",
        "refuses return_meta_info in streams",
        ("request", "raw_request"),
    ),
    Symbol(
        f"{CHAT}._generate_chat_stream",
        "frames of server-sent events, the last of them [DONE]",
        ("adapted_request", "request", "raw_request"),
    ),
    Symbol(f"{CHAT}._reported_prompt_tokens", "tokens read, as usage tells them", ("meta_info",)),
    Symbol(
        f"{CHAT}._continuous_usage_cached_details", "those of them from the cache", ("content",)
    ),
    Symbol(
        "sglang.srt.entrypoints.openai.usage_processor:UsageProcessor.calculate_token_usage",
        "usage as chunks have it",
        ("prompt_tokens", "completion_tokens", "reasoning_tokens", "cached_tokens"),
    ),
    Symbol(
        SAMPLING_PARAMS,
        "puts response_format and the constraint of tools together; refuses or drops one",
        ("stop", "model_generation_config", "tool_call_constraint"),
    ),
    Symbol(
        f"{MESSAGES}._convert_response",
        "a response of chat as one of /v1/messages, whose model_dump() is sent",
        ("response",),
    ),
    Symbol(
        f"{MESSAGES}._generate_anthropic_stream",
        "frames of server-sent events, read by the task that parsed the answer",
    ),
    Symbol(
        f"{RESPONSES}._build_response",
        "static; the response of /v1/responses, once its items are made",
        ("request", "sampling_params"),
    ),
)
