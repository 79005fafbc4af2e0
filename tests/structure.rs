//! The house stands as `docs/walk.md` says: imports point down, unsafe code stands in one place.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;

/// From the ground up. A module may name modules that stand before it, and itself.
const FLOORS: [&str; 32] = [
    "hygiene",
    "keys",
    "limits",
    "journal",
    "provider",
    "message",
    "decode",
    "meter",
    "retention",
    "drain",
    "clock",
    "stand_in",
    "systemd",
    "proxy_protocol",
    "telemetry",
    "config",
    "cli",
    "tls",
    "socket",
    "h1",
    "incoming",
    "upstream",
    "admission",
    "route",
    "relay",
    "server",
    "listener",
    "admin",
    "app",
    "scripted",
    "demo",
    "prove",
];

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in std::fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("source");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found
}

/// The top module that a source file belongs to.
fn module_of(path: &Path) -> String {
    let below = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).expect("below src");
    let first = below.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_point_down() {
    let mut modules = BTreeSet::new();
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let module = module_of(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        modules.insert(module.clone());
        let floor = FLOORS.iter().position(|name| *name == module);
        let floor = floor.unwrap_or_else(|| panic!("{module} has no floor: add it to this test and to docs/walk.md"));
        // Unit tests may reach for a whole configuration.
        let code = text.split("#[cfg(test)]\nmod tests {").next().expect("the code");
        let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
        for (place, _) in code.match_indices("crate::") {
            let named: String =
                code[place + 7..].chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect();
            let Some(other) = FLOORS.iter().position(|name| *name == named) else { continue };
            if other > floor {
                wrong.push(format!("{}: {module} names {named}", path.display()));
            }
        }
    }
    assert_eq!(modules, FLOORS.iter().map(|name| (*name).to_owned()).collect(), "modules and floors");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stands_in_hygiene() {
    for (path, text) in sources() {
        let inside = module_of(&path) == "hygiene";
        let unsafe_lines = text.lines().filter(|line| {
            let code = line.split("//").next().unwrap_or("");
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(inside || unsafe_lines.count() == 0, "{} holds unsafe code", path.display());
        if inside && text.contains("unsafe {") {
            assert!(text.contains("// SAFETY:"), "{} argues no block", path.display());
        }
    }
}

#[test]
fn nothing_formats_content() {
    // What holds bytes of a body has no Debug, Display or Serialize to reach a text by.
    for file in ["hygiene/chunk.rs", "hygiene/secret.rs"] {
        let (_, text) = sources().into_iter().find(|(path, _)| path.ends_with(file)).expect("the file");
        for word in ["derive(", "impl fmt::", "impl std::fmt::", "Serialize for"] {
            assert!(!text.contains(word), "{file} has {word}");
        }
    }
    for (path, text) in sources() {
        let module = module_of(&path);
        if ["relay", "upstream", "server", "listener", "socket", "hygiene", "admission", "route"]
            .contains(&module.as_str())
        {
            // It says which measures are left out, in builds for tests.
            if path.ends_with("hygiene/measure.rs") {
                continue;
            }
            let code = text.split("#[cfg(test)]\nmod tests {").next().expect("the code");
            // Examples in docs show what does not compile.
            let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            for word in ["println!", "eprintln!", "dbg!", "{:?}"] {
                assert!(!code.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn nothing_serialises_and_nothing_logs_but_nullhop() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Without serde as a dependency no type here can implement `Serialize`.
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("manifest");
    assert!(!manifest.lines().any(|line| line.starts_with("serde ") || line.starts_with("serde.")), "serde");
    // `tracing` is compiled out (src/lib.rs tests it). The day that `log` comes in, it needs `max_level_off` as well.
    let shipped = shipped();
    assert!(shipped.contains("hyper") && shipped.contains("tracing-core"), "the tree is read");
    for name in ["log", "slog", "env_logger", "tracing-subscriber"] {
        assert!(!shipped.contains(name), "{name} is in the tree");
    }
}

/// What the program is made of: all that its dependencies, other than those of tests, lead to with the features in use. The
/// lock file alone does not tell: it also lists what a feature that is off would need.
fn shipped() -> BTreeSet<String> {
    let arguments = ["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--package", "nullhop"];
    let tree = std::process::Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).expect("names");
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}
