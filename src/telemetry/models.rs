//! From a model's name to one of at most 64 labels.
//!
//! A name comes from a request or an answer and may be anything; a label comes from this file or the configuration. The
//! table only selects: nothing of a name is kept, and one that fits no pattern is `other`.

use std::sync::Arc;

/// Labels in a table, `other` among them.
pub(crate) const LABELS_MAX: usize = 64;

/// Patterns that a configuration may add. They come first; built-in families fill what is left.
pub(crate) const PATTERNS_MAX: usize = LABELS_MAX - 1;

/// The longest name, and the longest pattern, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 96;

/// What a name is that fits nothing.
pub(crate) const OTHER: &str = "other";

/// The place of a label in the table that gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ModelId(pub(super) u8);

impl ModelId {
    /// `other` of every table.
    pub(crate) const OTHER: Self = Self(0);

    /// Its place among the labels.
    pub(crate) fn place(self) -> usize {
        usize::from(self.0)
    }
}

/// The labels of one configuration.
#[derive(Clone, Debug)]
pub(crate) struct ModelTable {
    /// `other` is the first one.
    labels: Arc<[Arc<str>]>,
    /// In the order in which they are tried.
    patterns: Arc<[Pattern]>,
}

#[derive(Debug)]
struct Pattern {
    text: Box<[u8]>,
    /// How many bytes stand before its first `*`: with these a name must begin.
    literal: usize,
    id: ModelId,
}

impl Pattern {
    fn new(text: &str, id: ModelId) -> Self {
        let text: Box<[u8]> = text.to_ascii_lowercase().into_bytes().into();
        let literal = text.iter().position(|byte| *byte == b'*').unwrap_or(text.len());
        Self { text, literal, id }
    }

    /// Whether `name` begins as one that fits. Most do not, and by their first letter.
    fn may_fit(&self, name: &[u8]) -> bool {
        let literal = &self.text[..self.literal];
        literal.first().is_none_or(|first| name.first() == Some(first) && name.starts_with(literal))
    }
}

impl ModelTable {
    /// The patterns of a configuration, each a label as it is written, then the built-in families. More than
    /// [`PATTERNS_MAX`] are not taken.
    pub(crate) fn new<'a>(configured: impl IntoIterator<Item = &'a str>) -> Self {
        let mut labels: Vec<Arc<str>> = vec![OTHER.into()];
        let mut patterns = Vec::new();
        let configured = configured.into_iter().map(|pattern| (pattern, pattern));
        for (label, pattern) in configured.chain(FAMILIES.iter().copied()) {
            let place = match labels.iter().position(|known| **known == *label) {
                Some(place) => place,
                None if labels.len() < LABELS_MAX => {
                    labels.push(label.into());
                    labels.len() - 1
                }
                None => continue,
            };
            let Ok(place) = u8::try_from(place) else { continue };
            patterns.push(Pattern::new(pattern, ModelId(place)));
        }
        Self { labels: labels.into(), patterns: patterns.into() }
    }

    /// The label of a model's name, whoever gave it.
    pub(crate) fn find(&self, name: &[u8]) -> ModelId {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.iter().copied().all(is_safe) {
            return ModelId::OTHER;
        }
        let mut lower = [0; NAME_BYTES_MAX];
        let lower = &mut lower[..name.len()];
        lower.copy_from_slice(name);
        lower.make_ascii_lowercase();
        let reduced = reduced(lower);
        let undated = undated(reduced);
        let fits = |pattern: &&Pattern| {
            // What is undated is the beginning of what is reduced.
            (pattern.may_fit(reduced)
                && (fits(&pattern.text, reduced) || (undated.len() < reduced.len() && fits(&pattern.text, undated))))
                // A pattern may name what is taken off: a vendor, a variant.
                || (reduced.len() < lower.len() && pattern.may_fit(lower) && fits(&pattern.text, lower))
        };
        self.patterns.iter().find(fits).map_or(ModelId::OTHER, |pattern| pattern.id)
    }

    /// The id of a label, or of a configured pattern, which is one.
    pub(crate) fn id(&self, label: &str) -> Option<ModelId> {
        let place = self.labels.iter().position(|known| **known == *label)?;
        u8::try_from(place).ok().map(ModelId)
    }

    /// How many labels there are.
    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// The label's text.
    pub(super) fn label(&self, id: ModelId) -> &str {
        &self.labels[usize::from(id.0)]
    }

    /// The same, to be kept; `other` for an id of another table.
    pub(crate) fn text(&self, id: ModelId) -> &Arc<str> {
        self.labels.get(usize::from(id.0)).unwrap_or(&self.labels[0])
    }

    #[cfg(test)]
    pub(super) fn labels(&self) -> impl Iterator<Item = (ModelId, &str)> {
        self.labels.iter().enumerate().map(|(place, label)| (ModelId(u8::try_from(place).unwrap()), &**label))
    }
}

impl Default for ModelTable {
    fn default() -> Self {
        Self::new([])
    }
}

/// Why a text is no pattern of `[metrics] models`; `None` if it is one.
pub(crate) fn pattern_fault(text: &str) -> Option<&'static str> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Some("must hold patterns of 1 to 96 characters");
    }
    if !text.bytes().all(|byte| byte == b'*' || is_safe(byte)) {
        return Some("must hold patterns of letters, digits and . _ : / @ - with * for any run of them");
    }
    if text == OTHER {
        return Some("must not hold `other`: that is the label of what fits no pattern");
    }
    None
}

/// The model that a path names, for APIs whose bodies do not: Gemini and Vertex (`models/{m}:method`), Azure
/// (`deployments/{d}`), Bedrock (`/model/{m}/converse`).
pub(crate) fn model_in_path(path: &str) -> Option<&str> {
    let path = path.split('?').next().unwrap_or("");
    // One walk over the segments: nearly all paths have none of these.
    let (mut in_model, mut in_models) = (None, None);
    for (place, _) in path.match_indices('/') {
        let rest = &path[place..];
        if let Some(rest) = rest.strip_prefix("/deployments/") {
            return segment(rest);
        }
        in_model = in_model.or_else(|| rest.strip_prefix("/model/"));
        in_models = in_models.or_else(|| rest.strip_prefix("/models/"));
    }
    match in_model {
        Some(rest) => segment(rest),
        None => segment(in_models?)?.rsplit_once(':').map(|(model, _)| model).filter(|model| !model.is_empty()),
    }
}

/// What stands before the next slash, if anything does.
fn segment(rest: &str) -> Option<&str> {
    rest.split('/').next().filter(|segment| !segment.is_empty())
}

fn is_safe(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'/' | b'@' | b'-')
}

/// A name without what stands around its family: who fine-tuned it, where it runs, which variant is asked for.
fn reduced(mut name: &[u8]) -> &[u8] {
    // Twice: `openai/ft:gpt-x:org` and `ft:vendor/gpt-x:org`.
    for _ in 0..2 {
        if let Some(tuned) = name.strip_prefix(b"ft:") {
            name = tuned.split(|byte| *byte == b':').next().unwrap_or(tuned);
        }
        // `projects/p/locations/l/publishers/google/models/m`, `models/m`, `vendor/m`.
        if let Some(place) = name.iter().rposition(|byte| *byte == b'/') {
            name = &name[place + 1..];
        }
    }
    // `m:free`, `m-v1:0`, `m@20250101`.
    name = name.split(|byte| matches!(byte, b':' | b'@')).next().unwrap_or(name);
    // Bedrock: `eu.anthropic.claude-x`. Only words before the dot: `gpt-4.1` has a digit there.
    while let Some(dot) = name.iter().position(|byte| *byte == b'.')
        && dot > 0
        && name[..dot].iter().all(|byte| byte.is_ascii_lowercase())
    {
        name = &name[dot + 1..];
    }
    name
}

/// Without a date or a serial number at the end: `-2024-07-18`, `-20240718`, `-0613`, `-001`, `-latest`, `-v1`.
fn undated(name: &[u8]) -> &[u8] {
    let mut short = name;
    while let Some(place) = short.iter().rposition(|byte| *byte == b'-') {
        let last = &short[place + 1..];
        let number = last.len() >= 2 && last.len() != 5 && last.len() <= 8 && last.iter().all(u8::is_ascii_digit);
        let version = last.len() == 2 && last[0] == b'v' && last[1].is_ascii_digit();
        if place == 0 || !(number || version || last == b"latest") {
            break;
        }
        short = &short[..place];
    }
    short
}

/// Whether `name` is what `pattern` says, with `*` for any run of bytes, also none. Goes back to the last `*` only, so
/// the time is bounded by the product of the lengths.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut place) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while place < name.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at + 1, place));
            at += 1;
        } else if pattern.get(at) == Some(&name[place]) {
            at += 1;
            place += 1;
        } else if let Some((after, tried)) = star {
            star = Some((after, tried + 1));
            at = after;
            place = tried + 1;
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Label and pattern of public model families, as the vendors' model lists name them. The first one that fits counts, so
/// what is special stands before what is general.
const FAMILIES: &[(&str, &str)] = &[
    ("gpt-3.5", "gpt-3.5*"),
    ("gpt-4o-mini", "gpt-4o-mini*"),
    ("gpt-4o", "gpt-4o*"),
    ("gpt-4.1-mini", "gpt-4.1-mini*"),
    ("gpt-4.1-nano", "gpt-4.1-nano*"),
    ("gpt-4.1", "gpt-4.1*"),
    ("gpt-4-turbo", "gpt-4-turbo*"),
    ("gpt-4", "gpt-4"),
    ("gpt-4", "gpt-4-*"),
    ("gpt-5-mini", "gpt-5*-mini*"),
    ("gpt-5-nano", "gpt-5*-nano*"),
    ("gpt-5-codex", "gpt-5*-codex*"),
    ("gpt-5", "gpt-5"),
    ("gpt-5", "gpt-5-*"),
    ("gpt-5", "gpt-5.*"),
    ("gpt-oss", "gpt-oss*"),
    ("gpt-image", "gpt-image*"),
    ("gpt-realtime", "gpt-realtime*"),
    ("o1", "o1"),
    ("o1", "o1-*"),
    ("o3-mini", "o3-mini*"),
    ("o3", "o3"),
    ("o3", "o3-*"),
    ("o4-mini", "o4-mini*"),
    ("text-embedding", "text-embedding*"),
    ("claude-opus", "claude-*opus*"),
    ("claude-sonnet", "claude-*sonnet*"),
    ("claude-haiku", "claude-*haiku*"),
    ("claude", "claude-*"),
    ("gemini-embedding", "gemini-embedding*"),
    ("gemini-flash-lite", "gemini-*flash-lite*"),
    ("gemini-flash", "gemini-*flash*"),
    ("gemini-pro", "gemini-*pro*"),
    ("gemma", "gemma-*"),
    ("deepseek", "deepseek-*"),
    ("grok", "grok-*"),
    ("llama", "llama*"),
    ("llama", "*-llama-*"),
    ("mistral", "mistral-*"),
    ("mistral", "ministral-*"),
    ("mistral", "magistral-*"),
    ("mistral", "mixtral-*"),
    ("codestral", "codestral*"),
    ("qwen", "qwen*"),
    ("kimi", "kimi-*"),
    ("command", "command*"),
    ("nova", "nova-*"),
    ("glm", "glm-*"),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn label(table: &ModelTable, name: &str) -> String {
        table.label(table.find(name.as_bytes())).to_owned()
    }

    #[test]
    fn public_names_find_their_families() {
        let table = ModelTable::default();
        for (name, wanted) in [
            ("gpt-4o", "gpt-4o"),
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("GPT-4o-Mini", "gpt-4o-mini"),
            ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
            ("gpt-4-0613", "gpt-4"),
            ("gpt-4-turbo-preview", "gpt-4-turbo"),
            ("gpt-4.1-nano", "gpt-4.1-nano"),
            ("gpt-40", "other"),
            ("gpt-5.1-codex-mini", "gpt-5-mini"),
            ("gpt-5.1", "gpt-5"),
            ("o1-preview", "o1"),
            ("o10", "other"),
            ("ft:gpt-4o-mini-2024-07-18:my-org:my-name:abc123", "gpt-4o-mini"),
            ("openai/ft:gpt-4o:org::id", "gpt-4o"),
            ("ft:openai/gpt-4o:org:x:id", "gpt-4o"),
            ("openai/gpt-4o", "gpt-4o"),
            ("anthropic/claude-sonnet-4.5:free", "claude-sonnet"),
            ("claude-3-opus-20240229", "claude-opus"),
            ("claude-sonnet-4@20250514", "claude-sonnet"),
            ("eu.anthropic.claude-3-5-haiku-20241022-v1:0", "claude-haiku"),
            ("arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-3-haiku-20240307-v1:0", "claude-haiku"),
            ("claude-instant-1.2", "claude"),
            ("models/gemini-2.5-flash-lite", "gemini-flash-lite"),
            ("gemini-2.5-flash-preview-05-20", "gemini-flash"),
            ("projects/p/locations/l/publishers/google/models/gemini-2.5-pro", "gemini-pro"),
            ("projects/p/locations/l/endpoints/1234567890", "other"),
            ("tunedModels/mine", "other"),
            ("accounts/fireworks/models/llama-v3p1-70b-instruct", "llama"),
            ("meta-llama/Meta-Llama-3.1-8B-Instruct", "llama"),
            ("", "other"),
            ("a b", "other"),
            ("gpt-4o\n", "other"),
            ("gpt-4o\u{e9}", "other"),
            ("other", "other"),
            ("*", "other"),
        ] {
            assert_eq!(label(&table, name), wanted, "{name}");
        }
        assert_eq!(label(&table, &format!("gpt-4o-{}", "x".repeat(89))), "gpt-4o");
        assert_eq!(label(&table, &format!("gpt-4o-{}", "x".repeat(90))), "other", "97 bytes");
    }

    #[test]
    fn configured_patterns_come_first() {
        let table = ModelTable::new(["gpt-4o", "gpt-4o-*", "House-*", "vendor/special", "*-4*x"]);
        for (name, wanted) in [
            ("gpt-4o", "gpt-4o"),
            ("gpt-4o-2024-08-06", "gpt-4o"),
            ("ft:gpt-4o:org:x:id", "gpt-4o"),
            ("gpt-4o-mini", "gpt-4o-*"),
            ("house-7b", "House-*"),
            ("vendor/special", "vendor/special"),
            ("special", "other"),
            ("a-4-b-4x", "*-4*x"),
            ("claude-3-haiku", "claude-haiku"),
        ] {
            assert_eq!(label(&table, name), wanted, "{name}");
        }
    }

    #[test]
    fn labels_are_few_and_differ() {
        assert!(ModelTable::default().len() <= 48);
        let many: Vec<String> = (0..100).map(|number| format!("house-{number}")).collect();
        let table = ModelTable::new(many.iter().map(String::as_str));
        assert_eq!(table.len(), LABELS_MAX);
        let labels: HashSet<&str> = table.labels().map(|(_, label)| label).collect();
        assert_eq!(labels.len(), LABELS_MAX);
        assert_eq!(label(&table, "house-62"), "house-62");
        assert_eq!(label(&table, "house-63"), "other", "there is no label left");
        assert_eq!(label(&table, "gpt-4o"), "other");
        assert_eq!(ModelTable::default().label(ModelId::OTHER), OTHER);
    }

    #[test]
    fn patterns_of_built_in_families_are_patterns() {
        for (label, pattern) in FAMILIES {
            assert_eq!(pattern_fault(pattern), None, "{pattern}");
            assert_eq!(pattern_fault(label), None, "{label}");
        }
        for bad in ["", "a b", "gpt\"", "ä", "other", &"x".repeat(97)] {
            assert!(pattern_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn stars_cost_little() {
        let pattern = "*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b";
        assert!(!fits(pattern.as_bytes(), &[b'a'; NAME_BYTES_MAX]));
        assert!(fits(b"*", b"") && fits(b"a**", b"a") && !fits(b"a", b"ab") && !fits(b"ab", b"a"));
    }

    #[test]
    fn paths_name_models() {
        for (path, model) in [
            ("/v1beta/models/gemini-x:streamGenerateContent?alt=sse", Some("gemini-x")),
            ("/v1/projects/p/locations/l/publishers/google/models/g:generateContent", Some("g")),
            ("/openai/deployments/d/chat/completions?api-version=1", Some("d")),
            ("/model/anthropic.claude-v1:0/converse", Some("anthropic.claude-v1:0")),
            ("/v1/models/gpt-x", None),
            ("/v1/models/:x", None),
            ("/model//converse", None),
            ("/v1/chat/completions?x=/models/m:n", None),
        ] {
            assert_eq!(model_in_path(path), model, "{path}");
        }
    }
}
