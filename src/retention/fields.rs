//! Which fields of which API's requests matter: a tree by full path, one root an API. Arrays are transparent, so that
//! `tools.type` is the type of a tool and of each of several. Sources: WIRE sections 4 and 5, the vendors' API references.

use super::rules::Rule;

/// What stands below one place of a document.
pub(super) struct Node {
    /// What is done with a value that stands here.
    pub(super) act: Act,
    /// Members that matter, if the value is an object.
    pub(super) members: &'static [(&'static str, &'static Node)],
    /// Where to look for a member that is not among `members`.
    pub(super) also: Option<&'static Node>,
    /// Members that an object here must have.
    pub(super) ensured: &'static [Ensured],
}

/// A member that an object gets at its end if it does not have it.
pub(super) struct Ensured {
    pub(super) rule: Rule,
    pub(super) name: &'static str,
    pub(super) value: &'static str,
}

/// What is done with a value.
#[derive(Clone, Copy)]
pub(super) enum Act {
    Pass,
    /// Refused unless null or false.
    Present(Rule),
    /// Refused unless null, false or empty.
    Wish(Rule),
    /// As `Wish`; and null is replaced by false, for where it stands for the provider's default.
    Store(Rule),
    /// Any scalar is replaced by this literal. A container is refused, unless the node has members.
    Force(Rule, &'static str),
    /// A member of the root that is taken out, whatever its value is.
    Drop(Rule),
    /// A string that decides by itself.
    Judge(fn(&[u8]) -> Option<Rule>),
    /// The name of a model that will be asked.
    Model,
    /// As `Model`; and at OpenRouter some names switch a plugin on.
    RoutedModel,
    Stream,
    OutputMax,
    StreamOptions,
    IncludeUsage,
    Thread,
    ThreadType,
    ThreadPrevious,
    /// The type of a WebSocket message.
    MessageType,
}

const fn leaf(act: Act) -> Node {
    Node { act, members: &[], also: None, ensured: &[] }
}

const fn inner(members: &'static [(&'static str, &'static Node)]) -> Node {
    Node { act: Act::Pass, members, also: None, ensured: &[] }
}

static MODEL: Node = leaf(Act::Model);
static STREAM: Node = leaf(Act::Stream);
static OUTPUT_MAX: Node = leaf(Act::OutputMax);
static STORE_OR_NOT: Node = leaf(Act::Wish(Rule::Store));
static STORE_BY_DEFAULT: Node = leaf(Act::Store(Rule::Store));
static METADATA: Node = leaf(Act::Drop(Rule::Metadata));
static FILE: Node = leaf(Act::Wish(Rule::Files));
static FILE_PRESENT: Node = leaf(Act::Present(Rule::Files));
static BACKGROUND: Node = leaf(Act::Wish(Rule::Background));
static CONVERSATION: Node = leaf(Act::Wish(Rule::Conversations));
static PREVIOUS: Node = leaf(Act::Wish(Rule::PreviousResponse));
static STORED_PROMPT: Node = leaf(Act::Present(Rule::StoredPrompt));
static CONTAINER: Node = leaf(Act::Wish(Rule::CodeExecution));
static MCP: Node = leaf(Act::Wish(Rule::Mcp));
static CACHE: Node = leaf(Act::Wish(Rule::Caches));
static FILE_SEARCH: Node = leaf(Act::Present(Rule::FileSearch));
static GROUNDING: Node = leaf(Act::Present(Rule::Grounding));
static RESUMPTION: Node = leaf(Act::Present(Rule::SessionResumption));
static TRACING: Node = leaf(Act::Wish(Rule::Tracing));

// What a request for chat may ask of usage.

static STREAM_OPTIONS: Node =
    Node { act: Act::StreamOptions, members: &[("include_usage", &INCLUDE_USAGE)], also: None, ensured: &[] };
static INCLUDE_USAGE: Node = leaf(Act::IncludeUsage);

// Tools of OpenAI's APIs.

static OPENAI_TOOLS: Node = inner(&[
    ("type", &OPENAI_TOOL_TYPE),
    ("container", &CONTAINER),
    ("vector_store_ids", &FILE_SEARCH),
    ("server_url", &MCP),
    ("connector_id", &MCP),
    ("model", &MODEL),
    // Namespaces hold tools.
    ("tools", &OPENAI_TOOLS),
]);
static OPENAI_TOOL_TYPE: Node = leaf(Act::Judge(openai_tool));

fn openai_tool(name: &[u8]) -> Option<Rule> {
    let is = |prefix: &[u8]| name.len() >= prefix.len() && name[..prefix.len()].eq_ignore_ascii_case(prefix);
    if is(b"file_search") || is(b"retrieval") || is(b"collections_search") {
        Some(Rule::FileSearch)
    } else if is(b"code_interpreter") || is(b"code_execution") || is(b"shell") || is(b"container") {
        Some(Rule::CodeExecution)
    } else if is(b"computer") {
        Some(Rule::ComputerUse)
    } else if is(b"mcp") {
        Some(Rule::Mcp)
    } else {
        None
    }
}

/// `/chat/completions`.
pub(super) static CHAT: Node = Node {
    act: Act::Pass,
    members: &[
        ("model", &MODEL),
        ("stream", &STREAM),
        ("stream_options", &STREAM_OPTIONS),
        ("max_tokens", &OUTPUT_MAX),
        ("max_completion_tokens", &OUTPUT_MAX),
        ("store", &STORE_OR_NOT),
        ("metadata", &METADATA),
        ("messages", &CHAT_MESSAGES),
        ("tools", &OPENAI_TOOLS),
        // xAI: the answer is fetched later.
        ("deferred", &BACKGROUND),
    ],
    also: None,
    ensured: &[],
};
static CHAT_MESSAGES: Node = inner(&[("content", &CHAT_CONTENT)]);
static CHAT_CONTENT: Node =
    inner(&[("file_id", &FILE), ("file", &FILE_BY_ID), ("content", &CHAT_CONTENT), ("source", &SOURCE)]);
static FILE_BY_ID: Node = inner(&[("file_id", &FILE)]);

/// `/completions`.
pub(super) static COMPLETIONS: Node = inner(&[
    ("model", &MODEL),
    ("stream", &STREAM),
    ("stream_options", &STREAM_OPTIONS),
    ("max_tokens", &OUTPUT_MAX),
    ("store", &STORE_OR_NOT),
]);

const RESPONSE_FIELDS: &[(&str, &Node)] = &[
    ("model", &MODEL),
    ("stream", &STREAM),
    ("max_output_tokens", &OUTPUT_MAX),
    ("store", &STORE_BY_DEFAULT),
    ("background", &BACKGROUND),
    ("conversation", &CONVERSATION),
    ("previous_response_id", &PREVIOUS),
    ("prompt", &STORED_PROMPT),
    ("input", &RESPONSE_INPUT),
    ("tools", &OPENAI_TOOLS),
    ("container", &CONTAINER),
];

/// `POST /responses`.
pub(super) static RESPONSES: Node = Node {
    act: Act::Pass,
    members: RESPONSE_FIELDS,
    also: None,
    ensured: &[Ensured { rule: Rule::Store, name: "store", value: "false" }],
};

/// `POST /responses/compact`, which does not know `store`.
pub(super) static RESPONSES_COMPACT: Node =
    Node { act: Act::Pass, members: &[("store", &STORE_OR_NOT)], also: Some(&RESPONSES_PLAIN), ensured: &[] };
static RESPONSES_PLAIN: Node = inner(RESPONSE_FIELDS);

/// A message of Responses over a WebSocket: a request's fields beside `type`. The last answer is kept in the memory of
/// the connection alone, so it may be built on.
pub(super) static RESPONSES_MESSAGE: Node = Node {
    act: Act::Pass,
    members: &[
        ("type", &MESSAGE_TYPE),
        ("previous_response_id", &ANYTHING),
        ("response", &RESPONSES_WRAPPED),
        ("session", &REALTIME_SESSION),
    ],
    also: Some(&RESPONSES_PLAIN),
    ensured: &[Ensured { rule: Rule::Store, name: "store", value: "false" }],
};
static RESPONSES_WRAPPED: Node = Node {
    act: Act::Pass,
    members: &[("previous_response_id", &ANYTHING)],
    also: Some(&RESPONSES_PLAIN),
    ensured: &[],
};
static MESSAGE_TYPE: Node = leaf(Act::MessageType);
static ANYTHING: Node = leaf(Act::Pass);

static RESPONSE_INPUT: Node = inner(&[
    ("type", &RESPONSE_ITEM_TYPE),
    ("file_id", &FILE),
    ("content", &RESPONSE_CONTENT),
    ("output", &RESPONSE_CONTENT),
    ("tools", &OPENAI_TOOLS),
]);
static RESPONSE_CONTENT: Node = inner(&[("file_id", &FILE), ("content", &RESPONSE_CONTENT)]);
static RESPONSE_ITEM_TYPE: Node = leaf(Act::Judge(response_item));

fn response_item(name: &[u8]) -> Option<Rule> {
    name.eq_ignore_ascii_case(b"item_reference").then_some(Rule::Stored)
}

/// Realtime: WebSocket messages, and the sessions that `POST /realtime/client_secrets` prepares.
pub(super) static REALTIME: Node = inner(&[
    ("session", &REALTIME_SESSION),
    ("response", &REALTIME_SESSION),
    ("model", &MODEL),
    ("store", &STORE_OR_NOT),
    ("tools", &OPENAI_TOOLS),
    ("prompt", &STORED_PROMPT),
    ("tracing", &TRACING),
    ("item", &RESPONSE_INPUT),
]);
static REALTIME_SESSION: Node = inner(&[
    ("model", &MODEL),
    ("store", &STORE_OR_NOT),
    ("tools", &OPENAI_TOOLS),
    ("prompt", &STORED_PROMPT),
    ("tracing", &TRACING),
    ("input", &RESPONSE_INPUT),
    ("max_output_tokens", &OUTPUT_MAX),
    ("audio", &REALTIME_AUDIO),
    ("input_audio_transcription", &REALTIME_TRANSCRIPTION),
]);
static REALTIME_AUDIO: Node = inner(&[("input", &REALTIME_AUDIO_INPUT)]);
static REALTIME_AUDIO_INPUT: Node = inner(&[("transcription", &REALTIME_TRANSCRIPTION)]);
static REALTIME_TRANSCRIPTION: Node = inner(&[("model", &MODEL)]);

/// Anthropic's `/messages`.
pub(super) static MESSAGES: Node = inner(&[
    ("model", &MODEL),
    ("stream", &STREAM),
    ("max_tokens", &OUTPUT_MAX),
    ("thread", &THREAD),
    ("container", &CONTAINER),
    ("mcp_servers", &MCP),
    ("system", &MESSAGE_CONTENT),
    ("messages", &MESSAGE),
    ("tools", &MESSAGE_TOOLS),
]);
static MESSAGE: Node = inner(&[("content", &MESSAGE_CONTENT)]);
static MESSAGE_CONTENT: Node = inner(&[
    ("type", &BLOCK_TYPE),
    ("file_id", &FILE),
    ("source", &SOURCE),
    // Results of tools, and documents made of blocks, hold blocks.
    ("content", &MESSAGE_CONTENT),
]);
static BLOCK_TYPE: Node = leaf(Act::Judge(block_type));
static SOURCE: Node =
    inner(&[("type", &SOURCE_TYPE), ("file_id", &FILE), ("content", &MESSAGE_CONTENT), ("source", &SOURCE)]);
static SOURCE_TYPE: Node = leaf(Act::Judge(source_type));
static MESSAGE_TOOLS: Node =
    inner(&[("type", &MESSAGE_TOOL_TYPE), ("allowed_callers", &MESSAGE_TOOL_CALLER), ("model", &MODEL)]);
static MESSAGE_TOOL_TYPE: Node = leaf(Act::Judge(message_tool));
static MESSAGE_TOOL_CALLER: Node = leaf(Act::Judge(message_tool_caller));

static THREAD: Node = Node {
    act: Act::Thread,
    members: &[("type", &THREAD_TYPE), ("previous_message_id", &THREAD_PREVIOUS)],
    also: None,
    ensured: &[],
};
static THREAD_TYPE: Node = leaf(Act::ThreadType);
static THREAD_PREVIOUS: Node = leaf(Act::ThreadPrevious);

fn block_type(name: &[u8]) -> Option<Rule> {
    name.eq_ignore_ascii_case(b"container_upload").then_some(Rule::Files)
}

fn source_type(name: &[u8]) -> Option<Rule> {
    name.eq_ignore_ascii_case(b"file").then_some(Rule::Files)
}

fn message_tool(name: &[u8]) -> Option<Rule> {
    if name.starts_with(b"code_execution") {
        return Some(Rule::CodeExecution);
    }
    if name.starts_with(b"mcp") {
        return Some(Rule::Mcp);
    }
    // Versions from here on filter their results by running code in a container.
    let filtered = [&b"web_search_"[..], b"web_fetch_"].iter().find_map(|prefix| name.strip_prefix(*prefix));
    filtered.filter(|version| *version >= &b"20260209"[..]).map(|_| Rule::CodeExecution)
}

fn message_tool_caller(name: &[u8]) -> Option<Rule> {
    name.starts_with(b"code_execution").then_some(Rule::CodeExecution)
}

/// Google's `:generateContent` and `:streamGenerateContent`. Its parser knows each field by two names.
pub(super) static GENERATE: Node = inner(&[
    ("generationConfig", &GENERATION_CONFIG),
    ("generation_config", &GENERATION_CONFIG),
    ("cachedContent", &CACHE),
    ("cached_content", &CACHE),
    ("contents", &CONTENTS),
    ("systemInstruction", &CONTENTS),
    ("system_instruction", &CONTENTS),
    ("tools", &GOOGLE_TOOLS),
    ("store", &STORE_OR_NOT),
]);
static GENERATION_CONFIG: Node = inner(&[("maxOutputTokens", &OUTPUT_MAX), ("max_output_tokens", &OUTPUT_MAX)]);
static CONTENTS: Node = inner(&[("parts", &PARTS)]);
static PARTS: Node = inner(&[
    ("fileData", &FILE_PRESENT),
    ("file_data", &FILE_PRESENT),
    ("functionResponse", &CONTENTS),
    ("function_response", &CONTENTS),
]);
static GOOGLE_TOOLS: Node = inner(&[
    ("googleSearch", &GROUNDING),
    ("google_search", &GROUNDING),
    ("googleSearchRetrieval", &GROUNDING),
    ("google_search_retrieval", &GROUNDING),
    ("googleMaps", &GROUNDING),
    ("google_maps", &GROUNDING),
    ("fileSearch", &FILE_SEARCH),
    ("file_search", &FILE_SEARCH),
    ("mcpServers", &MCP),
    ("mcp_servers", &MCP),
    ("type", &INTERACTION_TOOL_TYPE),
]);
static INTERACTION_TOOL_TYPE: Node = leaf(Act::Judge(interaction_tool));

fn interaction_tool(name: &[u8]) -> Option<Rule> {
    match name {
        b"google_search" | b"google_maps" | b"googleSearch" | b"googleMaps" => Some(Rule::Grounding),
        b"file_search" | b"fileSearch" => Some(Rule::FileSearch),
        b"mcp_server" | b"mcpServer" => Some(Rule::Mcp),
        _ => None,
    }
}

/// A message of Google's Live API.
pub(super) static LIVE_MESSAGE: Node = inner(&[
    ("setup", &LIVE_SETUP),
    ("clientContent", &LIVE_CONTENT),
    ("client_content", &LIVE_CONTENT),
    ("toolResponse", &LIVE_TOOL_RESPONSE),
    ("tool_response", &LIVE_TOOL_RESPONSE),
]);
static LIVE_SETUP: Node = Node {
    act: Act::Pass,
    members: &[("model", &MODEL), ("sessionResumption", &RESUMPTION), ("session_resumption", &RESUMPTION)],
    also: Some(&GENERATE),
    ensured: &[],
};
static LIVE_CONTENT: Node = inner(&[("turns", &CONTENTS)]);
static LIVE_TOOL_RESPONSE: Node = inner(&[("functionResponses", &CONTENTS), ("function_responses", &CONTENTS)]);

/// Google's `/interactions`.
pub(super) static INTERACTIONS: Node = Node {
    act: Act::Pass,
    members: &[
        ("model", &MODEL),
        ("agent", &MODEL),
        ("stream", &STREAM),
        ("generation_config", &GENERATION_CONFIG),
        ("generationConfig", &GENERATION_CONFIG),
        ("store", &STORE_BY_DEFAULT),
        ("background", &BACKGROUND),
        ("previous_interaction_id", &PREVIOUS),
        ("previousInteractionId", &PREVIOUS),
        ("cached_content", &CACHE),
        ("cachedContent", &CACHE),
        ("tools", &GOOGLE_TOOLS),
        ("input", &CONTENTS),
    ],
    also: None,
    ensured: &[Ensured { rule: Rule::Store, name: "store", value: "false" }],
};

/// What OpenRouter adds to every API that it speaks.
const OPENROUTER_FIELDS: &[(&str, &Node)] = &[
    ("provider", &OPENROUTER_PROVIDER),
    ("model", &ROUTED_MODEL),
    ("models", &ROUTED_MODEL),
    ("user", &METADATA),
    ("session_id", &METADATA),
    ("trace", &METADATA),
    ("metadata", &METADATA),
    ("plugins", &PLUGINS),
    ("debug", &DEBUG),
];
const OPENROUTER_ENSURED: Ensured =
    Ensured { rule: Rule::DataCollection, name: "provider", value: r#"{"data_collection":"deny","zdr":true}"# };
static ROUTED_MODEL: Node = leaf(Act::RoutedModel);
static PLUGINS: Node = leaf(Act::Wish(Rule::Plugins));
static DEBUG: Node = leaf(Act::Wish(Rule::Debug));
static OPENROUTER_PROVIDER: Node = Node {
    act: Act::Force(Rule::DataCollection, r#"{"data_collection":"deny","zdr":true}"#),
    members: &[("data_collection", &DENY), ("zdr", &TRUE)],
    also: None,
    ensured: &[
        Ensured { rule: Rule::DataCollection, name: "data_collection", value: "\"deny\"" },
        Ensured { rule: Rule::DataCollection, name: "zdr", value: "true" },
    ],
};
static DENY: Node = leaf(Act::Force(Rule::DataCollection, "\"deny\""));
static TRUE: Node = leaf(Act::Force(Rule::DataCollection, "true"));

pub(super) static OPENROUTER_CHAT: Node =
    Node { act: Act::Pass, members: OPENROUTER_FIELDS, also: Some(&CHAT), ensured: &[OPENROUTER_ENSURED] };
pub(super) static OPENROUTER_COMPLETIONS: Node =
    Node { act: Act::Pass, members: OPENROUTER_FIELDS, also: Some(&COMPLETIONS), ensured: &[OPENROUTER_ENSURED] };
pub(super) static OPENROUTER_RESPONSES: Node = Node {
    act: Act::Pass,
    members: OPENROUTER_FIELDS,
    also: Some(&RESPONSES_PLAIN),
    ensured: &[OPENROUTER_ENSURED, Ensured { rule: Rule::Store, name: "store", value: "false" }],
};
pub(super) static OPENROUTER_MESSAGES: Node =
    Node { act: Act::Pass, members: OPENROUTER_FIELDS, also: Some(&MESSAGES), ensured: &[OPENROUTER_ENSURED] };
pub(super) static OPENROUTER_EMBEDDINGS: Node =
    Node { act: Act::Pass, members: OPENROUTER_FIELDS, also: None, ensured: &[OPENROUTER_ENSURED] };

/// What Vercel's gateway adds.
const VERCEL_FIELDS: &[(&str, &Node)] = &[("providerOptions", &VERCEL_OPTIONS)];
const VERCEL_ENSURED: Ensured =
    Ensured { rule: Rule::DataCollection, name: "providerOptions", value: r#"{"gateway":{"zeroDataRetention":true}}"# };
static VERCEL_OPTIONS: Node = Node {
    act: Act::Force(Rule::DataCollection, r#"{"gateway":{"zeroDataRetention":true}}"#),
    members: &[("gateway", &VERCEL_GATEWAY)],
    also: None,
    ensured: &[Ensured { rule: Rule::DataCollection, name: "gateway", value: r#"{"zeroDataRetention":true}"# }],
};
static VERCEL_GATEWAY: Node = Node {
    act: Act::Force(Rule::DataCollection, r#"{"zeroDataRetention":true}"#),
    members: &[("zeroDataRetention", &TRUE)],
    also: None,
    ensured: &[Ensured { rule: Rule::DataCollection, name: "zeroDataRetention", value: "true" }],
};
pub(super) static VERCEL_CHAT: Node =
    Node { act: Act::Pass, members: VERCEL_FIELDS, also: Some(&CHAT), ensured: &[VERCEL_ENSURED] };
pub(super) static VERCEL_RESPONSES: Node = Node {
    act: Act::Pass,
    members: VERCEL_FIELDS,
    also: Some(&RESPONSES_PLAIN),
    ensured: &[VERCEL_ENSURED, Ensured { rule: Rule::Store, name: "store", value: "false" }],
};
pub(super) static VERCEL_MESSAGES: Node =
    Node { act: Act::Pass, members: VERCEL_FIELDS, also: Some(&MESSAGES), ensured: &[VERCEL_ENSURED] };

/// `/images/edits` as JSON: pictures by reference.
pub(super) static IMAGES: Node = inner(&[
    ("model", &MODEL),
    ("stream", &STREAM),
    ("image", &FILE_BY_ID),
    ("images", &FILE_BY_ID),
    ("mask", &FILE_BY_ID),
]);

/// Mistral's `/ocr`.
pub(super) static OCR: Node = inner(&[("model", &MODEL), ("document", &FILE_BY_ID)]);

/// Any other request that names its model at the root.
pub(super) static MODEL_ONLY: Node =
    inner(&[("model", &MODEL), ("models", &MODEL), ("stream", &STREAM), ("max_tokens", &OUTPUT_MAX)]);

impl Node {
    /// The node of a member of an object here. Names compare as the most lenient parsers do it: without case, and with
    /// the letters that fold into ASCII (Go's `encoding/json`: U+017F, U+212A; Java's `equalsIgnoreCase`: U+0130, U+0131).
    pub(super) fn member(&'static self, name: &[u8]) -> Option<&'static Self> {
        let (mut node, ascii) = (Some(self), name.is_ascii());
        while let Some(this) = node {
            if let Some((_, found)) = this.members.iter().find(|(member, _)| folds_to(name, ascii, member)) {
                return Some(found);
            }
            node = this.also;
        }
        None
    }

    /// Whether anything can happen below or at an object here.
    pub(super) fn is_leaf(&self) -> bool {
        self.members.is_empty() && self.also.is_none()
    }
}

/// The longest name of a member in the trees, as the longest spelling that folds to it: no letter of a spelling takes more
/// than three bytes.
pub(super) const NAME_BYTES_MAX: usize = 26 * 3;

/// Whether `name`, which is `ascii` or not, is a spelling of `member` to some parser.
pub(super) fn folds_to(name: &[u8], ascii: bool, member: &str) -> bool {
    // A letter from outside ASCII takes more bytes than the one that it folds to.
    if ascii || name.len() <= member.len() {
        return name.len() == member.len() && name.eq_ignore_ascii_case(member.as_bytes());
    }
    let mut rest = name;
    for expected in member.bytes() {
        let (letter, taken) = match rest {
            [0xC5, 0xBF, ..] => (b's', 2),
            [0xE2, 0x84, 0xAA, ..] => (b'k', 3),
            [0xC4, 0xB0 | 0xB1, ..] => (b'i', 2),
            [byte, ..] => (byte.to_ascii_lowercase(), 1),
            [] => return false,
        };
        if letter != expected.to_ascii_lowercase() {
            return false;
        }
        rest = &rest[taken..];
    }
    rest.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fold_as_lenient_parsers_do_it() {
        let folds_to = |name: &[u8], member| folds_to(name, name.is_ascii(), member);
        for name in ["store", "STORE", "Store", "\u{17f}tore", "\u{17f}TORE"] {
            assert!(folds_to(name.as_bytes(), "store"), "{name}");
        }
        assert!(folds_to("bac\u{212a}ground".as_bytes(), "background"));
        assert!(folds_to("f\u{131}le_id".as_bytes(), "file_id"));
        assert!(folds_to(b"CACHEDCONTENT", "cachedContent"));
        for name in ["stor", "stores", "", "st0re", "sto\u{301}re", "\u{17e}tore"] {
            assert!(!folds_to(name.as_bytes(), "store"), "{name}");
        }
    }

    #[test]
    fn tools_by_type() {
        for (name, rule) in [
            ("code_interpreter", Some(Rule::CodeExecution)),
            ("shell", Some(Rule::CodeExecution)),
            ("file_search", Some(Rule::FileSearch)),
            ("computer_use_preview", Some(Rule::ComputerUse)),
            ("mcp", Some(Rule::Mcp)),
            ("function", None),
            ("custom", None),
            ("local_shell", None),
            ("apply_patch", None),
            ("web_search", None),
            ("web_search_preview", None),
            ("image_generation", None),
        ] {
            assert_eq!(openai_tool(name.as_bytes()), rule, "{name}");
        }
        for (name, rule) in [
            ("code_execution_20250825", Some(Rule::CodeExecution)),
            ("web_search_20250305", None),
            ("web_search_20260209", Some(Rule::CodeExecution)),
            ("web_fetch_20260209", Some(Rule::CodeExecution)),
            ("web_fetch_20250910", None),
            ("mcp_toolset", Some(Rule::Mcp)),
            ("memory_20250818", None),
            ("bash_20250124", None),
            ("computer_20250124", None),
            ("text_editor_20250728", None),
            ("tool_search_tool_regex_20251119", None),
            ("custom", None),
        ] {
            assert_eq!(message_tool(name.as_bytes()), rule, "{name}");
        }
    }
}
