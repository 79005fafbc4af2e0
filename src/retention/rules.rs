//! The rules by name. What each stands for at which provider is in `fields` and `paths`, for auditors in
//! `docs/retention.md`.

macro_rules! rules {
    ($($(#[$about:meta])* $name:ident => $text:literal, $says:literal;)+) => {
        /// One rule of the retention policy. Its name is a configuration value, a label and part of the refusal.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Rule { $($(#[$about])* $name,)+ }

        impl Rule {
            /// All of them, in the order of their names.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The configuration's and the label's spelling.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// What it refuses, for a refusal's text: "the retention policy does not allow ...".
            pub(crate) fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)+ }
            }
        }

        /// The configuration's words for relaxing rules.
        pub(crate) const RULE_WORDS: &[&str] = &[$($text,)+ EVERY_RULE];
    };
}

/// Relaxes all rules at once.
pub(crate) const EVERY_RULE: &str = "all";

rules! {
    /// Agents, sessions, environments and memory stores that live at the provider.
    Agents => "agents", "agents and sessions that live at the provider";
    /// Assistants and their threads at OpenAI.
    Assistants => "assistants", "assistants and their threads";
    /// Answers that are made behind the request and kept until they are fetched.
    Background => "background", "answers that are made in the background and kept";
    /// Batches of requests, kept with their answers.
    Batches => "batches", "batches";
    /// Contexts that the provider keeps beyond the request.
    Caches => "caches", "cached contents";
    /// Code that runs in a container at the provider, and containers themselves.
    CodeExecution => "code_execution", "tools that run code in containers at the provider";
    /// A computer that is operated through the provider.
    ComputerUse => "computer_use", "computer use";
    /// Conversations that live at the provider.
    Conversations => "conversations", "conversations that live at the provider";
    /// Providers behind a gateway that keep or train on what they get.
    DataCollection => "data_collection", "providers that keep or train on what they get";
    /// A gateway's debugging output.
    Debug => "debug", "debugging output of the gateway behind";
    /// Evaluations over stored requests.
    Evals => "evals", "evals";
    /// Search in files that the provider keeps, and vector stores.
    FileSearch => "file_search", "file search and vector stores";
    /// Uploaded files and references to them.
    Files => "files", "uploaded files and references to them";
    /// Training on uploaded data.
    FineTuning => "fine_tuning", "fine-tuning";
    /// Google Search and Maps, whose prompts Google keeps for 30 days.
    Grounding => "grounding", "grounding with Google Search or Maps";
    /// Tools of third parties that the provider calls.
    Mcp => "mcp", "tools of third parties that the provider calls";
    /// Labels that are kept with a request.
    Metadata => "metadata", "metadata that is kept with a request";
    /// What a gateway runs beside the model.
    Plugins => "plugins", "plugins of the gateway behind";
    /// An answer that builds on one kept by the provider.
    PreviousResponse => "previous_response", "answers that build on one kept by the provider";
    /// A Live session that can be taken up later.
    SessionResumption => "session_resumption", "sessions that can be taken up later";
    /// Instructions and files that stand at the provider.
    Skills => "skills", "skills";
    /// Keeping the answer for later retrieval.
    Store => "store", "storing the answer at the provider";
    /// Reading what was stored.
    Stored => "stored", "reading what is stored at the provider";
    /// Prompt templates that stand at the provider.
    StoredPrompt => "stored_prompt", "prompt templates stored at the provider";
    /// Message threads at Anthropic.
    Threads => "threads", "message threads";
    /// Traces of a session in the provider's dashboard.
    Tracing => "tracing", "traces in the provider's dashboard";
    /// Videos, which are made behind the request and kept.
    Videos => "videos", "videos, which are kept until they are fetched";
}

/// Which rules are in force.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct RuleSet(u64);

impl RuleSet {
    /// Every rule.
    pub(crate) const EVERY: Self = Self((1 << Rule::ALL.len()) - 1);

    /// This set without `rule`.
    #[must_use]
    pub(crate) fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u32))
    }

    /// Whether `rule` is in force.
    pub(crate) fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u32) != 0
    }

    /// Whether nothing is.
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sorted() {
        assert!(RULE_WORDS.windows(2).all(|pair| pair[0] < pair[1] || pair[1] == EVERY_RULE));
        for (place, rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(*rule as usize, place);
            assert!(rule.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            let set = RuleSet::EVERY.without(*rule);
            assert!(!set.has(*rule) && RuleSet::EVERY.has(*rule));
        }
        assert!(Rule::ALL.iter().fold(RuleSet::EVERY, |set, rule| set.without(*rule)).is_empty());
    }
}
