//! A JSON array that is sent element by element, each of them a document.

use super::document::Progress;
use super::document::Reader;
use super::table::Kind;

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Before,
    /// After `[` or a comma.
    Between,
    In,
    /// After an element.
    After,
    Closed,
}

/// Where in the array we are.
pub(super) struct Elements {
    at: At,
}

impl Elements {
    pub(super) const fn new() -> Self {
        Self { at: At::Before }
    }

    /// Whether `]` has come.
    pub(super) fn closed(&self) -> bool {
        self.at == At::Closed
    }

    /// Looks at the next bytes; `false` if they are no such array.
    pub(super) fn feed(&mut self, reader: &mut Reader, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while let Some(&byte) = rest.first() {
            if self.at == At::In {
                match reader.read(&mut rest) {
                    Progress::More => return true,
                    Progress::Broken => return false,
                    Progress::Done => {
                        reader.end(Kind::Other);
                        self.at = At::After;
                    }
                }
                continue;
            }
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                self.at = match (self.at, byte) {
                    (At::Before, b'[') | (At::After, b',') => At::Between,
                    (At::Between, b'{') => {
                        self.at = At::In;
                        continue;
                    }
                    (At::Between | At::After, b']') => At::Closed,
                    (At::Closed, _) => return true,
                    _ => return false,
                };
            }
            rest = &rest[1..];
        }
        true
    }
}
