//! What a path asks for: what it would read or leave at the provider, which API's body comes with it, and the model.

use std::borrow::Cow;

use http::Method;

use super::fields;
use super::fields::Node;
use super::rules::Rule;
use super::vendor::Vendor;

/// A path, taken apart as the most lenient server would read it: escapes decoded (also twice), parameters of segments cut
/// off, without case.
pub(super) struct Path<'p> {
    /// In lower case.
    segments: Vec<Cow<'p, str>>,
    /// As written, but for escapes: what may be the name of a model. `None`: the segments are as they were written.
    names: Option<Vec<String>>,
}

/// What is known of the body that comes with a path.
pub(super) struct Body {
    pub(super) root: &'static Node,
    /// Whether such a request names its model in its body.
    pub(super) model_required: bool,
    /// Whether `stream_options.include_usage` is known there.
    pub(super) usage: bool,
    /// Whether it may also come as a form.
    pub(super) form: bool,
}

/// Behind these stands a name that somebody chose, not a resource.
const BEFORE_NAMES: [&str; 11] = [
    "accounts",
    "deployments",
    "endpoints",
    "engines",
    "locations",
    "model",
    "models",
    "presets",
    "projects",
    "publishers",
    "tunedmodels",
];

impl<'p> Path<'p> {
    pub(super) fn new(path: &'p str) -> Self {
        // Nothing to decode, to cut off or to write in another case: nearly every path.
        let plain = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b':' | b'@');
        if path.bytes().all(plain) {
            let mut segments = Vec::with_capacity(8);
            segments.extend(path.split('/').filter(|part| !part.is_empty()).map(Cow::Borrowed));
            return Self { segments, names: None };
        }
        let names: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decoded).collect();
        let whole = names.join("/").to_lowercase();
        let clean = |part: &str| part.split(';').next().unwrap_or("").trim().to_owned();
        let segments = whole.split('/').map(clean).filter(|part| !part.is_empty()).map(Cow::Owned);
        Self { segments: segments.collect(), names: Some(names) }
    }

    fn ends(&self, tail: &[&str]) -> bool {
        self.segments.len() >= tail.len()
            && self.segments[self.segments.len() - tail.len()..].iter().zip(tail).all(|(have, want)| have == want)
    }

    fn has(&self, segment: &str) -> bool {
        self.segments.iter().any(|have| have == segment)
    }

    /// The method behind Google's last colon.
    fn verb(&self) -> Option<&str> {
        self.segments.last()?.rsplit_once(':').map(|(_, verb)| verb)
    }

    /// The rule that this path breaks by itself.
    pub(super) fn refused(&self, vendor: Vendor, method: &Method) -> Option<Rule> {
        let looks = matches!(*method, Method::OPTIONS | Method::HEAD);
        let mut skip = false;
        for (place, segment) in self.segments.iter().enumerate() {
            if std::mem::take(&mut skip) {
                continue;
            }
            let (resource, _) = segment.split_once(':').unwrap_or((segment, ""));
            let rest = &self.segments[place + 1..];
            let found = match resource {
                // Figures and settings of an account, by resource.
                "organization" | "organizations" | "dashboard" => return None,
                "files" | "uploads" | "upload" => Some(Rule::Files),
                "batches" | "batch" | "batchpredictionjobs" => Some(Rule::Batches),
                "vector_stores" | "filesearchstores" | "ragcorpora" | "corpora" => Some(Rule::FileSearch),
                "libraries" if vendor == Vendor::Mistral => Some(Rule::FileSearch),
                "collections" if vendor == Vendor::Xai => Some(Rule::FileSearch),
                "conversations" => Some(Rule::Conversations),
                "assistants" | "threads" => Some(Rule::Assistants),
                "agents" | "chatkit" | "reasoningengines" | "vaults" => Some(Rule::Agents),
                "environments" | "triggers" if vendor.is_google() => Some(Rule::Agents),
                "sessions" | "environments" | "memory_stores" | "dreams" | "deployments" | "tunnels"
                | "user_profiles"
                    if vendor == Vendor::Anthropic =>
                {
                    Some(Rule::Agents)
                }
                "fine_tuning" | "fine-tuning" | "fine_tunings" | "fine_tunes" | "fine-tunes" | "finetunes"
                | "tuningjobs" => Some(Rule::FineTuning),
                "tunedmodels" if rest.is_empty() && *method == Method::POST => Some(Rule::FineTuning),
                "evals" => Some(Rule::Evals),
                "containers" => Some(Rule::CodeExecution),
                "skills" => Some(Rule::Skills),
                "videos" | "video" => Some(Rule::Videos),
                "cachedcontents" => Some(Rule::Caches),
                "deferred-completion" => Some(Rule::Stored),
                "generation" if rest.first().is_some_and(|next| next == "content") => Some(Rule::Stored),
                "completions" if place > 0 && self.segments[place - 1] == "chat" && !looks => {
                    (!rest.is_empty() || *method != Method::POST).then_some(Rule::Stored)
                }
                "responses" | "interactions" => {
                    let known = match rest {
                        [] => true,
                        [only] => resource == "responses" && matches!(&**only, "compact" | "input_tokens"),
                        _ => false,
                    };
                    (!known).then_some(Rule::Stored)
                }
                _ => None,
            };
            if found.is_some() {
                return found;
            }
            skip = BEFORE_NAMES.contains(&&**segment);
        }
        match self.verb() {
            Some("batchgeneratecontent" | "asyncbatchembedcontent") => Some(Rule::Batches),
            Some("predictlongrunning" | "fetchpredictoperation") => Some(Rule::Videos),
            _ => None,
        }
    }

    /// The names of models in the path.
    pub(super) fn models(&self) -> impl Iterator<Item = &str> {
        let count = self.names.as_ref().map_or(self.segments.len(), Vec::len);
        let name = |place: usize| match &self.names {
            Some(names) => names[place].as_str(),
            None => &*self.segments[place],
        };
        (1..count).filter_map(move |place| {
            // Outside ASCII, only `k` is a letter's lower case (U+212A), and none of these has one.
            let before = |words: &[&str]| words.iter().any(|word| name(place - 1).eq_ignore_ascii_case(word));
            if before(&["models", "tunedmodels", "endpoints"]) {
                // Without a method at its end it is asked about, not asked.
                return name(place).rsplit_once(':').map(|(name, _)| name);
            }
            before(&["deployments", "engines", "model"]).then(|| name(place))
        })
    }

    /// Whether the answer is a stream because the path says so.
    pub(super) fn streams(&self) -> bool {
        matches!(self.verb(), Some("streamgeneratecontent" | "streamrawpredict"))
    }

    /// The body of a request to this path, if any of it can matter.
    pub(super) fn body(&self, vendor: Vendor, json: bool) -> Option<Body> {
        let router = vendor == Vendor::Openrouter;
        let vercel = vendor == Vendor::Vercel;
        let named_in_path = self.models().next().is_some();
        let body = |root, usage| Body { root, model_required: !named_in_path, usage, form: false };
        let free = |root| Body { root, model_required: false, usage: false, form: false };
        if let Some(verb) = self.verb() {
            match verb {
                "generatecontent" | "streamgeneratecontent" => return Some(free(&fields::GENERATE)),
                "rawpredict" | "streamrawpredict" => {
                    return Some(free(if self.has("anthropic") { &fields::MESSAGES } else { &fields::CHAT }));
                }
                _ => {}
            }
        }
        let last = &**self.segments.last()?;
        Some(match last {
            "completions" if self.ends(&["chat", "completions"]) => {
                let root = match vendor {
                    Vendor::Openrouter => &fields::OPENROUTER_CHAT,
                    Vendor::Vercel => &fields::VERCEL_CHAT,
                    _ => &fields::CHAT,
                };
                body(root, true)
            }
            "completions" if router => body(&fields::OPENROUTER_COMPLETIONS, true),
            "completions" => body(&fields::COMPLETIONS, true),
            "responses" if router => body(&fields::OPENROUTER_RESPONSES, false),
            "responses" if vercel => body(&fields::VERCEL_RESPONSES, false),
            "responses" => body(&fields::RESPONSES, false),
            "compact" if self.ends(&["responses", "compact"]) => body(&fields::RESPONSES_COMPACT, false),
            "messages" if router => body(&fields::OPENROUTER_MESSAGES, false),
            "messages" if vercel => body(&fields::VERCEL_MESSAGES, false),
            "messages" => body(&fields::MESSAGES, false),
            "interactions" => body(&fields::INTERACTIONS, false),
            "embeddings" if router => body(&fields::OPENROUTER_EMBEDDINGS, false),
            "embeddings" | "speech" | "rerank" | "complete" | "generations" => body(&fields::MODEL_ONLY, false),
            "edits" | "variations" if self.has("images") => Body { form: true, ..body(&fields::IMAGES, false) },
            "transcriptions" | "translations" if self.has("audio") => {
                Body { form: true, ..body(&fields::MODEL_ONLY, false) }
            }
            "ocr" => body(&fields::OCR, false),
            // A call is offered as SDP, not as JSON.
            _ if self.has("realtime") || self.has("live") => {
                if !json {
                    return None;
                }
                free(&fields::REALTIME)
            }
            // No rule of retention, and perhaps a model.
            _ => Body { form: true, ..free(&fields::MODEL_ONLY) },
        })
    }

    /// What WebSocket messages of this path can say, and whether members that are added belong to `response.create` only.
    pub(super) fn messages(&self) -> Option<(&'static Node, bool)> {
        let last = &**self.segments.last()?;
        if self.segments.first().is_some_and(|first| first == "ws") || last.contains("bidigeneratecontent") {
            return Some((&fields::LIVE_MESSAGE, false));
        }
        if last == "responses" {
            return Some((&fields::RESPONSES_MESSAGE, true));
        }
        (self.has("realtime") || self.has("live")).then_some((&fields::REALTIME, false))
    }
}

/// A segment without escapes, however often it was escaped.
fn decoded(segment: &str) -> String {
    let mut bytes = segment.as_bytes().to_vec();
    for _ in 0..3 {
        if !bytes.contains(&b'%') {
            break;
        }
        let mut plain = Vec::with_capacity(bytes.len());
        let mut place = 0;
        while let Some(&byte) = bytes.get(place) {
            let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
            if byte == b'%'
                && let (Some(high), Some(low)) = (digit(place + 1), digit(place + 2))
            {
                plain.push((high << 4 | low) as u8);
                place += 3;
            } else {
                plain.push(byte);
                place += 1;
            }
        }
        bytes = plain;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The values of `model` in a query.
pub(super) fn models_of_query(query: Option<&str>) -> impl Iterator<Item = String> {
    let pairs = query.unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| decoded(name).eq_ignore_ascii_case("model"))
        .map(|(_, value)| decoded(&value.replace('+', " ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(vendor: Vendor, method: &str, path: &str) -> Option<Rule> {
        Path::new(path).refused(vendor, &Method::from_bytes(method.as_bytes()).unwrap())
    }

    #[test]
    fn paths_that_store_or_read_what_is_stored() {
        use Rule::*;
        for (vendor, method, path, rule) in [
            (Vendor::Openai, "POST", "/v1/files", Files),
            (Vendor::Openai, "GET", "/v1/files/file-1/content", Files),
            (Vendor::Openai, "POST", "/v1/uploads/u/parts", Files),
            (Vendor::Openai, "POST", "/v1/batches", Batches),
            (Vendor::Openai, "POST", "/v1/vector_stores/v/search", FileSearch),
            (Vendor::Openai, "POST", "/v1/assistants", Assistants),
            (Vendor::Openai, "POST", "/v1/threads/t/runs", Assistants),
            (Vendor::Openai, "POST", "/v1/conversations", Conversations),
            (Vendor::Openai, "POST", "/v1/containers", CodeExecution),
            (Vendor::Openai, "POST", "/v1/fine_tuning/jobs", FineTuning),
            (Vendor::Openai, "POST", "/v1/evals", Evals),
            (Vendor::Openai, "POST", "/v1/videos", Videos),
            (Vendor::Openai, "POST", "/v1/skills", Skills),
            (Vendor::Openai, "POST", "/v1/agents", Agents),
            (Vendor::Openai, "POST", "/v1/chatkit/sessions", Agents),
            (Vendor::Openai, "GET", "/v1/chat/completions", Stored),
            (Vendor::Openai, "GET", "/v1/chat/completions/c1/messages", Stored),
            (Vendor::Openai, "POST", "/v1/chat/completions/c1", Stored),
            (Vendor::Openai, "GET", "/v1/responses/r1", Stored),
            (Vendor::Openai, "GET", "/v1/responses/r1/input_items", Stored),
            (Vendor::Openai, "POST", "/v1/responses/r1/cancel", Stored),
            (Vendor::Openai, "POST", "/v1/Files", Files),
            (Vendor::Openai, "POST", "/v1/%66iles", Files),
            (Vendor::Openai, "POST", "/v1/%2566iles", Files),
            (Vendor::Openai, "POST", "/v1%2ffiles", Files),
            (Vendor::Openai, "POST", "/v1/files/", Files),
            (Vendor::Openai, "POST", "/v1//files", Files),
            (Vendor::Openai, "POST", "/v1/files;v=1", Files),
            (Vendor::Openai, "POST", "/v1/files%20", Files),
            (Vendor::Azure, "POST", "/openai/files", Files),
            (Vendor::Azure, "POST", "/openai/deployments/d/batches", Batches),
            (Vendor::Azure, "GET", "/openai/v1/responses/r1", Stored),
            (Vendor::Anthropic, "POST", "/v1/messages/batches", Batches),
            (Vendor::Anthropic, "POST", "/v1/files", Files),
            (Vendor::Anthropic, "POST", "/v1/skills", Skills),
            (Vendor::Anthropic, "POST", "/v1/sessions/s/events", Agents),
            (Vendor::Anthropic, "POST", "/v1/memory_stores", Agents),
            (Vendor::Anthropic, "POST", "/v1/environments", Agents),
            (Vendor::Anthropic, "POST", "/v1/deployments", Agents),
            (Vendor::Gemini, "POST", "/v1beta/cachedContents", Caches),
            (Vendor::Gemini, "POST", "/upload/v1beta/files", Files),
            (Vendor::Gemini, "POST", "/v1beta/files:register", Files),
            (Vendor::Gemini, "POST", "/v1beta/fileSearchStores", FileSearch),
            (Vendor::Gemini, "POST", "/v1beta/models/m:batchGenerateContent", Batches),
            (Vendor::Gemini, "POST", "/v1beta/models/m:asyncBatchEmbedContent", Batches),
            (Vendor::Gemini, "POST", "/v1beta/models/m:predictLongRunning", Videos),
            (Vendor::Gemini, "GET", "/v1beta/interactions/i1", Stored),
            (Vendor::Gemini, "POST", "/v1beta/tunedModels", FineTuning),
            (Vendor::Vertex, "POST", "/v1/projects/p/locations/l/cachedContents", Caches),
            (Vendor::Vertex, "POST", "/v1/projects/p/locations/l/batchPredictionJobs", Batches),
            (Vendor::Vertex, "POST", "/v1/projects/files/locations/l/reasoningEngines", Agents),
            (Vendor::Openrouter, "GET", "/api/v1/generation/content", Stored),
            (Vendor::Openrouter, "POST", "/api/v1/batches", Batches),
            (Vendor::Mistral, "POST", "/v1/agents/completions", Agents),
            (Vendor::Mistral, "POST", "/v1/libraries", FileSearch),
            (Vendor::Mistral, "POST", "/v1/batch/jobs", Batches),
            (Vendor::Groq, "POST", "/openai/v1/fine_tunings", FineTuning),
            (Vendor::Xai, "GET", "/v1/chat/deferred-completion/x", Stored),
            (Vendor::Other, "POST", "/gateway/v1/files", Files),
        ] {
            assert_eq!(refused(vendor, method, path), Some(rule), "{method} {path}");
        }
        for (vendor, method, path) in [
            (Vendor::Openai, "POST", "/v1/chat/completions"),
            (Vendor::Openai, "OPTIONS", "/v1/chat/completions"),
            (Vendor::Openai, "POST", "/v1/chat/completions/"),
            (Vendor::Openai, "POST", "/v1/responses"),
            (Vendor::Openai, "GET", "/v1/responses"),
            (Vendor::Openai, "POST", "/v1/responses/compact"),
            (Vendor::Openai, "POST", "/v1/responses/input_tokens"),
            (Vendor::Openai, "POST", "/v1/embeddings"),
            (Vendor::Openai, "GET", "/v1/models/files"),
            (Vendor::Openai, "GET", "/v1/organization/usage/vector_stores"),
            (Vendor::Azure, "POST", "/openai/deployments/files/chat/completions"),
            (Vendor::Anthropic, "POST", "/v1/messages"),
            (Vendor::Anthropic, "POST", "/v1/messages/count_tokens"),
            (Vendor::Gemini, "POST", "/v1beta/models/batches:generateContent"),
            (Vendor::Gemini, "POST", "/v1beta/models/m:batchEmbedContents"),
            (Vendor::Gemini, "POST", "/v1beta/interactions"),
            (Vendor::Gemini, "POST", "/v1beta/tunedModels/t:generateContent"),
            (Vendor::Vertex, "POST", "/v1/projects/agents/locations/l/publishers/google/models/m:generateContent"),
            (Vendor::Openrouter, "GET", "/api/v1/generation"),
            (Vendor::Bedrock, "POST", "/model/files/converse"),
        ] {
            assert_eq!(refused(vendor, method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn plain_paths_are_read_as_all_are() {
        for path in [
            "/v1/chat/completions",
            "/v1/files",
            "/v1beta/models/gemini-x.1:generatecontent",
            "/model/a@1/converse",
            "//x//",
            "/",
            "",
        ] {
            let escaped = path.replace('e', "%65");
            let (plain, read) = (Path::new(path), Path::new(&escaped));
            assert_eq!(plain.segments, read.segments, "{path}");
            assert!(plain.models().eq(read.models()), "{path}");
        }
    }

    #[test]
    fn models_of_paths() {
        for (path, model) in [
            ("/v1beta/models/gemini-x:generateContent", Some("gemini-x")),
            ("/v1beta/models/gemini-x", None),
            ("/v1beta/tunedModels/t:streamGenerateContent", Some("t")),
            ("/openai/deployments/My-Own/chat/completions", Some("My-Own")),
            ("/model/arn%3Aaws%3Abedrock%3Ax%2Fm/converse", Some("arn:aws:bedrock:x/m")),
            ("/v1/chat/completions", None),
        ] {
            assert_eq!(Path::new(path).models().next(), model, "{path}");
        }
        let models: Vec<_> = models_of_query(Some("a=b&model=gpt%2D5&Model=x+y&models=no")).collect();
        assert_eq!(models, ["gpt-5", "x y"]);
    }
}
