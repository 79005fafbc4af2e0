//! Keys of nullhop's own, made as an operator makes them: by the program.

use std::process::Command;

use super::Scratch;

/// A key as `nullhop key new` makes it in this folder, by the flags behind its label.
pub fn key(scratch: &Scratch, label: &str, flags: &[&str]) -> String {
    let made = nullhop(scratch, &[&["key", "new", "--label", label], flags].concat());
    assert!(made.starts_with("nhk_"), "not a key");
    made
}

/// Runs the program in this folder and returns what it says.
pub fn nullhop(scratch: &Scratch, arguments: &[&str]) -> String {
    let made = Command::new(env!("CARGO_BIN_EXE_nullhop")).args(arguments).current_dir(scratch.path()).output();
    let made = made.expect("runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).expect("text").trim().to_owned()
}

/// Revokes the key of this label.
pub fn revoke(scratch: &Scratch, label: &str) {
    let list: serde_json::Value = serde_json::from_str(&nullhop(scratch, &["key", "list", "--json"])).expect("JSON");
    let of_label = list.as_array().expect("a list").iter().find(|key| key["label"] == label).expect("a key");
    nullhop(scratch, &["key", "revoke", of_label["id"].as_str().expect("an id")]);
}

/// The files with which another nullhop knows the keys of this folder.
pub fn files(scratch: &Scratch) -> Vec<(String, String)> {
    ["keys.jsonl", "keys.secret"]
        .map(|name| (name.to_owned(), std::fs::read_to_string(scratch.path().join(name)).expect("made")))
        .to_vec()
}
