//! The providers: a closed list, and what nullhop must know of each by heart.

/// The API family behind an upstream. Label values of `nullhop_upstream_info{provider}`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Provider {
    Openai,
    Anthropic,
    Gemini,
    Vertex,
    Bedrock,
    Azure,
    /// Any other service that speaks OpenAI's API.
    Compatible,
}

impl Provider {
    /// All of them, in label order.
    pub const ALL: &[Self] = &[
        Self::Openai,
        Self::Anthropic,
        Self::Gemini,
        Self::Vertex,
        Self::Bedrock,
        Self::Azure,
        Self::Compatible,
    ];

    /// The configuration's and the label's spelling.
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
