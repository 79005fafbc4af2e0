//! The providers and the operations of their APIs, as closed sets.

/// Whose API an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Provider {
    Openai,
    Anthropic,
    Gemini,
    Vertex,
    Bedrock,
    Azure,
    Compatible,
}

impl Provider {
    pub const ALL: &[Self] = &[
        Self::Openai,
        Self::Anthropic,
        Self::Gemini,
        Self::Vertex,
        Self::Bedrock,
        Self::Azure,
        Self::Compatible,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Anthropic => "anthropic",
            Self::Gemini => "gemini",
            Self::Vertex => "vertex",
            Self::Bedrock => "bedrock",
            Self::Azure => "azure",
            Self::Compatible => "compatible",
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    ChatCompletions,
    Responses,
    Completions,
    Messages,
    CountTokens,
    GenerateContent,
    Embeddings,
    Images,
    Audio,
    Realtime,
    Models,
    Files,
    Other,
}

impl Operation {
    pub const ALL: &[Self] = &[
        Self::ChatCompletions,
        Self::Responses,
        Self::Completions,
        Self::Messages,
        Self::CountTokens,
        Self::GenerateContent,
        Self::Embeddings,
        Self::Images,
        Self::Audio,
        Self::Realtime,
        Self::Models,
        Self::Files,
        Self::Other,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat_completions",
            Self::Responses => "responses",
            Self::Completions => "completions",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
            Self::GenerateContent => "generate_content",
            Self::Embeddings => "embeddings",
            Self::Images => "images",
            Self::Audio => "audio",
            Self::Realtime => "realtime",
            Self::Models => "models",
            Self::Files => "files",
            Self::Other => "other",
        }
    }
}
