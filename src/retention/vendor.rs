//! Which service a request goes to, where services that share an API differ in what they keep.

use crate::provider::Provider;

macro_rules! vendors {
    ($($(#[$about:meta])* $name:ident => $text:literal;)+) => {
        /// A service with rules or habits of its own.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Vendor { $($(#[$about])* $name,)+ }

        impl Vendor {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$name,)+];

            /// The configuration's spelling.
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }

        /// The configuration's words.
        pub(crate) const VENDOR_WORDS: &[&str] = &[$($text,)+];
    };
}

vendors! {
    Anthropic => "anthropic";
    Azure => "azure";
    Bedrock => "bedrock";
    Cerebras => "cerebras";
    Deepseek => "deepseek";
    Fireworks => "fireworks";
    Gemini => "gemini";
    Groq => "groq";
    Mistral => "mistral";
    Moonshot => "moonshot";
    Openai => "openai";
    Openrouter => "openrouter";
    /// One that nullhop does not know: OpenAI's rules.
    Other => "other";
    Together => "together";
    Vercel => "vercel";
    Vertex => "vertex";
    Xai => "xai";
}

/// Host names (or the ends of such) of services behind `compatible`. Sources: the vendors' API references, WIRE 1.1.
const HOSTS: &[(&str, Vendor)] = &[
    ("anthropic.com", Vendor::Anthropic),
    ("openai.azure.com", Vendor::Azure),
    ("services.ai.azure.com", Vendor::Azure),
    ("cognitiveservices.azure.com", Vendor::Azure),
    ("amazonaws.com", Vendor::Bedrock),
    ("api.aws", Vendor::Bedrock),
    ("cerebras.ai", Vendor::Cerebras),
    ("deepseek.com", Vendor::Deepseek),
    ("fireworks.ai", Vendor::Fireworks),
    ("generativelanguage.googleapis.com", Vendor::Gemini),
    ("aiplatform.googleapis.com", Vendor::Vertex),
    ("rep.googleapis.com", Vendor::Vertex),
    ("groq.com", Vendor::Groq),
    ("mistral.ai", Vendor::Mistral),
    ("moonshot.ai", Vendor::Moonshot),
    ("moonshot.cn", Vendor::Moonshot),
    ("openai.com", Vendor::Openai),
    ("openrouter.ai", Vendor::Openrouter),
    ("together.ai", Vendor::Together),
    ("together.xyz", Vendor::Together),
    ("ai-gateway.vercel.sh", Vendor::Vercel),
    ("x.ai", Vendor::Xai),
];

impl Vendor {
    /// The service behind `host`, a name in lower case.
    pub(crate) fn of(provider: Provider, host: &str) -> Self {
        match provider {
            Provider::Openai => Self::Openai,
            Provider::Anthropic => Self::Anthropic,
            Provider::Gemini => Self::Gemini,
            Provider::Vertex => Self::Vertex,
            Provider::Bedrock => Self::Bedrock,
            Provider::Azure => Self::Azure,
            Provider::Compatible => {
                let host = host.trim_end_matches('.');
                let known = HOSTS.iter().find(|(name, _)| {
                    let before = host.len().checked_sub(name.len());
                    let before = before.filter(|_| host.is_char_boundary(host.len() - name.len()));
                    // `eu-aiplatform.googleapis.com` is one of them, too.
                    before.is_some_and(|before| {
                        host[before..].eq_ignore_ascii_case(name)
                            && (before == 0 || matches!(host.as_bytes()[before - 1], b'.' | b'-'))
                    })
                });
                known.map_or(Self::Other, |(_, vendor)| *vendor)
            }
        }
    }

    /// Whether it speaks Google's own API.
    pub(super) fn is_google(self) -> bool {
        matches!(self, Self::Gemini | Self::Vertex)
    }

    /// Whether a chat stream carries usage only when it was asked for (WIRE 3.3).
    pub(super) fn sends_usage_on_request(self) -> bool {
        !matches!(
            self,
            Self::Anthropic
                | Self::Deepseek
                | Self::Fireworks
                | Self::Groq
                | Self::Mistral
                | Self::Moonshot
                | Self::Openrouter
                | Self::Together
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compatible_services_by_host() {
        for (host, vendor) in [
            ("openrouter.ai", Vendor::Openrouter),
            ("OpenRouter.AI.", Vendor::Openrouter),
            ("eu.openrouter.ai", Vendor::Openrouter),
            ("notopenrouter.ai", Vendor::Other),
            ("openrouter.ai.example", Vendor::Other),
            ("api.x.ai", Vendor::Xai),
            ("eu-west-1.api.x.ai", Vendor::Xai),
            ("netflix.ai", Vendor::Other),
            ("eu.api.openai.com", Vendor::Openai),
            ("res.openai.azure.com", Vendor::Azure),
            ("europe-west4-aiplatform.googleapis.com", Vendor::Vertex),
            ("aiplatform.eu.rep.googleapis.com", Vendor::Vertex),
            ("bedrock-mantle.us-east-1.api.aws", Vendor::Bedrock),
            ("127.0.0.1", Vendor::Other),
            ("é.ai", Vendor::Other),
        ] {
            assert_eq!(Vendor::of(Provider::Compatible, host), vendor, "{host}");
        }
        assert_eq!(Vendor::of(Provider::Openai, "proxy.example"), Vendor::Openai);
        assert_eq!(VENDOR_WORDS.len(), Vendor::ALL.len());
    }
}
