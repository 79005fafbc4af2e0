//! What reading a request costs: the door for `benches/request.rs`, in no other build.

use http::Method;

use super::Facts;
use super::Policy;
use super::Usage;
use crate::hygiene::Chunk;
use crate::message::bench::Head;
use crate::provider::Provider;

/// An upstream's policy: all rules, and usage asked for.
pub struct Reader {
    policy: Policy,
    out: Vec<Chunk>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { policy: Policy { usage: Usage::Ask, ..Policy::default() }, out: Vec::with_capacity(8) }
    }
}

impl Reader {
    /// Reads a request for chat: its head, then its body in one piece. Returns how many bytes go on.
    pub fn read(&mut self, Head(headers): &mut Head, body: &[u8]) -> usize {
        let Ok(Some(mut editor)) = self.policy.read_head(
            Provider::Openai,
            "api.openai.com",
            &Method::POST,
            "/v1/chat/completions",
            None,
            headers,
        ) else {
            panic!("the body is read")
        };
        editor.limit(1 << 20);
        self.out.clear();
        assert!(editor.feed(Chunk::copied(body), &mut self.out).is_ok());
        assert!(editor.model().is_some());
        editor.forget_model();
        assert!(editor.finish(&mut self.out).is_ok());
        assert!(editor.facts() != Facts::default());
        self.out.iter().map(|chunk| chunk.as_slice().len()).sum()
    }
}
