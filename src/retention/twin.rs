//! What the editor must come to, worked out naively on a whole document: for tests and the fuzz target.

use http::Method;
use serde_json::Map;
use serde_json::Value;

use super::Denied;
use super::Editor;
use super::Models;
use super::Policy;
use super::RuleSet;
use super::Usage;
use super::Vendor;
use super::Walker;
use super::fields::Act;
use super::fields::Node;
use super::json::Plan;
use super::rules::Rule;
use crate::hygiene::Chunk;
use crate::message::Fields;
use crate::provider::Provider;

/// What [`super::Editor`] makes of `body`, as a value. Documents that name a member twice in one object are not for it: a
/// [`Value`] knows only the last one.
pub(super) fn edited(plan: &Plan, body: &Value) -> Result<Value, Denied> {
    let Value::Object(members) = body else { return Err(Denied::Unreadable) };
    let mut twin = Twin { plan, denied: None, model: false, stream: plan.stream };
    let mut members = members.clone();
    twin.object(plan.root, &mut members, true);
    if let Some(denied) = twin.denied {
        return Err(denied);
    }
    if plan.model_required && !plan.models.is_any() && !twin.model {
        return Err(Denied::Model);
    }
    if plan.usage && twin.stream {
        match members.get_mut("stream_options") {
            None | Some(Value::Null) => {
                members.insert("stream_options".to_owned(), serde_json::json!({ "include_usage": true }));
            }
            Some(Value::Object(options)) => {
                if matches!(options.get("include_usage"), None | Some(Value::Bool(_) | Value::Null)) {
                    options.insert("include_usage".to_owned(), Value::Bool(true));
                }
            }
            Some(_) => {}
        }
    }
    Ok(Value::Object(members))
}

struct Twin<'p> {
    plan: &'p Plan,
    denied: Option<Denied>,
    model: bool,
    stream: bool,
}

impl Twin<'_> {
    fn deny(&mut self, denied: Denied) {
        if let Denied::Rule(rule) = denied
            && !self.plan.rules.has(rule)
        {
            return;
        }
        self.denied.get_or_insert(denied);
    }

    fn object(&mut self, node: &'static Node, members: &mut Map<String, Value>, root: bool) {
        let names: Vec<String> = members.keys().cloned().collect();
        for name in names {
            let Some(member) = node.member(name.as_bytes()) else { continue };
            if let Some(value) = members.get_mut(&name) {
                self.value(member, value);
            }
            let dropped = match member.act {
                Act::Drop(rule) => root && self.plan.rules.has(rule),
                Act::Thread => root && self.plan.rules.has(Rule::Threads),
                _ => false,
            };
            if dropped {
                members.remove(&name);
            }
        }
        for ensured in node.ensured.iter().filter(|ensured| self.plan.rules.has(ensured.rule)) {
            if !members.contains_key(ensured.name) && (!root || !self.plan.only_create) {
                let value = serde_json::from_str(ensured.value).unwrap_or_default();
                members.insert(ensured.name.to_owned(), value);
            }
        }
    }

    fn value(&mut self, node: &'static Node, value: &mut Value) {
        let rules = self.plan.rules;
        match (node.act, &mut *value) {
            (Act::Present(_), Value::Null | Value::Bool(false)) => {}
            (Act::Present(rule), _) => self.deny(Denied::Rule(rule)),
            (Act::Wish(_), Value::Null | Value::Bool(false)) => {}
            (Act::Wish(_), Value::String(text)) if text.is_empty() => {}
            (Act::Wish(_), Value::Object(members)) if members.is_empty() => {}
            (Act::Wish(_), Value::Array(_)) => {}
            (Act::Wish(rule), _) => self.deny(Denied::Rule(rule)),
            (Act::Store(_), Value::Bool(false)) => {}
            (Act::Store(rule), Value::Null) if rules.has(rule) => *value = Value::Bool(false),
            (Act::Store(_), Value::Null) => {}
            (Act::Store(rule), _) => self.deny(Denied::Rule(rule)),
            (Act::Force(..), Value::Object(_)) if !node.is_leaf() => {}
            (Act::Force(rule, _), Value::Object(_) | Value::Array(_)) => self.deny(Denied::Rule(rule)),
            (Act::Force(rule, forced), _) => {
                if rules.has(rule) {
                    *value = serde_json::from_str(forced).unwrap_or_default();
                }
                return;
            }
            (Act::Judge(judge), Value::String(text)) => {
                let text = text.as_bytes();
                if let Some(rule) = judge(&text[..text.len().min(96)]) {
                    self.deny(Denied::Rule(rule));
                }
            }
            (Act::Model | Act::RoutedModel, Value::String(text)) => {
                self.model = true;
                let whole = text.len() <= 96;
                if matches!(node.act, Act::RoutedModel) && (!whole || text.ends_with(":online")) {
                    self.deny(Denied::Rule(Rule::Plugins));
                }
                if !self.plan.models.allows(text.as_bytes(), whole) {
                    self.deny(Denied::Model);
                }
            }
            (Act::Model | Act::RoutedModel, Value::Null | Value::Array(_)) => {}
            (Act::Model | Act::RoutedModel, _) if !self.plan.models.is_any() => self.deny(Denied::Model),
            (Act::Stream, Value::Bool(stream)) => self.stream = *stream,
            (Act::Stream, _) => self.stream = false,
            (Act::ThreadType, Value::Null) => {}
            (Act::ThreadType, Value::String(text)) if text == "continue" && rules.has(Rule::Threads) => {
                self.deny(Denied::Thread);
            }
            (Act::ThreadType, Value::String(text)) if text == "create" => {}
            (Act::ThreadType, _) => self.deny(Denied::Rule(Rule::Threads)),
            (Act::ThreadPrevious, Value::Null) => {}
            (Act::ThreadPrevious, _) if rules.has(Rule::Threads) => self.deny(Denied::Thread),
            _ => {}
        }
        match value {
            Value::Object(members) => self.object(node, members, false),
            // Items stand where their array stands.
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(node, item)),
            _ => {}
        }
    }
}

/// Panics if the editor does anything else with a body than the twin, or not the same at each cut. The first byte says
/// which API and policy, the rest is the body.
pub(crate) fn edited_as_the_twin_says(bytes: &[u8]) {
    const PATHS: [&str; 6] = [
        "/v1/chat/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1beta/models/m:generateContent",
        "/v1beta/interactions",
        "/v1/completions",
    ];
    const VENDORS: [Vendor; 4] = [Vendor::Openai, Vendor::Openrouter, Vendor::Vercel, Vendor::Other];
    let Some((&choice, body)) = bytes.split_first() else { return };
    let choice = usize::from(choice);
    let policy = Policy {
        rules: RuleSet::EVERY,
        usage: if choice & 1 == 0 { Usage::Ask } else { Usage::Leave },
        models: Models::default(),
        vendor: Some(VENDORS[choice / 2 % VENDORS.len()]),
    };
    let path = PATHS[choice / 8 % PATHS.len()];
    let editor = || -> Editor {
        let read = policy.read_head(Provider::Compatible, "", &Method::POST, path, None, &mut Fields::default());
        read.ok().flatten().expect("each of these is read")
    };
    let run = |pieces: &[&[u8]]| -> Result<Vec<u8>, Denied> {
        let mut editor = editor();
        let mut out = Vec::new();
        for piece in pieces {
            editor.feed(Chunk::copied(piece), &mut out)?;
        }
        editor.finish(&mut out)?;
        let text = out.iter().flat_map(|chunk| chunk.as_slice().to_vec()).collect::<Vec<u8>>();
        assert_eq!(Some(text.len() as u64), editor.slot().map(|slot| slot + body.len() as u64), "length");
        Ok(text)
    };
    let whole = run(&[body]);
    for cut in 1..body.len().min(200) {
        let (first, second) = body.split_at(cut);
        assert_eq!(run(&[first, second]), whole, "cut at {cut}");
    }
    let value = serde_json::from_slice::<Value>(body);
    let Ok(text) = whole else { return };
    let Ok(value) = value else {
        // serde_json stops at 128 levels, and at numbers that no float holds.
        let deep = body.iter().filter(|byte| matches!(byte, b'[' | b'{')).count() > 100;
        assert!(
            deep || body.iter().any(|byte| matches!(byte, b'e' | b'E')) || body.len() > 300,
            "stricter than serde_json"
        );
        return;
    };
    // A `Value` does not know of members that were there twice.
    if members_written(body) != members_of(&value) {
        return;
    }
    let editor = editor();
    let Walker::Json(json) = &editor.walker else { return };
    let wanted = edited(json.plan(), &value).expect("what passes has no wish");
    let got: Value = serde_json::from_slice(&text).expect("what comes out is JSON");
    // `stream_options` stays as it is if it is long, or odd.
    if value.get("stream_options").is_none() || policy.usage == Usage::Leave {
        assert_eq!(got, wanted);
    }
}

fn members_written(body: &[u8]) -> usize {
    let (mut count, mut inside, mut escaped) = (0, false, false);
    for byte in body {
        match (inside, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, false, b'\\') => escaped = true,
            (_, false, b'"') => inside = !inside,
            (false, _, b':') => count += 1,
            _ => {}
        }
    }
    count
}

fn members_of(value: &Value) -> usize {
    match value {
        Value::Object(members) => members.values().map(|member| 1 + members_of(member)).sum(),
        Value::Array(items) => items.iter().map(members_of).sum(),
        _ => 0,
    }
}
