//! The providers: a closed list, and what nullhop must know of each by heart.
//!
//! Paths here are an upstream's own: the client's path after the route's prefix was taken off, with
//! its leading slash, without the query. Sources: the vendors' SDKs and API references.

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

/// What a request asks for. Label values of `operation`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
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

/// Whose error shape an answer of ours must have, so that the caller's SDK raises the right class.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Dialect {
    Openai,
    Anthropic,
    Google,
}

impl Provider {
    /// All of them, in label order.
    pub const ALL: &[Self] =
        &[Self::Openai, Self::Anthropic, Self::Gemini, Self::Vertex, Self::Bedrock, Self::Azure, Self::Compatible];

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

    /// The dialect of the API at `path`. DeepSeek and others serve Anthropic's API below
    /// `/anthropic`, OpenRouter at `/v1/messages`.
    pub(crate) fn dialect(self, path: &str) -> Dialect {
        match self {
            Self::Anthropic => Dialect::Anthropic,
            Self::Gemini | Self::Vertex => Dialect::Google,
            Self::Openai | Self::Bedrock | Self::Azure => Dialect::Openai,
            Self::Compatible => {
                if path.starts_with("/anthropic/") || path.contains("/v1/messages") {
                    Dialect::Anthropic
                } else {
                    Dialect::Openai
                }
            }
        }
    }

    /// Whether `path` shows a base URL set wrongly: a version segment missing or doubled. Such a
    /// request cannot succeed at the provider; the answer names the right base URL.
    pub(crate) fn base_url_mistake(self, path: &str) -> bool {
        let mut segments = path.split('/').skip(1);
        let first = segments.next().unwrap_or("");
        let second = segments.next().unwrap_or("");
        if is_version(first) && is_version(second) {
            return true;
        }
        match self {
            Self::Openai => first != "v1",
            Self::Anthropic => first != "v1" && first != "api",
            Self::Gemini => !is_version(first) && !matches!(first, "upload" | "ws" | "download"),
            Self::Vertex | Self::Bedrock | Self::Azure | Self::Compatible => first.is_empty(),
        }
    }

    /// What comes after the route's prefix in the base URL that SDKs of this provider want.
    pub(crate) fn base_url_suffix(self) -> &'static str {
        match self {
            Self::Openai => "/v1",
            Self::Compatible => "/v1",
            Self::Anthropic | Self::Gemini | Self::Vertex | Self::Bedrock | Self::Azure => "",
        }
    }
}

/// `v1`, `v1beta`, `v1alpha`, `v2`, `v1beta1`.
fn is_version(segment: &str) -> bool {
    let mut bytes = segment.bytes();
    bytes.next() == Some(b'v')
        && bytes.next().is_some_and(|byte| byte.is_ascii_digit())
        && bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

impl Operation {
    /// All of them, in label order.
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

    /// The label's spelling.
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

    /// Which operation `path` is, by the words that the providers' paths end in or contain.
    pub(crate) fn of(path: &str) -> Self {
        // Gemini: `models/{model}:method`.
        if let Some((_, method)) = path.rsplit_once(':') {
            match method {
                "generateContent" | "streamGenerateContent" => return Self::GenerateContent,
                "countTokens" | "computeTokens" => return Self::CountTokens,
                "embedContent" | "batchEmbedContents" => return Self::Embeddings,
                _ => {}
            }
        }
        if path.ends_with("/chat/completions") {
            return Self::ChatCompletions;
        }
        if path.ends_with("/messages/count_tokens") || path.ends_with("/responses/input_tokens") {
            return Self::CountTokens;
        }
        if path.starts_with("/ws/") {
            return Self::Realtime;
        }
        let mut operation = Self::Other;
        for segment in path.split('/') {
            operation = match segment {
                "responses" => Self::Responses,
                "completions" => Self::Completions,
                "messages" => Self::Messages,
                "embeddings" => Self::Embeddings,
                "images" => Self::Images,
                "audio" => Self::Audio,
                "realtime" | "live" => Self::Realtime,
                "models" => Self::Models,
                "files" | "uploads" | "upload" | "batches" | "cachedContents" => Self::Files,
                "interactions" => Self::GenerateContent,
                _ => continue,
            };
            break;
        }
        operation
    }

    /// Whether bodies of this operation are files, which may be larger than JSON requests.
    pub(crate) fn uploads(self) -> bool {
        matches!(self, Self::Files | Self::Images | Self::Audio)
    }
}

/// Whose API a path at a bare base URL belongs to. `anthropic` and `google` say whether the request
/// carries those vendors' own headers, which settles the paths that two of them share.
pub(crate) fn well_known(path: &str, anthropic: bool, google: bool) -> Option<Dialect> {
    let mut segments = path.split('/').skip(1);
    let first = segments.next()?;
    let second = segments.next().unwrap_or("");
    if first == "ws" && second.starts_with("google.ai.") {
        return Some(Dialect::Google);
    }
    if first == "upload" && is_version(second) {
        return Some(Dialect::Google);
    }
    if first == "api" && second == "hello" {
        return Some(Dialect::Anthropic);
    }
    if !is_version(first) {
        return None;
    }
    if first != "v1" {
        return Some(Dialect::Google);
    }
    match second {
        "messages" => Some(Dialect::Anthropic),
        "chat" | "completions" | "responses" | "embeddings" | "moderations" | "audio" | "images" | "realtime"
        | "live" => Some(Dialect::Openai),
        "models" if path.contains(':') => Some(Dialect::Google),
        "tunedModels" | "cachedContents" | "interactions" => Some(Dialect::Google),
        "" => None,
        _ if anthropic => Some(Dialect::Anthropic),
        _ if google => Some(Dialect::Google),
        _ => Some(Dialect::Openai),
    }
}

impl Dialect {
    /// The dialect of a request that no route serves, by what its path and headers look like.
    pub(crate) fn guess(path: &str, anthropic: bool, google: bool) -> Self {
        if anthropic || path.contains("/messages") {
            Self::Anthropic
        } else if google || path.contains("/v1beta") || path.contains(":generateContent") {
            Self::Google
        } else {
            Self::Openai
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_by_path() {
        for (path, operation) in [
            ("/v1/chat/completions", Operation::ChatCompletions),
            ("/openai/deployments/d/chat/completions", Operation::ChatCompletions),
            ("/v1/completions", Operation::Completions),
            ("/v1/responses", Operation::Responses),
            ("/v1/responses/resp_1/cancel", Operation::Responses),
            ("/v1/responses/input_tokens", Operation::CountTokens),
            ("/v1/messages", Operation::Messages),
            ("/v1/messages/count_tokens", Operation::CountTokens),
            ("/v1/messages/batches", Operation::Messages),
            ("/v1beta/models/gemini-x:generateContent", Operation::GenerateContent),
            ("/v1beta/models/gemini-x:streamGenerateContent", Operation::GenerateContent),
            ("/v1beta/models/gemini-x:countTokens", Operation::CountTokens),
            ("/v1beta/models/gemini-x:embedContent", Operation::Embeddings),
            ("/v1/embeddings", Operation::Embeddings),
            ("/v1/images/generations", Operation::Images),
            ("/v1/audio/speech", Operation::Audio),
            ("/v1/realtime", Operation::Realtime),
            ("/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent", Operation::Realtime),
            ("/v1/models", Operation::Models),
            ("/v1/models/m", Operation::Models),
            ("/v1/files", Operation::Files),
            ("/upload/v1beta/files", Operation::Files),
            ("/", Operation::Other),
            ("/v1/organization/costs", Operation::Other),
        ] {
            assert_eq!(Operation::of(path), operation, "{path}");
        }
    }

    #[test]
    fn base_url_mistakes() {
        for (provider, path, mistake) in [
            (Provider::Openai, "/v1/chat/completions", false),
            (Provider::Openai, "/chat/completions", true),
            (Provider::Openai, "/v1/v1/chat/completions", true),
            (Provider::Openai, "/", true),
            (Provider::Anthropic, "/v1/messages", false),
            (Provider::Anthropic, "/v1/v1/messages", true),
            (Provider::Anthropic, "/messages", true),
            (Provider::Anthropic, "/api/hello", false),
            (Provider::Gemini, "/v1beta/models/m:generateContent", false),
            (Provider::Gemini, "/v1alpha/models/m:generateContent", false),
            (Provider::Gemini, "/models/m:generateContent", true),
            (Provider::Gemini, "/v1beta/v1beta/models/m:generateContent", true),
            (Provider::Gemini, "/upload/v1beta/files", false),
            (Provider::Compatible, "/chat/completions", false),
            (Provider::Compatible, "/v1/v1/chat/completions", true),
            (Provider::Compatible, "/openai/v1/chat/completions", false),
        ] {
            assert_eq!(provider.base_url_mistake(path), mistake, "{path}");
        }
    }

    #[test]
    fn bare_base_urls() {
        for (path, anthropic, google, dialect) in [
            ("/v1/chat/completions", false, false, Some(Dialect::Openai)),
            ("/v1/messages", false, false, Some(Dialect::Anthropic)),
            ("/v1/models", true, false, Some(Dialect::Anthropic)),
            ("/v1/models", false, true, Some(Dialect::Google)),
            ("/v1/models", false, false, Some(Dialect::Openai)),
            ("/v1/models/m:generateContent", false, false, Some(Dialect::Google)),
            ("/v1beta/models/m:generateContent", false, false, Some(Dialect::Google)),
            ("/api/hello", false, false, Some(Dialect::Anthropic)),
            ("/", false, false, None),
            ("/v1", false, false, None),
            ("/metrics", false, false, None),
            ("/favicon.ico", false, false, None),
        ] {
            assert_eq!(well_known(path, anthropic, google), dialect, "{path}");
        }
    }
}
