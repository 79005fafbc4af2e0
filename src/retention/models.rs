//! Which models may be asked.

use std::sync::Arc;

/// The longest pattern.
pub(crate) const PATTERN_BYTES_MAX: usize = 96;

/// Patterns of names that are allowed; `*` stands for any letters. No list: every name. Of two lists, an upstream's and a
/// key's, both must allow it.
#[derive(Clone, Default)]
pub(crate) struct Models([Option<Patterns>; 2]);

/// One list.
type Patterns = Arc<[Box<[u8]>]>;

impl Models {
    /// Names that match one of `patterns`. None of them: no list.
    pub(crate) fn matching(patterns: &[String]) -> Self {
        let patterns: Vec<Box<[u8]>> = patterns.iter().map(|pattern| pattern.as_bytes().into()).collect();
        Self([(!patterns.is_empty()).then(|| patterns.into()), None])
    }

    /// What this one and `other`, of one list, allow both.
    #[must_use]
    pub(crate) fn and(&self, other: &Self) -> Self {
        Self([self.0[0].clone(), other.0[0].clone()])
    }

    /// Whether every name is allowed.
    pub(super) fn is_any(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Whether `name` is allowed; `whole` says that it is all of the name. Google's names may begin with `models/`.
    pub(super) fn allows(&self, name: &[u8], whole: bool) -> bool {
        let name = name.strip_prefix(b"models/").unwrap_or(name);
        let mut lists = self.0.iter().flatten();
        lists.all(|patterns| whole && patterns.iter().any(|pattern| matches(pattern, name)))
    }
}

fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut place) = (0, 0);
    // Behind the last star, and what it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while place < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at + 1, place));
                at += 1;
            }
            Some(letter) if *letter == name[place] => {
                at += 1;
                place += 1;
            }
            _ => match &mut star {
                Some((behind, taken)) => {
                    *taken += 1;
                    (at, place) = (*behind, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|letter| *letter == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, allowed) in [
            ("gpt-5", "gpt-5", true),
            ("gpt-5", "gpt-5-mini", false),
            ("gpt-*", "gpt-5-mini", true),
            ("gpt-*", "gpt-", true),
            ("gpt-*", "xgpt-5", false),
            ("*-mini", "gpt-5-mini", true),
            ("*-mini", "gpt-5-mini-x", false),
            ("*a*b*", "xxaxxabx", true),
            ("*a*b", "ab-abc", false),
            ("**", "", true),
            ("gemini-*", "models/gemini-3", true),
            ("gpt-5", "GPT-5", false),
        ] {
            assert_eq!(
                Models::matching(&[pattern.to_owned()]).allows(name.as_bytes(), true),
                allowed,
                "{pattern} {name}"
            );
        }
        assert!(Models::default().allows(b"anything", false));
        let list = Models::matching(&["a".to_owned(), "b*".to_owned()]);
        let both = list.and(&Models::matching(&["b*".to_owned()]));
        assert!(both.allows(b"bc", true) && !both.allows(b"a", true));
        assert!(list.and(&Models::default()).allows(b"a", true));
        assert!(list.allows(b"bc", true) && !list.allows(b"bc", false) && !list.allows(b"c", true));
    }
}
