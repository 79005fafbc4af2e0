use serde_json::Value;
use serde_json::json;

use super::json::HELD_MAX;
use super::*;

use crate::message::Fields;
use crate::message::Value as FieldValue;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";
const MESSAGES: &str = "/v1/messages";
const GENERATE: &str = "/v1beta/models/gemini-x:generateContent";

/// A policy with everything in force, for `vendor`.
fn strict(vendor: Vendor) -> Policy {
    Policy { usage: Usage::Ask, vendor: Some(vendor), ..Policy::default() }
}

fn only_rules(vendor: Vendor) -> Policy {
    Policy { usage: Usage::Leave, ..strict(vendor) }
}

struct Edited {
    text: String,
    facts: Facts,
    model: Option<String>,
}

impl Edited {
    fn value(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

fn editor(policy: &Policy, path: &str) -> Option<Editor> {
    let mut headers = Fields::default();
    headers.insert(name::CONTENT_TYPE, FieldValue::of("application/json"));
    policy.read_head(Provider::Compatible, "", &Method::POST, path, None, &mut headers).unwrap()
}

/// In pieces of `step` bytes.
fn in_pieces(mut editor: Editor, body: &[u8], step: usize) -> Result<Edited, Denied> {
    let slot = editor.slot().unwrap() as usize;
    let mut text = Vec::new();
    let mut out = Vec::new();
    for piece in body.chunks(step.max(1)) {
        editor.feed(Chunk::copied(piece), &mut out)?;
        if let Walker::Json(json) = &editor.walker {
            assert!(json.held() <= HELD_MAX, "{} held", json.held());
        }
        for chunk in out.drain(..) {
            text.extend_from_slice(chunk.as_slice());
        }
    }
    // Until the end is known, the document is not complete.
    assert!(serde_json::from_slice::<Value>(&text).is_err());
    editor.finish(&mut out)?;
    for chunk in out.drain(..) {
        text.extend_from_slice(chunk.as_slice());
    }
    assert_eq!(text.len(), body.len() + slot, "{}", String::from_utf8_lossy(&text));
    let text = String::from_utf8(text).unwrap();
    let model = editor.model().map(|model| String::from_utf8_lossy(model).into_owned());
    Ok(Edited { text, facts: editor.facts(), model })
}

/// Whole, and at every cut: the same.
fn edit(policy: &Policy, path: &str, body: &str) -> Result<Edited, Denied> {
    let run = |step| in_pieces(editor(policy, path).expect("an editor"), body.as_bytes(), step);
    let whole = run(usize::MAX);
    for step in [1, 2, 3, 7, 13, 64, 100] {
        same(&whole, &run(step), body, step);
    }
    if body.len() <= 600 {
        for cut in 1..body.len() {
            let mut editor = editor(policy, path).expect("an editor");
            let mut out = Vec::new();
            let (first, second) = body.as_bytes().split_at(cut);
            let fed = editor.feed(Chunk::copied(first), &mut out);
            let fed = fed.and_then(|()| editor.feed(Chunk::copied(second), &mut out));
            let cut_in_two = fed.and_then(|()| editor.finish(&mut out)).map(|()| Edited {
                text: out.iter().map(|chunk| String::from_utf8_lossy(chunk.as_slice()).into_owned()).collect(),
                facts: editor.facts(),
                model: editor.model().map(|model| String::from_utf8_lossy(model).into_owned()),
            });
            // Cut within a character, the pieces are no text each; lengths were compared above.
            if body.is_ascii() {
                same(&whole, &cut_in_two, body, cut);
            }
        }
    }
    whole
}

fn same(left: &Result<Edited, Denied>, right: &Result<Edited, Denied>, body: &str, cut: usize) {
    match (left, right) {
        (Ok(left), Ok(right)) => {
            assert_eq!(left.text, right.text, "{cut}: {body}");
            assert_eq!(left.facts, right.facts, "{cut}: {body}");
            assert_eq!(left.model, right.model, "{cut}: {body}");
        }
        (left, right) => assert_eq!(left.as_ref().err(), right.as_ref().err(), "{cut}: {body}"),
    }
}

fn refused(vendor: Vendor, path: &str, body: &str) -> Option<Denied> {
    edit(&only_rules(vendor), path, body).err()
}

fn assert_rule(vendor: Vendor, path: &str, body: &str, rule: Rule) {
    assert_eq!(refused(vendor, path, body), Some(Denied::Rule(rule)), "{path} {body}");
    let relaxed = Policy { rules: RuleSet::EVERY.without(rule), ..only_rules(vendor) };
    if let Some(editor) = editor(&relaxed, path) {
        assert!(in_pieces(editor, body.as_bytes(), usize::MAX).is_ok(), "{rule:?} relaxed: {body}");
    }
}

/// Nothing happens, but for the slot.
fn assert_untouched(vendor: Vendor, path: &str, body: &str) {
    let edited = edit(&only_rules(vendor), path, body).unwrap_or_else(|denied| panic!("{denied:?}: {body}"));
    assert_eq!(edited.value(), serde_json::from_str::<Value>(body).unwrap(), "{body}");
    let end = body.rfind('}').unwrap();
    assert!(edited.text.starts_with(&body[..end]), "{body} became {}", edited.text);
}

fn assert_becomes(vendor: Vendor, path: &str, body: &str, wanted: Value) {
    let edited = edit(&only_rules(vendor), path, body).unwrap_or_else(|denied| panic!("{denied:?}: {body}"));
    assert_eq!(edited.value(), wanted, "{body}");
    assert_no_duplicates(&edited.text);
}

/// serde_json takes the last of two members with one name; here there is one.
fn assert_no_duplicates(text: &str) {
    let plain = serde_json::from_str::<Value>(text).unwrap().to_string();
    for name in ["\"store\"", "\"stream_options\"", "\"zdr\"", "\"provider\"", "\"include_usage\""] {
        assert!(text.matches(name).count() <= plain.matches(name).count(), "{text}");
    }
}

#[test]
fn storing_at_openai() {
    for body in [
        r#"{"model":"m","store":true}"#,
        r#"{"store":true,"store":false}"#,
        r#"{"store":false,"store":true}"#,
        r#"{"Store":true}"#,
        r#"{"STORE":true}"#,
        "{\"\u{17f}tore\":true}",
        r#"{"\u0073tore":true}"#,
        r#"{"\u017ftore":true}"#,
        r#"{"st\u006Fre":true}"#,
        r#"{"store":"true"}"#,
        r#"{"store":1}"#,
        r#"{"store":{"a":1}}"#,
        "{\n\t\"store\"\r :\n true }",
    ] {
        assert_rule(Vendor::Openai, CHAT, body, Rule::Store);
        assert_rule(Vendor::Openai, RESPONSES, body, Rule::Store);
        assert_rule(Vendor::Other, "/gateway/v1/chat/completions", body, Rule::Store);
    }
    for body in [
        r#"{}"#,
        r#"{"store":false}"#,
        r#"{"store":null,"model":"m"}"#,
        r#"{"stores":true}"#,
        r#"{"messages":[{"role":"user","content":"{\"store\":true}","store":true}]}"#,
        r#"{"tools":[{"type":"function","function":{"parameters":{"properties":{"store":true,"type":"mcp"}}}}]}"#,
        r#"{"response_format":{"json_schema":{"store":true}}}"#,
    ] {
        assert_untouched(Vendor::Openai, CHAT, body);
    }
}

#[test]
fn what_is_stored_by_default_is_not() {
    for (body, wanted) in [
        (r#"{}"#, json!({"store": false})),
        (r#"{ }"#, json!({"store": false})),
        (r#"{"model":"m"}"#, json!({"model": "m", "store": false})),
        (r#"{"store":null}"#, json!({"store": false})),
        (r#"{"store" : null , "model":"m"}"#, json!({"model": "m", "store": false})),
        (r#"{"store":false,"model":"m"}"#, json!({"model": "m", "store": false})),
        (r#"{"input":[{"store":true}]}"#, json!({"input": [{"store": true}], "store": false})),
    ] {
        assert_becomes(Vendor::Openai, RESPONSES, body, wanted.clone());
        assert_becomes(Vendor::Xai, RESPONSES, body, wanted.clone());
        assert_becomes(Vendor::Azure, "/openai/v1/responses", body, wanted.clone());
        assert_becomes(Vendor::Gemini, "/v1beta/interactions", body, wanted);
    }
    // Which of several counts, parsers differ over.
    for body in [
        r#"{"store":null,"store":null}"#,
        r#"{"store":false,"store":false}"#,
        r#"{"Store":null}"#,
        r#"{"store":false,"\u017ftore":false}"#,
    ] {
        assert_eq!(refused(Vendor::Openai, RESPONSES, body), Some(Denied::Unreadable), "{body}");
    }
    // Compaction does not know the field.
    assert_untouched(Vendor::Openai, "/v1/responses/compact", r#"{"model":"m"}"#);
    assert_rule(Vendor::Openai, "/v1/responses/compact", r#"{"previous_response_id":"r"}"#, Rule::PreviousResponse);
}

#[test]
fn fields_of_responses() {
    for (body, rule) in [
        (r#"{"background":true}"#, Rule::Background),
        (r#"{"conversation":"c"}"#, Rule::Conversations),
        (r#"{"conversation":{"id":"c"}}"#, Rule::Conversations),
        (r#"{"previous_response_id":"r"}"#, Rule::PreviousResponse),
        (r#"{"prompt":{"id":"p"}}"#, Rule::StoredPrompt),
        (r#"{"prompt":{}}"#, Rule::StoredPrompt),
        (r#"{"input":[{"type":"item_reference","id":"i"}]}"#, Rule::Stored),
        (r#"{"input":[{"role":"user","content":[{"type":"input_file","file_id":"f"}]}]}"#, Rule::Files),
        (r#"{"input":[{"type":"function_call_output","output":[{"type":"input_image","file_id":"f"}]}]}"#, Rule::Files),
        (r#"{"input":[{"type":"computer_call_output","output":{"file_id":"f"}}]}"#, Rule::Files),
        (r#"{"tools":[{"type":"web_search"},{"type":"file_search","vector_store_ids":["v"]}]}"#, Rule::FileSearch),
        (r#"{"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]}"#, Rule::CodeExecution),
        (r#"{"tools":[{"container":{"type":"auto"},"type":"x"}]}"#, Rule::CodeExecution),
        (r#"{"tools":[{"type":"shell"}]}"#, Rule::CodeExecution),
        (r#"{"tools":[{"type":"mcp","server_url":"https://x.example"}]}"#, Rule::Mcp),
        (r#"{"tools":[{"type":"computer_use_preview"}]}"#, Rule::ComputerUse),
        (r#"{"tools":[{"\u0074ype":"\u006dcp"}]}"#, Rule::Mcp),
        (r#"{"tools":[{"type":"function","type":"mcp"}]}"#, Rule::Mcp),
        (r#"{"tools":[{"type":"mcp","type":"function"}]}"#, Rule::Mcp),
        (r#"{"TOOLS":[{"TYPE":"MCP"}]}"#, Rule::Mcp),
        (r#"{"tools":[{"type":"namespace","tools":[{"type":"mcp"}]}]}"#, Rule::Mcp),
        (r#"{"tools":[[{"type":"mcp"}]]}"#, Rule::Mcp),
    ] {
        assert_rule(Vendor::Openai, RESPONSES, body, rule);
    }
    for body in [
        r#"{"store":false,"background":false,"conversation":null,"previous_response_id":null,"prompt":null,"tools":[]}"#,
        r#"{"store":false,"previous_response_id":"","conversation":{}}"#,
        r#"{"store":false,"input":"background: true"}"#,
        r#"{"store":false,"metadata":{"background":"true","conversation":"c","prompt":"p"}}"#,
        r#"{"store":false,"tools":[{"type":"function","name":"mcp","parameters":{"type":"mcp"}}]}"#,
        r#"{"store":false,"tools":[{"type":"local_shell"},{"type":"web_search"},{"type":"apply_patch"}]}"#,
        r#"{"store":false,"input":[{"role":"user","content":"x","background":true}]}"#,
        r#"{"store":false,"text":{"format":{"schema":{"file_id":"x"}}},"include":["reasoning.encrypted_content"]}"#,
    ] {
        assert_untouched(Vendor::Openai, RESPONSES, body);
    }
}

#[test]
fn metadata_of_chat_is_taken_out() {
    for (body, wanted) in [
        (r#"{"metadata":{"a":"b"}}"#, json!({})),
        (r#"{"metadata":{"a":"b"},"model":"m"}"#, json!({"model": "m"})),
        (r#"{"model":"m","metadata":{"a":["}",{}]}}"#, json!({"model": "m"})),
        (r#"{"model":"m" , "metadata" : "x" , "n":1}"#, json!({"model": "m", "n": 1})),
        (r#"{"metadata":1,"metadata":[2],"n":1,"metadata":null}"#, json!({"n": 1})),
        (r#"{"metadata":-1.5e3,"n":1}"#, json!({"n": 1})),
        (r#"{"n":1,"\u006detadata":true}"#, json!({"n": 1})),
        (r#"{"n":1,"Metadata":"\"},"}"#, json!({"n": 1})),
        (r#"{"n":{"metadata":{}}}"#, json!({"n": {"metadata": {}}})),
    ] {
        assert_becomes(Vendor::Openai, CHAT, body, wanted);
    }
    assert_untouched(Vendor::Openai, RESPONSES, r#"{"store":false,"metadata":{"a":"b"}}"#);
    let relaxed = Policy { rules: RuleSet::EVERY.without(Rule::Metadata), ..only_rules(Vendor::Openai) };
    let edited = edit(&relaxed, CHAT, r#"{"metadata":{"a":"b"}}"#).unwrap();
    assert_eq!(edited.value(), json!({"metadata": {"a": "b"}}));
}

#[test]
fn usage_is_asked_for() {
    let ask = |body: &str| {
        let edited = edit(&strict(Vendor::Openai), CHAT, body).unwrap_or_else(|denied| panic!("{denied:?}: {body}"));
        if !body.contains(r#""stream":false,"stream""#) && !body.contains(r#""stream":true,"stream""#) {
            assert_no_duplicates(&edited.text);
        }
        edited
    };
    for (body, options) in [
        (r#"{"stream":true}"#, json!({"include_usage": true})),
        (r#"{"model":"m","stream":true,"n":1}"#, json!({"include_usage": true})),
        (r#"{"stream":true,"stream_options":null}"#, json!({"include_usage": true})),
        (r#"{"stream_options":null,"stream":true}"#, json!({"include_usage": true})),
        (r#"{"stream":true,"stream_options":{}}"#, json!({"include_usage": true})),
        (r#"{"stream":true,"stream_options":{ }}"#, json!({"include_usage": true})),
        (r#"{"stream_options":{"include_usage":false},"stream":true}"#, json!({"include_usage": true})),
        (r#"{"n":1,"stream_options" : { "include_usage" : null } ,"stream":true}"#, json!({"include_usage": true})),
        (
            r#"{"stream_options":{"include_obfuscation":false},"stream":true,"n":1}"#,
            json!({"include_obfuscation": false, "include_usage": true}),
        ),
        (
            r#"{"stream":true,"stream_options":{"a":{"include_usage":1},"include_usage":false,"b":[1,{}]}}"#,
            json!({"a": {"include_usage": 1}, "include_usage": true, "b": [1, {}]}),
        ),
        (r#"{"stream":false,"stream":true}"#, json!({"include_usage": true})),
    ] {
        let edited = ask(body);
        let mut wanted: Value = serde_json::from_str(body).unwrap();
        wanted["stream_options"] = options;
        assert_eq!(edited.value(), wanted, "{body}");
        assert!(edited.facts.usage_added && edited.facts.stream, "{body}");
    }
    for body in [
        r#"{}"#,
        r#"{"stream":false}"#,
        r#"{"stream":null}"#,
        r#"{"stream":"true"}"#,
        r#"{"stream":true,"stream":false}"#,
        r#"{"messages":[{"stream":true}]}"#,
        r#"{"stream_options":{"include_usage":false},"stream":false,"n":1}"#,
        r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
        r#"{"stream_options":{"include_usage":true},"stream":true}"#,
        r#"{"stream":true,"stream_options":1}"#,
        r#"{"stream":true,"stream_options":"x"}"#,
        r#"{"stream":true,"stream_options":[]}"#,
        r#"{"stream":true,"stream_options":{"include_usage":"no"}}"#,
    ] {
        let edited = ask(body);
        assert_eq!(edited.value(), serde_json::from_str::<Value>(body).unwrap(), "{body}");
        assert!(!edited.facts.usage_added, "{body}");
    }
    // Twice: they stay in their order, and nothing is asked for.
    for body in [
        r#"{"stream":true,"stream_options":{"a":1},"n":1,"stream_options":{"b":2}}"#,
        r#"{"stream_options":{"include_usage":false},"stream_options":{"include_usage":false},"stream":true}"#,
        r#"{"stream":true,"stream_options":{"include_usage":false,"include_usage":true}}"#,
        r#"{"stream":true,"stream_options":{"a":1},"Stream_Options":{"b":2}}"#,
    ] {
        let edited = edit(&strict(Vendor::Openai), CHAT, body).unwrap();
        assert_eq!(edited.value(), serde_json::from_str::<Value>(body).unwrap(), "{body}");
        assert!(!edited.facts.usage_added, "{body}");
    }
    // Too large to be held.
    let long = format!(r#"{{"stream_options":{{"a":"{}"}},"stream":true}}"#, "x".repeat(600));
    let edited = edit(&strict(Vendor::Openai), CHAT, &long).unwrap();
    assert!(edited.text.starts_with(&long[..long.len() - 1]) && !edited.facts.usage_added);
    for length in 440..520 {
        let body = format!(r#"{{"n":1, "stream_options":{{"a":"{}"}},"stream":true}}"#, "x".repeat(length));
        let edited = edit(&strict(Vendor::Openai), CHAT, &body).unwrap();
        assert_eq!(edited.value()["stream_options"]["include_usage"] == json!(true), edited.facts.usage_added);
    }
    // Where usage is sent anyway, and where nobody wants it.
    for policy in [strict(Vendor::Deepseek), strict(Vendor::Openrouter), only_rules(Vendor::Openai)] {
        assert!(!edit(&policy, CHAT, r#"{"stream":true}"#).unwrap().facts.usage_added);
    }
    assert!(!edit(&strict(Vendor::Openai), RESPONSES, r#"{"stream":true}"#).unwrap().facts.usage_added);
    assert!(edit(&strict(Vendor::Openai), "/v1/completions", r#"{"stream":true}"#).unwrap().facts.usage_added);
    assert!(Policy { vendor: Some(Vendor::Openai), ..Policy::default() }.settled(true).usage == Usage::Ask);
    assert!(Policy::default().settled(false).usage == Usage::Leave);
}

#[test]
fn openrouter_and_vercel_are_told() {
    let provider = json!({"data_collection": "deny", "zdr": true});
    for (body, wanted) in [
        (r#"{}"#, provider.clone()),
        (r#"{"provider":null}"#, provider.clone()),
        (r#"{"provider":{}}"#, provider.clone()),
        (r#"{"provider":{"zdr":false,"data_collection":"allow"}}"#, provider.clone()),
        (r#"{"provider":{"zdr":true,"data_collection":"deny"}}"#, provider.clone()),
        (r#"{"provider":{"zdr":"x","data_collection":null}}"#, provider.clone()),
        (
            r#"{"provider":{"only":["a","b"],"ignore":[],"order":["a"],"allow_fallbacks":false}}"#,
            json!({"only": ["a", "b"], "ignore": [], "order": ["a"], "allow_fallbacks": false,
                   "data_collection": "deny", "zdr": true}),
        ),
        (
            r#"{"provider":{"zdr":false,"max_price":{"zdr":false}}}"#,
            json!({"max_price": {"zdr": false}, "data_collection": "deny", "zdr": true}),
        ),
    ] {
        for path in ["/api/v1/chat/completions", "/api/v1/messages", "/api/v1/completions", "/api/v1/embeddings"] {
            let edited = edit(&only_rules(Vendor::Openrouter), path, body).unwrap();
            assert_eq!(edited.value(), json!({ "provider": wanted }), "{body}");
        }
        let edited = edit(&only_rules(Vendor::Openrouter), "/api/v1/responses", body).unwrap();
        assert_eq!(edited.value(), json!({ "provider": wanted, "store": false }), "{body}");
    }
    let body = r#"{"user":"u","session_id":"s","model":"m","trace":{"a":1},"metadata":{},"provider":{"zdr":true}}"#;
    assert_becomes(Vendor::Openrouter, CHAT, body, json!({"model": "m", "provider": provider}));
    assert_rule(Vendor::Openrouter, CHAT, r#"{"plugins":[{"id":"web"}]}"#, Rule::Plugins);
    assert_rule(Vendor::Openrouter, CHAT, r#"{"model":"a/b:online"}"#, Rule::Plugins);
    assert_rule(Vendor::Openrouter, CHAT, r#"{"models":["a/b","a/c:online"]}"#, Rule::Plugins);
    assert_rule(Vendor::Openrouter, CHAT, r#"{"debug":{"echo_upstream_body":true}}"#, Rule::Debug);
    for body in [
        r#"{"provider":{"zdr":true,"zdr":false}}"#,
        r#"{"provider":{"ZDR":false}}"#,
        r#"{"provider":{},"provider":null}"#,
        r#"{"provider":{},"Provider":{"zdr":false}}"#,
    ] {
        assert_eq!(refused(Vendor::Openrouter, CHAT, body), Some(Denied::Unreadable), "{body}");
    }
    assert_rule(Vendor::Openrouter, CHAT, r#"{"provider":[{}]}"#, Rule::DataCollection);
    assert_rule(Vendor::Openrouter, CHAT, r#"{"provider":{"zdr":{}}}"#, Rule::DataCollection);
    assert_becomes(
        Vendor::Openrouter,
        CHAT,
        r#"{"plugins":[],"debug":null}"#,
        json!({"plugins": [], "debug": null, "provider": provider}),
    );

    for (body, wanted) in [
        (r#"{}"#, json!({"gateway": {"zeroDataRetention": true}})),
        (
            r#"{"providerOptions":{"openai":{"a":1}}}"#,
            json!({"openai": {"a": 1}, "gateway": {"zeroDataRetention": true}}),
        ),
        (
            r#"{"providerOptions":{"gateway":{"zeroDataRetention":false,"only":["a"]}}}"#,
            json!({"gateway": {"zeroDataRetention": true, "only": ["a"]}}),
        ),
        (r#"{"providerOptions":{"gateway":null}}"#, json!({"gateway": {"zeroDataRetention": true}})),
    ] {
        assert_becomes(Vendor::Vercel, CHAT, body, json!({ "providerOptions": wanted }));
    }
}

#[test]
fn fields_of_chat() {
    for (body, rule) in [
        (r#"{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"f"}}]}]}"#, Rule::Files),
        (r#"{"tools":[{"type":"mcp"}]}"#, Rule::Mcp),
        (r#"{"tools":[{"type":"code_interpreter"}]}"#, Rule::CodeExecution),
        (r#"{"deferred":true}"#, Rule::Background),
    ] {
        assert_rule(Vendor::Openai, CHAT, body, rule);
    }
    assert_untouched(
        Vendor::Openai,
        CHAT,
        r#"{"messages":[{"content":[{"type":"file","file":{"file_data":"x","filename":"f"}}]}],"user":"u"}"#,
    );
    assert_rule(Vendor::Openai, "/v1/images/edits", r#"{"images":[{"file_id":"f"}]}"#, Rule::Files);
    assert_rule(Vendor::Mistral, "/v1/ocr", r#"{"document":{"type":"file","file_id":"f"}}"#, Rule::Files);
    assert_rule(Vendor::Openai, "/v1/realtime/client_secrets", r#"{"session":{"tracing":"auto"}}"#, Rule::Tracing);
    assert_rule(Vendor::Openai, "/v1/live/sessions", r#"{"store":true}"#, Rule::Store);
}

#[test]
fn fields_of_anthropic() {
    for (body, rule) in [
        (r#"{"tools":[{"type":"code_execution_20250825","name":"c"}]}"#, Rule::CodeExecution),
        (r#"{"tools":[{"type":"web_search_20260209"}]}"#, Rule::CodeExecution),
        (r#"{"tools":[{"name":"f","allowed_callers":["direct","code_execution_20250825"]}]}"#, Rule::CodeExecution),
        (r#"{"tools":[{"type":"mcp_toolset"}]}"#, Rule::Mcp),
        (r#"{"container":"c"}"#, Rule::CodeExecution),
        (r#"{"container":{"skills":[]}}"#, Rule::CodeExecution),
        (r#"{"mcp_servers":[{"url":"https://x.example"}]}"#, Rule::Mcp),
        (r#"{"messages":[{"content":[{"type":"document","source":{"type":"file","file_id":"f"}}]}]}"#, Rule::Files),
        (r#"{"messages":[{"content":[{"type":"document","source":{"type":"fil\u0065"}}]}]}"#, Rule::Files),
        (
            r#"{"messages":[{"content":[{"type":"tool_result","content":[{"type":"image","source":{"type":"file"}}]}]}]}"#,
            Rule::Files,
        ),
        (
            r#"{"messages":[{"content":[{"source":{"type":"content","content":[{"source":{"type":"file"}}]}}]}]}"#,
            Rule::Files,
        ),
        (r#"{"messages":[{"content":[{"type":"container_upload","file_id":"f"}]}]}"#, Rule::Files),
    ] {
        assert_rule(Vendor::Anthropic, MESSAGES, body, rule);
        assert_rule(Vendor::Deepseek, "/anthropic/v1/messages", body, rule);
    }
    for body in [
        r#"{"mcp_servers":[],"container":null,"metadata":{"user_id":"u"}}"#,
        r#"{"messages":[{"content":[{"type":"tool_use","input":{"source":{"type":"file","file_id":"f"}}}]}]}"#,
        r#"{"messages":[{"content":[{"type":"image","source":{"type":"base64","data":"file"}}]}]}"#,
        r#"{"tools":[{"type":"custom","input_schema":{"properties":{"type":{"const":"code_execution"}}}}]}"#,
        r#"{"tools":[{"type":"web_search_20250305"},{"type":"memory_20250818"},{"type":"bash_20250124"}],"store":true}"#,
    ] {
        assert_untouched(Vendor::Anthropic, MESSAGES, body);
    }
}

#[test]
fn threads_are_declined() {
    for body in [
        r#"{"thread":{"type":"create"},"model":"m"}"#,
        r#"{"model":"m","thread":{"type":"create","previous_message_id":null}}"#,
        r#"{"model":"m","thread":null}"#,
        r#"{"model":"m","thread":{}}"#,
    ] {
        assert_becomes(Vendor::Anthropic, MESSAGES, body, json!({"model": "m"}));
    }
    for body in [
        r#"{"thread":{"type":"continue","previous_message_id":"m"}}"#,
        r#"{"thread":{"type":"create","type":"continue"}}"#,
        r#"{"thread":{"previous_message_id":"m","type":"create"}}"#,
        r#"{"model":"m","\u0074hread":{"t\u0079pe":"c\u006fntinue"}}"#,
    ] {
        assert_eq!(refused(Vendor::Anthropic, MESSAGES, body), Some(Denied::Thread), "{body}");
    }
    assert_rule(Vendor::Anthropic, MESSAGES, r#"{"thread":{"type":"fork"}}"#, Rule::Threads);
    let relaxed = Policy { rules: RuleSet::EVERY.without(Rule::Threads), ..only_rules(Vendor::Anthropic) };
    let body = r#"{"thread":{"type":"continue","previous_message_id":"m"}}"#;
    assert_eq!(edit(&relaxed, MESSAGES, body).unwrap().value(), serde_json::from_str::<Value>(body).unwrap());

    let mut headers = Fields::default();
    for value in ["files-api-2025-04-14, message-threads-2026-08-12", "Message-Threads-x", "context-1m"] {
        headers.append(name::ANTHROPIC_BETA, FieldValue::of(value));
    }
    let read = |policy: &Policy, headers: &mut Fields| {
        policy.read_head(Provider::Anthropic, "", &Method::POST, MESSAGES, None, headers).unwrap().is_some()
    };
    let mut untouched = headers.clone();
    assert!(read(&relaxed, &mut untouched));
    assert_eq!(untouched.get_all("anthropic-beta").count(), 3);
    assert!(read(&only_rules(Vendor::Anthropic), &mut headers));
    let kept: Vec<_> = headers.get_all("anthropic-beta").map(|value| value.text().unwrap()).collect();
    assert_eq!(kept, ["files-api-2025-04-14", "context-1m"]);
}

#[test]
fn fields_of_google() {
    for (body, rule) in [
        (r#"{"tools":[{"googleSearch":{}}]}"#, Rule::Grounding),
        (r#"{"tools":[{"google_search":{}}]}"#, Rule::Grounding),
        (r#"{"tools":{"google_maps":{}}}"#, Rule::Grounding),
        (r#"{"tools":[{"googleSearchRetrieval":{}}]}"#, Rule::Grounding),
        (r#"{"tools":[{"fileSearch":{"fileSearchStoreNames":["s"]}}]}"#, Rule::FileSearch),
        (r#"{"cachedContent":"cachedContents/c"}"#, Rule::Caches),
        (r#"{"cached_content":"cachedContents/c"}"#, Rule::Caches),
        (r#"{"contents":[{"parts":[{"fileData":{"fileUri":"f"}}]}]}"#, Rule::Files),
        (r#"{"contents":{"parts":{"file_data":{"file_uri":"f"}}}}"#, Rule::Files),
        (r#"{"systemInstruction":{"parts":[{"fileData":{"fileUri":"f"}}]}}"#, Rule::Files),
        (r#"{"contents":[{"parts":[{"functionResponse":{"parts":[{"fileData":{}}]}}]}]}"#, Rule::Files),
        (r#"{"store":true}"#, Rule::Store),
    ] {
        assert_rule(Vendor::Gemini, GENERATE, body, rule);
        assert_rule(
            Vendor::Vertex,
            "/v1/projects/p/locations/l/publishers/google/models/m:streamGenerateContent",
            body,
            rule,
        );
    }
    for body in [
        r#"{"tools":[{"functionDeclarations":[{"name":"googleSearch","parameters":{"googleSearch":{}}}]}]}"#,
        r#"{"contents":[{"parts":[{"text":"x","inlineData":{"data":"fileData"}}]}],"tools":[{"codeExecution":{}}]}"#,
        r#"{"contents":[{"parts":[{"functionCall":{"args":{"fileData":{"fileUri":"f"}}}}]}]}"#,
    ] {
        assert_untouched(Vendor::Gemini, GENERATE, body);
    }
    for (body, rule) in [
        (r#"{"store":true}"#, Rule::Store),
        (r#"{"background":true}"#, Rule::Background),
        (r#"{"previous_interaction_id":"i"}"#, Rule::PreviousResponse),
        (r#"{"previousInteractionId":"i"}"#, Rule::PreviousResponse),
        (r#"{"tools":[{"type":"google_search"}]}"#, Rule::Grounding),
    ] {
        assert_rule(Vendor::Gemini, "/v1beta/interactions", body, rule);
    }
}

#[test]
fn messages_of_websockets() {
    let message = |vendor, path: &str, body: &str| {
        let editor = only_rules(vendor).read_message(Provider::Openai, "", path).expect("an editor");
        in_pieces(editor, body.as_bytes(), 1)
    };
    let live = "/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";
    for (path, body, denied) in [
        (RESPONSES, r#"{"type":"response.create","store":true}"#, Denied::Rule(Rule::Store)),
        (RESPONSES, r#"{"type":"response.create","tools":[{"type":"mcp"}]}"#, Denied::Rule(Rule::Mcp)),
        (RESPONSES, r#"{"type":"response.create","response":{"background":true}}"#, Denied::Rule(Rule::Background)),
        ("/v1/realtime", r#"{"type":"session.update","session":{"tools":[{"type":"mcp"}]}}"#, Denied::Rule(Rule::Mcp)),
        (
            "/v1/realtime",
            r#"{"type":"response.create","response":{"prompt":{"id":"p"}}}"#,
            Denied::Rule(Rule::StoredPrompt),
        ),
        (live, r#"{"setup":{"model":"m","sessionResumption":{}}}"#, Denied::Rule(Rule::SessionResumption)),
        (live, r#"{"setup":{"session_resumption":{"handle":"h"}}}"#, Denied::Rule(Rule::SessionResumption)),
        (live, r#"{"setup":{"tools":[{"googleSearch":{}}]}}"#, Denied::Rule(Rule::Grounding)),
        (live, r#"{"clientContent":{"turns":[{"parts":[{"fileData":{}}]}]}}"#, Denied::Rule(Rule::Files)),
    ] {
        assert_eq!(message(Vendor::Openai, path, body).err(), Some(denied), "{body}");
    }
    let create =
        message(Vendor::Openai, RESPONSES, r#"{"previous_response_id":"r","type":"response.create"}"#).unwrap();
    assert_eq!(create.value(), json!({"type": "response.create", "previous_response_id": "r", "store": false}));
    let steer = message(Vendor::Openai, RESPONSES, r#"{"type":"response.steer","input":"x"}"#).unwrap();
    assert_eq!(steer.value(), json!({"type": "response.steer", "input": "x"}));
    let append =
        message(Vendor::Openai, "/v1/realtime", r#"{"type":"input_audio_buffer.append","audio":"AA"}"#).unwrap();
    assert_eq!(append.value(), json!({"type": "input_audio_buffer.append", "audio": "AA"}));
    assert!(only_rules(Vendor::Openai).read_message(Provider::Openai, "", "/v1/other").is_none());
}

#[test]
fn models_are_checked_wherever_they_stand() {
    let policy = |patterns: &[&str]| Policy {
        models: Models::matching(&patterns.iter().map(|pattern| (*pattern).to_owned()).collect::<Vec<_>>()),
        ..only_rules(Vendor::Openai)
    };
    let list = policy(&["gpt-*", "models/x"]);
    let filler = format!(r#"{{"messages":["{}"],"model":"#, "x".repeat(10_000));
    for (body, allowed) in [
        (r#"{"model":"gpt-5"}"#.to_owned(), true),
        (r#"{"model":"gp\u0074-5"}"#.to_owned(), true),
        (r#"{"model":"other"}"#.to_owned(), false),
        (format!(r#"{filler}"gpt-5"}}"#), true),
        (format!(r#"{filler}"other"}}"#), false),
        (r#"{"model":"gpt-5","model":"other"}"#.to_owned(), false),
        (r#"{"model":"other","model":"gpt-5"}"#.to_owned(), false),
        (r#"{"Model":"other","model":"gpt-5"}"#.to_owned(), false),
        (r#"{"model":7}"#.to_owned(), false),
        (r#"{"model":{"a":"gpt-5"}}"#.to_owned(), false),
        (r#"{"model":null}"#.to_owned(), false),
        (r#"{}"#.to_owned(), false),
        (r#"{"input":{"model":"gpt-5"}}"#.to_owned(), false),
        (format!(r#"{{"model":"gpt-{}"}}"#, "x".repeat(92)), true),
        (format!(r#"{{"model":"gpt-{}"}}"#, "x".repeat(93)), false),
    ] {
        for path in [CHAT, RESPONSES, MESSAGES, "/v1/embeddings"] {
            let edited = edit(&list, path, &body);
            assert_eq!(edited.err(), (!allowed).then_some(Denied::Model), "{path} {body:.100}");
        }
    }
    assert_eq!(
        edit(&list, CHAT, r#"{"model":"gpt-5"}"#).ok().and_then(|edited| edited.model).as_deref(),
        Some("gpt-5")
    );
    let tool = r#"{"tools":[{"type":"advisor_1","model":"other"}],"model":"gpt-5"}"#;
    assert_eq!(edit(&list, MESSAGES, tool).err(), Some(Denied::Model));
    assert_eq!(edit(&policy(&["*"]), MESSAGES, tool).err(), None);
    // In the path, and in the query.
    let head = |path: &str, query: Option<&str>| {
        list.read_head(Provider::Gemini, "", &Method::POST, path, query, &mut Fields::default()).err()
    };
    assert_eq!(head("/v1beta/models/gemini-x:generateContent", None), Some(Denied::Model));
    assert_eq!(head("/v1beta/models/gpt-x:generateContent", None), None);
    assert_eq!(head("/openai/deployments/other/chat/completions", None), Some(Denied::Model));
    assert_eq!(head("/v1/realtime", Some("model=other")), Some(Denied::Model));
    assert_eq!(head("/v1/realtime", Some("model=gpt-realtime")), None);
    assert_eq!(list.read_upgrade(Provider::Openai, "", "/v1/realtime", Some("model=x")), Err(Denied::Model));
    // Azure's path names the model; whatever the body says is not looked at there.
    let azure = edit(&list, "/openai/deployments/gpt-5/chat/completions", r#"{"messages":[]}"#);
    assert!(azure.is_ok());
}

#[test]
fn facts() {
    for (path, body, stream, output) in [
        (CHAT, r#"{"stream":true,"max_tokens":7,"max_completion_tokens":9}"#, true, Some(9)),
        (RESPONSES, r#"{"max_output_tokens":1e3}"#, false, Some(1000)),
        (MESSAGES, r#"{"max_tokens":-1,"stream":false}"#, false, Some(0)),
        (MESSAGES, r#"{"max_tokens":"7"}"#, false, None),
        (GENERATE, r#"{"generationConfig":{"maxOutputTokens":64}}"#, false, Some(64)),
        ("/v1beta/models/m:streamGenerateContent", r#"{}"#, true, None),
        (CHAT, r#"{"max_tokens":99999999999999999999999999}"#, false, Some(u64::MAX)),
    ] {
        let facts = edit(&only_rules(Vendor::Other), path, body).unwrap().facts;
        assert_eq!((facts.stream, facts.output_tokens_max), (stream, output), "{body}");
    }
}

#[test]
fn what_is_no_strict_json_is_not_passed() {
    for body in [
        "",
        " ",
        "[]",
        "null",
        "\"x\"",
        "7",
        "{",
        "{\"a\"",
        "{\"a\":",
        "{\"a\":1",
        "{\"a\":1,",
        "{\"a\":1,}",
        "{,\"a\":1}",
        "{\"a\":1}}",
        "{\"a\":1}{",
        "{\"a\":1} x",
        "{\"a\":1},",
        "{'a':1}",
        "{a:1}",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":2}",
        "{\"a\"::1}",
        "{\"a\":[1,]}",
        "{\"a\":[,1]}",
        "{\"a\":[1 2]}",
        "{\"a\":[1}",
        "{\"a\":{]}",
        "{\"a\":01}",
        "{\"a\":+1}",
        "{\"a\":1.}",
        "{\"a\":.5}",
        "{\"a\":1e}",
        "{\"a\":-}",
        "{\"a\":0x1}",
        "{\"a\":NaN}",
        "{\"a\":Infinity}",
        "{\"a\":tru}",
        "{\"a\":True}",
        "{\"a\":nul1}",
        "{\"a\":\"\u{1}\"}",
        "{\"a\":\"\n\"}",
        "{\"a\":\"\\x\"}",
        "{\"a\":\"\\u12g4\"}",
        "{\"a\":\"\\u123\"}",
        "{\"a\":\"\\ud800\"}",
        "{\"a\":\"\\ud800x\"}",
        "{\"a\":\"\\ud800\\n\"}",
        "{\"a\":\"\\ud800\\ud800\\udc00\"}",
        "{\"a\":\"\\udc00\"}",
        "{\"\\ud800\":1}",
        "\u{feff}{}",
        "{} \u{feff}",
        "{}\u{a0}",
        "/* */{}",
        "{}//",
        "{\"a\":1/**/}",
        "{\"a\":1\u{0}}",
        "\u{0}{\u{0}}",
        "\u{c}{}",
    ] {
        let denied = edit(&only_rules(Vendor::Openai), CHAT, body).err();
        assert_eq!(denied, Some(Denied::Unreadable), "{body:?}");
        assert!(serde_json::from_str::<Value>(body).is_err() || !body.starts_with('{'), "{body:?}");
    }
    for bad in [&b"\xff"[..], b"\xc0\xaf", b"\xed\xa0\x80", b"\xe2\x82", b"\xf4\x90\x80\x80", b"\x80", b"\xe2\x28\xa1"]
    {
        let body = [b"{\"a\":\"x", bad, b"\"}"].concat();
        for step in [1, 2, 3, 100] {
            let editor = editor(&only_rules(Vendor::Openai), CHAT).unwrap();
            assert_eq!(in_pieces(editor, &body, step).err(), Some(Denied::Unreadable), "{bad:?}");
        }
    }
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    let deep = |depth| in_pieces(editor(&only_rules(Vendor::Openai), CHAT).unwrap(), nested(depth).as_bytes(), 9).err();
    assert_eq!(deep(json::DEPTH_MAX - 1), None);
    assert_eq!(deep(json::DEPTH_MAX), Some(Denied::Unreadable));
}

#[test]
fn whitespace_costs_nothing() {
    let gap = " \n\t\r".repeat(300);
    for policy in [strict(Vendor::Openai), only_rules(Vendor::Openrouter)] {
        let body =
            r#"@{@"model"@:@"m"@,@"metadata"@:@{@"a"@:@[@1@,@2@]@}@,@"stream_options"@:@{@}@,@"stream"@:@true@}@"#;
        for gap in [" ", "\n  ", &gap[..63], &gap[..64], &gap[..65], &gap] {
            let body = body.replace('@', gap);
            let value = edit(&policy, CHAT, &body).unwrap().value();
            assert_eq!((&value["model"], &value["stream"], value.get("metadata")), (&json!("m"), &json!(true), None));
        }
    }
    // The last member is the one that goes, far behind its comma.
    let body = format!("{{\"n\":1,{gap}\"metadata\":1}}");
    assert_becomes(Vendor::Openai, CHAT, &body, json!({"n": 1}));
    let body = format!("{{\"n\":1,{gap}\"metadata\":1,{gap}\"m\":2}}");
    assert_becomes(Vendor::Openai, CHAT, &body, json!({"n": 1, "m": 2}));
}

#[test]
fn large_bodies_pass_in_place() {
    let body = format!(r#"{{"messages":[{{"content":"{}"}}],"stream":true}}"#, "é\\n0123456789".repeat(400_000));
    let edited = in_pieces(editor(&strict(Vendor::Openai), CHAT).unwrap(), body.as_bytes(), 64 << 10).unwrap();
    assert!(edited.text.starts_with(&body[..body.len() - 1]));
    assert!(edited.facts.usage_added);
    let body = format!(r#"{{"{}":1,"store":false}}"#, "k".repeat(1 << 20));
    assert!(in_pieces(editor(&strict(Vendor::Openai), RESPONSES).unwrap(), body.as_bytes(), 1000).is_ok());
    let body = format!(r#"{{"metadata":"{}","n":1}}"#, "m".repeat(1 << 20));
    let edited = in_pieces(editor(&only_rules(Vendor::Openai), CHAT).unwrap(), body.as_bytes(), 1000).unwrap();
    assert_eq!(edited.value(), json!({"n": 1}));
}

#[test]
fn what_nobody_needs_is_not_read() {
    let none = Policy {
        rules: Rule::ALL.iter().fold(RuleSet::EVERY, |set, rule| set.without(*rule)),
        ..only_rules(Vendor::Openai)
    };
    for path in [CHAT, RESPONSES, MESSAGES, GENERATE, "/v1/embeddings", "/v1/files"] {
        assert!(editor(&none, path).is_none(), "{path}");
    }
    for path in
        ["/v1/embeddings", "/v1/moderations", "/v1/messages/count_tokens", "/v1/responses/input_tokens", "/v1/models"]
    {
        assert!(editor(&only_rules(Vendor::Openai), path).is_none(), "{path}");
    }
    assert!(none.read_message(Provider::Openai, "", RESPONSES).is_none());
    let get = only_rules(Vendor::Openai).read_head(
        Provider::Openai,
        "",
        &Method::GET,
        RESPONSES,
        None,
        &mut Fields::default(),
    );
    assert!(get.is_ok_and(|editor| editor.is_none()));
}

#[test]
fn encoded_bodies_go_on_plain() {
    use std::io::Write;
    let body = format!(r#"{{"input":"{}"}}"#, "x".repeat(100_000));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(body.as_bytes()).unwrap();
    let encoded = encoder.finish().unwrap();
    let read = |coding: &'static str| {
        let mut headers = Fields::default();
        headers.insert(name::CONTENT_ENCODING, FieldValue::of(coding));
        headers.insert(Known::named("content-digest"), FieldValue::of("sha-256=:x:"));
        let editor =
            only_rules(Vendor::Openai).read_head(Provider::Openai, "", &Method::POST, RESPONSES, None, &mut headers);
        (editor, headers)
    };
    for step in [1, 100, 1 << 20] {
        let (editor, headers) = read("gzip");
        assert!(headers.is_empty());
        let mut editor = editor.ok().flatten().unwrap();
        assert_eq!(editor.slot(), None);
        let mut out = Vec::new();
        for piece in encoded.chunks(step) {
            editor.feed(Chunk::copied(piece), &mut out).unwrap();
        }
        editor.finish(&mut out).unwrap();
        let text: Vec<u8> = out.iter().flat_map(|chunk| chunk.as_slice().to_vec()).collect();
        let value: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!((&value["store"], value["input"].as_str().map(str::len)), (&json!(false), Some(100_000)));
    }
    let fed = |bytes: &[u8], limit| {
        let mut editor = read("gzip").0.ok().flatten().unwrap();
        editor.limit(limit);
        let mut out = Vec::new();
        editor.feed(Chunk::copied(bytes), &mut out).and_then(|()| editor.finish(&mut out)).err()
    };
    assert_eq!(fed(&encoded, 50_000), Some(Denied::TooLarge));
    // Little that becomes very much at once, behind enough that the whole would not be too much.
    let mut dice = Dice(3);
    let mut bomb = br#"{"input":""#.to_vec();
    bomb.extend((0..60_000).map(|_| b'a' + (dice.roll(26) as u8)));
    bomb.resize(20 << 20, b'a');
    bomb.extend_from_slice(b"\"}");
    let bomb = nullhop_loadtests::encoding::Coding::Brotli.encode(&bomb);
    let mut editor = read("br").0.ok().flatten().unwrap();
    let mut most = 0;
    let fault = bomb.chunks(ENCODED_PIECE).find_map(|piece| {
        let mut out = Vec::new();
        let fault = editor.feed(Chunk::copied(piece), &mut out).err();
        most = most.max(out.iter().map(|chunk| chunk.as_slice().len()).sum());
        fault
    });
    assert_eq!(fault, Some(Denied::TooLarge));
    assert!((1 << 20..=PLAIN_PIECE_MAX).contains(&most), "{most}");
    assert_eq!(fed(&encoded[..encoded.len() / 2], 1 << 20), Some(Denied::Unreadable));
    assert_eq!(fed(b"no gzip at all", 1 << 20), Some(Denied::Unreadable));
    for coding in ["x-own", "gzip, zstd", "compress"] {
        assert_eq!(read(coding).0.err(), Some(Denied::Encoding), "{coding}");
    }
    assert!(read("identity").0.is_ok());
}

/// A generator of numbers (xorshift64*), so that a failure comes again.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % sides
    }

    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.roll(of.len())]
    }
}

/// Writes `value` with odd whitespace and odd escapes.
fn written(value: &Value, dice: &mut Dice, out: &mut String) {
    fn gap(dice: &mut Dice, out: &mut String) {
        match dice.roll(12) {
            0 => out.push(' '),
            1 => out.push_str("\n\t"),
            2 if dice.roll(10) == 0 => out.push_str(&" ".repeat(dice.roll(100))),
            _ => {}
        }
    }
    fn text(text: &str, dice: &mut Dice, out: &mut String) {
        out.push('"');
        for letter in text.chars() {
            if dice.roll(15) == 0 || letter < ' ' || letter == '"' || letter == '\\' {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    let hex = format!("\\u{unit:04x}");
                    out.push_str(&if dice.roll(2) == 0 { hex.to_uppercase().replacen("\\U", "\\u", 1) } else { hex });
                }
            } else {
                out.push(letter);
            }
        }
        out.push('"');
    }
    gap(dice, out);
    match value {
        Value::Object(members) => {
            out.push('{');
            for (place, (name, value)) in members.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                gap(dice, out);
                text(name, dice, out);
                gap(dice, out);
                out.push(':');
                written(value, dice, out);
            }
            gap(dice, out);
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    out.push(',');
                }
                written(item, dice, out);
            }
            gap(dice, out);
            out.push(']');
        }
        Value::String(string) => text(string, dice, out),
        other => out.push_str(&other.to_string()),
    }
    gap(dice, out);
}

fn document(dice: &mut Dice, depth: usize, safe: bool) -> Value {
    const NAMES: &[&str] = &[
        "store",
        "stream",
        "stream_options",
        "include_usage",
        "metadata",
        "model",
        "models",
        "messages",
        "input",
        "tools",
        "type",
        "content",
        "source",
        "file",
        "file_id",
        "background",
        "thread",
        "provider",
        "zdr",
        "data_collection",
        "user",
        "container",
        "prompt",
        "a",
        "b",
        "",
        "ü😀",
        "\"\\",
        "max_tokens",
        "output",
        "parts",
        "contents",
        "fileData",
        "text",
        "providerOptions",
        "gateway",
        "previous_response_id",
    ];
    const HARMLESS: &[&str] =
        &["model", "stream", "stream_options", "metadata", "a", "b", "user", "text", "provider", "ü"];
    const TEXTS: &[&str] = &["", "m", "create", "mcp", "file", "deny", "item_reference", "ü😀\n", "a/b:online", "user"];
    match dice.roll(if depth > 4 { 6 } else { 9 }) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(false),
        3 => json!(dice.roll(1000)),
        4 => json!(-1.5e-3),
        5 => json!(dice.one(if safe { &["x", "", "y\"z"] } else { TEXTS })),
        6 => Value::Array((0..dice.roll(4)).map(|_| document(dice, depth + 1, safe)).collect()),
        _ => members(dice, depth, if safe { HARMLESS } else { NAMES }, safe),
    }
}

fn members(dice: &mut Dice, depth: usize, names: &[&str], safe: bool) -> Value {
    Value::Object((0..dice.roll(7)).map(|_| (dice.one(names).to_owned(), document(dice, depth + 1, safe))).collect())
}

#[test]
fn random_documents_come_out_as_the_twin_says() {
    let policies = [
        strict(Vendor::Openai),
        only_rules(Vendor::Openai),
        strict(Vendor::Openrouter),
        strict(Vendor::Vercel),
        Policy { models: Models::matching(&["*m*".to_owned()]), ..strict(Vendor::Other) },
        Policy { rules: RuleSet::EVERY.without(Rule::Store).without(Rule::Metadata), ..strict(Vendor::Openrouter) },
    ];
    let paths = [CHAT, RESPONSES, MESSAGES, GENERATE, "/v1beta/interactions", "/v1/completions", "/v1/embeddings"];
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let (mut passed, mut changed) = (0, 0);
    for round in 0..30_000 {
        let safe = dice.roll(3) > 0;
        let policy = &policies[dice.roll(policies.len())];
        let path = paths[dice.roll(paths.len())];
        let Some(first) = editor(policy, path) else { continue };
        let root = members(
            &mut dice,
            0,
            if safe {
                &["model", "stream", "stream_options", "metadata", "a", "b", "provider", "messages", "thread", "user"]
            } else {
                &[
                    "store",
                    "stream",
                    "stream_options",
                    "model",
                    "metadata",
                    "a",
                    "tools",
                    "input",
                    "messages",
                    "provider",
                    "thread",
                    "contents",
                    "max_tokens",
                ]
            },
            safe,
        );
        let mut body = String::new();
        written(&root, &mut dice, &mut body);
        // What is longer stays; that has its own test.
        if root.get("stream_options").is_some_and(|options| options.to_string().len() > 40)
            && policy.usage == Usage::Ask
        {
            continue;
        }
        let Walker::Json(json) = &first.walker else { unreachable!() };
        let wanted = twin::edited(json.plan(), &root);
        let step = 1 + dice.roll(body.len());
        let whole = in_pieces(first, body.as_bytes(), usize::MAX);
        let pieces = in_pieces(editor(policy, path).unwrap(), body.as_bytes(), step);
        same(&whole, &pieces, &body, step);
        match (whole, wanted) {
            (Ok(edited), Ok(wanted)) => {
                passed += 1;
                changed += usize::from(wanted != root);
                assert_eq!(edited.value(), wanted, "{round}: {path} {body}");
            }
            (Err(_), Err(_)) => {}
            (edited, wanted) => {
                panic!("{round}: {path} {body}: {:?} {wanted:?}", edited.map(|edited| edited.text))
            }
        }
    }
    assert!(passed > 5_000 && changed > 2_000, "{passed} {changed}");
}

#[test]
fn bytes_at_random_are_edited_as_the_twin_says() {
    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"store\"",
        "\"stream\"",
        "\"metadata\"",
        "true",
        "false",
        "null",
        "1",
        "-0.5",
        " ",
        "\n",
        "\"a\"",
        "\"provider\"",
        "\"zdr\"",
        "\"stream_options\"",
        "\"include_usage\"",
        "\"model\"",
        "\"thread\"",
        "\\u0073",
        "ü",
        "\"type\"",
        "\"tools\"",
        "e",
        "{}",
        "\":1,\"",
        "\\ud83d\\ude00",
    ];
    let mut dice = Dice(0xdead_beef_cafe_f00d);
    for _ in 0..3_000 {
        // Sound at first, then with something wrong in it.
        let root = members(&mut dice, 0, &["store", "stream", "model", "metadata", "a", "provider", "thread"], true);
        let mut body = String::new();
        written(&root, &mut dice, &mut body);
        let mut body = body.into_bytes();
        body.truncate(300);
        for _ in 0..dice.roll(3) {
            let at = dice.roll(body.len());
            let piece = dice.one(PIECES);
            let end = (at + dice.roll(3)).min(body.len());
            body.splice(at..end, piece.bytes());
        }
        body.insert(0, dice.roll(256) as u8);
        edited_as_the_twin_says(&body);
    }
}
