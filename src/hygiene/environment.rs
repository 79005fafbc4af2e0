//! Environment variables that could bring foreign code, another allocator or a second writer into
//! the process. docs/hardening.md has the table with a reason for each.

use std::ffi::OsStr;

/// Refused: with one of these the process runs code, or writes files, that nobody here has looked at.
///
/// ld.so(8): `LD_PRELOAD` and `LD_AUDIT` load code before `main`, `LD_PROFILE` writes a file.
/// mtrace(3) writes each allocation to `MALLOC_TRACE`; `MALLOC_CHECK_` asks for glibc's debugging
/// allocator (mallopt(3)).
const REFUSED: [&str; 5] = ["LD_AUDIT", "LD_PRELOAD", "LD_PROFILE", "MALLOC_CHECK_", "MALLOC_TRACE"];

/// Reported, if not refused: the loader's other variables, and settings of C's allocator, which images do set
/// (`MALLOC_ARENA_MAX`).
const REPORTED: [&str; 3] = ["GLIBC_TUNABLES", "LD_", "MALLOC_"];

/// Let pass: cargo and many launchers set it. It chooses where libc comes from, as the files in its place do.
const PASSED: &str = "LD_LIBRARY_PATH";

/// What the environment asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Environment {
    /// Nothing that matters.
    Clean,
    /// The name of a variable that nullhop does not run with.
    Refused(&'static str),
    /// Something that weakens what is known about the process, and is let pass.
    Reported,
}

/// Looks at the names of all variables; values are not looked at, but for being empty, which counts as not set.
pub(super) fn look() -> Environment {
    judge(std::env::vars_os().filter(|(_, value)| !value.is_empty()).map(|(name, _)| name))
}

fn judge(names: impl Iterator<Item = impl AsRef<OsStr>>) -> Environment {
    let mut found = Environment::Clean;
    for name in names {
        let Some(name) = name.as_ref().to_str() else { continue };
        if let Some(refused) = REFUSED.into_iter().find(|refused| *refused == name) {
            return Environment::Refused(refused);
        }
        if name != PASSED && REPORTED.iter().any(|start| name.starts_with(start)) {
            found = Environment::Reported;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_judged() {
        let of = |names: &[&str]| judge(names.iter());
        assert_eq!(of(&["PATH", "RUST_BACKTRACE", "RUST_LOG", "SSLKEYLOGFILE", "OLD_PRELOAD"]), Environment::Clean);
        assert_eq!(of(&["LD_LIBRARY_PATH", "PATH"]), Environment::Clean);
        assert_eq!(of(&["LD_DEBUG", "PATH"]), Environment::Reported);
        assert_eq!(of(&["MALLOC_ARENA_MAX"]), Environment::Reported);
        assert_eq!(of(&["GLIBC_TUNABLES"]), Environment::Reported);
        for name in REFUSED {
            assert_eq!(of(&["LD_DEBUG", name, "PATH"]), Environment::Refused(name));
        }
    }
}
