//! No key stays: the memory of the running process is searched for every credential that callers have shown, right and
//! wrong ones, in every place and over all four pairs of HTTP versions, one second after their exchanges have ended, on
//! connections that live on. The operator's keys stand there exactly as often as before any traffic: once each, in the
//! pages that they are kept in. The secret that hashes are keyed with stands there not at all: what is kept is made of it.
//!
//! How memory is searched: `support::memory`; of everything else that passes: `tests/zero_retention.rs`.

mod support;

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use nullhop_loadtests::client::ChannelBody;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::Opcode;
use nullhop_loadtests::words::text;
use support::Edge;
use support::Scratch;
use support::Setup;
use support::keys::key;
use support::keys::revoke;
use support::memory::Search;
use support::socket::Socket;

const SECOND: Duration = Duration::from_secs(1);

const CHAT: &str = "/openai/v1/chat/completions";
const BOTH: &str = "/both/v1/chat/completions";
const MESSAGES: &str = "/anthropic/v1/messages";
const GEMINI: &str = "/gemini/v1beta/models/gemini-2.5-flash:generateContent";
const STREAM: &str = "/gemini/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse";
const REALTIME: &str = "/openai/v1/realtime?model=m";
const LIVE: &str = "/gemini/ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";

const BODY: &str = "{\"model\":\"gpt-4o-mini\",\"max_tokens\":10,\"messages\":[]}";

/// The operator's key at each upstream: all different, so that each can be counted.
const OPERATORS: [(&str, &str, &str); 4] = [
    ("openai", "openai", "sk-Zq7LwPaXeRt2MvUy9KcHnB4dFgJs"),
    ("anthropic", "anthropic", "sk-ant-Gy5TbQo8WxJk3RzLmVdPu6ChN"),
    ("gemini", "gemini", "AIzaXw4HrKf9YtEsUq2BvMj7LpDzNc6G"),
    ("both", "openai", "sk-Ub3VyFm8QnXkTc5WjRhZe7LgPoSa2"),
];

/// What hashes are keyed with.
const HASH_SECRET: &str = "Jd8WnTq5RyXb2KvZmLc7GfHu4PsEoAi9VtMx6QkB";

const PLANS: &str = r#"
[runtime]
workers = 1

[memory]
heap = "plain"

[keys]
file = "keys.jsonl"
secret = { file = "keys.secret" }

[admission]
wrong_keys_per_minute = 60
lag_max = "0s"

[[plan]]
name = "one"
rates = ["1 requests/1h"]

[[plan]]
name = "tokens"
rates = ["20 output tokens/1h"]

[[plan]]
name = "day"
budgets = ["80 tokens/day"]

[[plan]]
name = "place"
concurrency = 1
"#;

/// Keys that the edges know, by name.
struct Known {
    keys: Vec<(&'static str, String)>,
    files: Vec<(String, String)>,
}

impl Known {
    fn make() -> Self {
        let maker = Scratch::new();
        maker.file("keys.secret", HASH_SECRET);
        let mut keys = Vec::new();
        for name in FREE {
            keys.push((name, key(&maker, name, &[])));
        }
        for (name, flags) in [
            ("one", &["--plan", "one"][..]),
            ("tokens", &["--plan", "tokens"]),
            ("day", &["--plan", "day"]),
            ("place", &["--plan", "place"]),
            ("elsewhere", &["--upstream", "gemini"]),
            ("narrow", &["--model", "fine-*"]),
            ("beside", &["--track", "byok"]),
            ("beside-one", &["--track", "byok", "--plan", "one"]),
            ("out-of-place", &["--track", "byok"]),
            ("revoked", &[]),
        ] {
            keys.push((name, key(&maker, name, flags)));
        }
        revoke(&maker, "revoked");
        // Well-formed, and of another gateway.
        keys.push(("stranger", key(&Scratch::new(), "stranger", &[])));
        Self { keys, files: support::keys::files(&maker) }
    }

    fn get(&self, name: &str) -> &str {
        &self.keys.iter().find(|(known, _)| *known == name).expect("made").1
    }
}

/// Without limits, one for each way in which it can be shown.
const FREE: [&str; 16] = [
    "authorization",
    "x-api-key",
    "x-goog-api-key",
    "api-key",
    "query",
    "query-coded",
    "own-header",
    "twice",
    "streamed",
    "stream-query",
    "refused-above",
    "limited-above",
    "broken-above",
    "socket",
    "socket-protocol",
    "socket-query",
];

/// One request, and the credential that it shows.
struct Step {
    name: String,
    /// As it is to be searched for.
    secret: String,
    path: String,
    headers: Vec<(&'static str, String)>,
    script: &'static str,
    /// Of each of the requests that are made so, in order.
    statuses: &'static [u16],
}

fn step(name: &str, secret: &str, path: &str, header: &'static str, statuses: &'static [u16]) -> Step {
    let value = if header == "authorization" { format!("Bearer {secret}") } else { secret.to_owned() };
    let headers = if header.is_empty() { Vec::new() } else { vec![(header, value)] };
    let (name, secret, path) = (name.to_owned(), secret.to_owned(), path.to_owned());
    Step { name, secret, path, headers, script: "", statuses }
}

impl Step {
    fn script(self, script: &'static str) -> Self {
        Self { script, ..self }
    }

    fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.push((header, value.to_owned()));
        self
    }
}

/// Another text of 46 letters each time.
fn letters() -> String {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let seed = NEXT.fetch_add(2, Relaxed);
    text(seed, 23) + &text(seed + 1, 23)
}

/// Every way in which a request can end for its key.
fn steps(known: &Known) -> Vec<Step> {
    let managed = |name: &str, path: &str, header: &'static str, statuses: &'static [u16]| {
        step(name, known.get(name), path, header, statuses)
    };
    let query = format!("{GEMINI}?alt=json&key={}", known.get("query"));
    let coded = format!("{GEMINI}?k%65y=%6E{}", &known.get("query-coded")[1..]);
    let stream_query = format!("{STREAM}&key={}", known.get("stream-query"));
    let mut steps = vec![
        managed("authorization", CHAT, "authorization", &[200]),
        managed("x-api-key", MESSAGES, "x-api-key", &[200]),
        managed("x-goog-api-key", GEMINI, "x-goog-api-key", &[200]),
        managed("api-key", CHAT, "api-key", &[200]),
        managed("query", &query, "", &[200]),
        managed("query-coded", &coded, "", &[200]),
        managed("own-header", CHAT, "x-nullhop-key", &[200]).with("authorization", "Bearer placeholder"),
        managed("twice", MESSAGES, "x-api-key", &[200])
            .with("authorization", &format!("Bearer {}", known.get("twice"))),
        managed("streamed", CHAT, "authorization", &[200]).script("events=20;usage=1;event_bytes=300"),
        managed("stream-query", &stream_query, "", &[200]),
        managed("refused-above", CHAT, "authorization", &[502]).script("status=401;size=100"),
        managed("limited-above", CHAT, "authorization", &[429]).script("status=429;size=100"),
        managed("broken-above", CHAT, "authorization", &[502]).script("kill_after=head"),
        // Refused here: not allowed, limited, unknown.
        managed("elsewhere", CHAT, "authorization", &[403]),
        managed("narrow", CHAT, "authorization", &[403]),
        managed("one", CHAT, "authorization", &[200, 429]),
        managed("tokens", MESSAGES, "x-api-key", &[200, 429]),
        managed("day", CHAT, "authorization", &[200, 429]),
        managed("stranger", CHAT, "authorization", &[401]),
        managed("revoked", MESSAGES, "x-api-key", &[401]),
        managed("out-of-place", BOTH, "authorization", &[401]),
        // Pass-through with a key beside.
        managed("beside", BOTH, "x-nullhop-key", &[200]).with("authorization", "Bearer sk-own"),
        managed("beside-one", BOTH, "x-nullhop-key", &[200, 429]).with("authorization", "Bearer sk-own"),
    ];
    // None of ours, in every place.
    for prefix in ["nhk_", "sk-"] {
        let wrong = || format!("{prefix}{}", letters());
        for (path, header) in [
            (CHAT, "authorization"),
            (MESSAGES, "authorization"),
            (MESSAGES, "x-api-key"),
            (GEMINI, "x-goog-api-key"),
            (CHAT, "api-key"),
            (CHAT, "x-nullhop-key"),
            (BOTH, "x-nullhop-key"),
        ] {
            let wrong = wrong();
            steps.push(step(&format!("wrong: {prefix} {header}"), &wrong, path, header, &[401]));
        }
        let wrong = wrong();
        steps.push(step(&format!("wrong: {prefix} query"), &wrong, &format!("{GEMINI}?key={wrong}"), "", &[401]));
    }
    // A long one, and two that differ.
    let long = format!("nhk_{}", letters().repeat(20));
    steps.push(step("wrong: long", &long, CHAT, "authorization", &[401]));
    let (one, other) = (format!("nhk_{}", letters()), letters());
    steps.push(step("wrong: one of two", &one, CHAT, "authorization", &[401]).with("api-key", &other));
    steps.push(step("wrong: other of two", &other, CHAT, "authorization", &[401]).with("api-key", &one));
    // The caller's own at the provider, limited by a hash of it.
    for header in ["authorization", "x-api-key", "api-key", "x-goog-api-key"] {
        let own = format!("sk-{}", letters());
        steps.push(step(&format!("own: {header}"), &own, BOTH, header, &[200, 429]));
    }
    let own = letters();
    steps.push(step("own: query", &own, &format!("{BOTH}?key={own}"), "", &[200, 429]));
    let own = format!("sk-{}", letters());
    steps.push(step("own: refused above", &own, BOTH, "authorization", &[401, 429]).script("status=401;size=100"));
    let own = format!("sk-{}", letters());
    steps.push(step("own: streamed", &own, BOTH, "authorization", &[200]).script("events=20;event_bytes=300"));
    let own = format!("sk-{}", letters());
    let beside = step("own: beside a wrong one", &own, BOTH, "authorization", &[401]);
    steps.push(beside.with("x-nullhop-key", "nhk_wrong"));
    steps
}

fn request(client: &Client, step: &Step) -> http::request::Builder {
    let request = match client.is_h2() {
        true => Request::post(format!("https://localhost{}", step.path)),
        false => Request::post(&step.path).header("host", "localhost"),
    };
    let request = step.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    let request = if step.script.is_empty() { request } else { request.header("x-script", step.script) };
    request.header("content-type", "application/json")
}

/// nullhop between a provider and clients, each of one HTTP version.
struct Rig {
    provider: Provider,
    edge: Edge,
    client: Alpn,
    name: String,
    /// What was found, step by step.
    faults: Mutex<Vec<String>>,
}

impl Rig {
    fn new(client: Alpn, upstream: Alpn, known: &Known) -> Self {
        let options = ProviderOptions { alpn: upstream, hash_bodies: false, ..ProviderOptions::default() };
        let provider = Provider::spawn(options).expect("provider");
        let mut files = known.files.clone();
        let upstreams = OPERATORS.map(|(name, provider, secret)| {
            files.push((format!("{name}.key"), format!("{secret}\n")));
            let access =
                if name == "both" { "access = \"both\"\ncaller_plan = \"one\"\n" } else { "access = \"managed\"\n" };
            format!(
                "[[upstream]]\nname = \"{name}\"\nprovider = \"{provider}\"\nurl = \"{{url}}\"\n{{ca}}\n{access}\
                 [[upstream.key]]\nsecret = {{ file = \"{name}.key\" }}\n"
            )
        });
        let setup = Setup {
            extra: PLANS.to_owned(),
            upstreams: Some(upstreams.concat()),
            files,
            metrics: "per_key = true".to_owned(),
            ..Setup::default()
        };
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
        Self { provider, edge, client, name: format!("{client:?} to {upstream:?}"), faults: Mutex::default() }
    }

    fn fault(&self, fault: &str) {
        self.faults.lock().expect("faults").push(format!("{}: {fault}", self.name));
    }

    /// How often each of the operator's own secrets stands in memory, in bytes found.
    fn operators(&self) -> Vec<usize> {
        secrets().fold(Search::default(), |search, secret| search.text(secret)).process(self.edge.pid()).0
    }

    /// None of these credentials is found a second after the last exchange.
    fn gone(&self, when: &str, credentials: &[(String, String)]) {
        std::thread::sleep(SECOND);
        let search = credentials.iter().fold(Search::default(), |search, (_, secret)| search.head(secret.as_bytes()));
        let found = search.process(self.edge.pid()).0;
        for ((name, _), bytes) in credentials.iter().zip(found).filter(|(_, bytes)| *bytes > 0) {
            self.fault(&format!("{when}: {name}: {bytes} bytes found"));
        }
        for ((secret, bytes), masked) in secrets().zip(self.operators()).zip(self.keyed()) {
            let name = String::from_utf8_lossy(&secret[..6]);
            let kept = kept_bytes(secret);
            if bytes != kept || masked > 0 {
                self.fault(&format!("{when}: {name}...: {bytes} bytes found instead of {kept}, {masked} in a hash"));
            }
        }
    }

    /// The secrets as HMAC has them inside (RFC 2104): the same with each byte masked.
    fn keyed(&self) -> Vec<usize> {
        let masked = |secret: &[u8], mask: u8| secret.iter().map(|byte| byte ^ mask).collect::<Vec<u8>>();
        let search = secrets()
            .fold(Search::default(), |search, secret| search.text(&masked(secret, 0x36)).text(&masked(secret, 0x5c)));
        search.process(self.edge.pid()).0.chunks(2).map(|both| both.iter().sum()).collect()
    }
}

/// What the operator has: keys at providers, and the secret of hashes.
fn secrets() -> impl Iterator<Item = &'static [u8]> {
    OPERATORS.iter().map(|(_, _, key)| *key).chain([HASH_SECRET]).map(str::as_bytes)
}

/// How many bytes of it may stand in memory: once all of a key, in pages of its own; none of what hashes are keyed with.
fn kept_bytes(secret: &[u8]) -> usize {
    if secret == HASH_SECRET.as_bytes() { 0 } else { secret.len() }
}

/// The same test on all four pairs of HTTP versions at once; what was found in any of them fails it.
fn on_all_pairs(test: impl AsyncFn(&Rig, &Known) + Sync) {
    on_pairs(&[(Alpn::H1, Alpn::H1), (Alpn::H2, Alpn::H1), (Alpn::H1, Alpn::H2), (Alpn::H2, Alpn::H2)], test);
}

fn on_pairs(pairs: &[(Alpn, Alpn)], test: impl AsyncFn(&Rig, &Known) + Sync) {
    let known = Known::make();
    let faults: Vec<String> = std::thread::scope(|scope| {
        let (test, known) = (&test, &known);
        let of_pair = |(client, upstream): &(Alpn, Alpn)| {
            let (client, upstream) = (*client, *upstream);
            scope.spawn(move || {
                let rig = Rig::new(client, upstream, known);
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
                runtime.expect("runtime").block_on(async {
                    // Which shows that the search is not blind either.
                    let kept: Vec<usize> = secrets().map(kept_bytes).collect();
                    assert_eq!(rig.operators(), kept, "{}: before any traffic", rig.name);
                    test(&rig, known).await;
                });
                written_nowhere(&rig, known);
                rig.faults.into_inner().expect("faults")
            })
        };
        let threads: Vec<_> = pairs.iter().map(of_pair).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(faults.is_empty(), "{} credentials were left:\n{}", faults.len(), faults.join("\n"));
}

/// No key stands in the log, on the metrics page, or in a file that nullhop has written.
fn written_nowhere(rig: &Rig, known: &Known) {
    let mut places = vec![("log".to_owned(), rig.edge.log().join("\n")), ("metrics".to_owned(), rig.edge.scrape())];
    files_below(rig.edge.scratch.path(), &mut places);
    for (place, text) in places {
        let ours = known.keys.iter().map(|(_, key)| key.as_str());
        let operators = OPERATORS.iter().map(|(name, _, key)| (*key, place.ends_with(&format!("/{name}.key"))));
        let found = ours.map(|key| (key, false)).chain(operators).any(|(key, meant)| !meant && text.contains(key));
        if found || text.contains("nhk_") {
            rig.fault(&format!("a key is written to {place}"));
        }
    }
}

fn files_below(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files_below(&path, found);
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
}

#[test]
fn no_key_stays_however_its_request_ends() {
    on_all_pairs(async |rig, known| {
        // Each on a connection of its own, that lives on.
        let steps = steps(known);
        let mut kept = Vec::new();
        for step in &steps {
            let mut client = rig.edge.connect(rig.client).await;
            for (place, status) in step.statuses.iter().enumerate() {
                let request = request(&client, step).body(FullBody::new(BODY)).expect("request");
                let answer = client.send(request).await.unwrap_or_else(|fault| panic!("{}: {fault}", step.name));
                let got = Received::read(answer, 4096).await;
                let what = format!("{}: {} ({place})", rig.name, step.name);
                assert_eq!(got.head.status.as_u16(), *status, "{what}");
                if client.ready().await.is_err() {
                    kept.push(std::mem::replace(&mut client, rig.edge.connect(rig.client).await));
                }
            }
            kept.push(client);
        }
        let credentials: Vec<(String, String)> =
            steps.iter().map(|step| (step.name.clone(), step.secret.clone())).collect();
        rig.gone("connections open", &credentials);
        drop(kept);

        // All on one.
        let mut client = rig.edge.connect(rig.client).await;
        for step in &steps {
            let request = request(&client, step).body(FullBody::new(BODY)).expect("request");
            let answer = client.send(request).await.unwrap_or_else(|fault| panic!("{}: {fault}", step.name));
            drop(Received::read(answer, 4096).await);
            if client.ready().await.is_err() {
                client = rig.edge.connect(rig.client).await;
            }
        }
        rig.gone("on one connection", &credentials);
        drop(client);

        // Wrong ones until the address has to wait.
        let mut client = rig.edge.connect(rig.client).await;
        let mut guesses = Vec::new();
        loop {
            let guess = format!("nhk_{}", letters());
            let step = step("guess", &guess, CHAT, "authorization", &[]);
            guesses.push(("guess".to_owned(), guess));
            let request = request(&client, &step).body(FullBody::new(BODY)).expect("request");
            let answer = Received::read(client.send(request).await.expect("an answer"), 4096).await;
            match answer.head.status.as_u16() {
                401 => assert!(guesses.len() < 100, "{}: nobody is told to wait", rig.name),
                status => {
                    assert_eq!(status, 429, "{}", rig.name);
                    break;
                }
            }
            if client.ready().await.is_err() {
                client = rig.edge.connect(rig.client).await;
            }
        }
        rig.gone("told to wait", &guesses);
    });
}

#[test]
fn no_key_stays_while_its_stream_goes_on() {
    on_all_pairs(async |rig, known| {
        let own = format!("sk-{}", letters());
        let steps = [
            step("place", known.get("place"), CHAT, "authorization", &[]),
            step("streamed", known.get("streamed"), MESSAGES, "x-api-key", &[]),
            step(
                "stream-query",
                known.get("stream-query"),
                &format!("{STREAM}&key={}", known.get("stream-query")),
                "",
                &[],
            ),
            step("beside", known.get("beside"), BOTH, "x-nullhop-key", &[])
                .with("authorization", &format!("Bearer {own}")),
        ];
        let mut open = Vec::new();
        for step in &steps {
            let step = Step { script: "events=20;stall_after=3000;event_bytes=300", ..clone(step) };
            let mut client = rig.edge.connect(rig.client).await;
            let request = request(&client, &step).body(FullBody::new(BODY)).expect("request");
            let answer = client.send(request).await.expect("head");
            assert_eq!(answer.status(), 200, "{}: {}", rig.name, step.name);
            let mut body = answer.into_body();
            next_data(&mut body).await.expect("first").expect("data");
            open.push((client, body));
        }
        // Over its limit beside an open stream.
        let mut client = rig.edge.connect(rig.client).await;
        let over = request(&client, &steps[0]).body(FullBody::new(BODY)).expect("request");
        let answer = client.send(over).await.expect("head");
        assert_eq!(answer.status(), 429, "{}", rig.name);
        drop(Received::read(answer, 4096).await);
        let mut credentials: Vec<(String, String)> =
            steps.iter().map(|step| (step.name.clone(), step.secret.clone())).collect();
        credentials.push(("own".to_owned(), own));
        rig.gone("streams open", &credentials);

        // And one whose body never comes to its end: its caller's key is forgotten, too. The operator's waits with the head.
        let uploading = step("own-header", known.get("own-header"), CHAT, "x-nullhop-key", &[]);
        let mut other = rig.edge.connect(rig.client).await;
        let (sender, body) = ChannelBody::new(4);
        let begun = tokio::spawn(other.send(request(&other, &uploading).body(body).expect("request")));
        sender.send(Bytes::from_static(b"{\"model\":\"gpt-4o-mini\",")).await.expect("taken");
        tokio::time::sleep(SECOND).await;
        let found = Search::default().head(uploading.secret.as_bytes()).process(rig.edge.pid()).0[0];
        if found > 0 {
            rig.fault(&format!("in mid-upload: {found} bytes found"));
        }
        credentials.push((uploading.name.clone(), uploading.secret.clone()));
        drop((sender, begun, other));
        drop(open);
        rig.gone("streams left", &credentials);
        assert!(rig.provider.requests().len() >= 4);
    });
}

fn clone(step: &Step) -> Step {
    Step {
        name: step.name.clone(),
        secret: step.secret.clone(),
        path: step.path.clone(),
        headers: step.headers.clone(),
        script: step.script,
        statuses: step.statuses,
    }
}

#[test]
fn no_key_stays_behind_a_websocket() {
    // The upstream's side of a WebSocket is always h1.
    on_pairs(&[(Alpn::H1, Alpn::H1), (Alpn::H2, Alpn::H1)], async |rig, known| {
        let bearer = |secret: &str| format!("Bearer {secret}");
        let protocol = |secret: &str| format!("realtime, openai-insecure-api-key.{secret}, openai-beta.realtime-v1");
        let plain = str::to_owned;
        let wrong: Vec<String> = (0..4).map(|_| format!("nhk_{}", letters())).collect();
        let own = [letters(), letters()];
        // A name, a key, a path, a header and how the key stands in it, and the status if it is refused.
        type Case<'p> = (&'p str, &'p str, &'p str, &'static str, &'p dyn Fn(&str) -> String, Option<u16>);
        let cases: [Case<'_>; 12] = [
            ("socket", known.get("socket"), REALTIME, "authorization", &bearer, None),
            ("socket-protocol", known.get("socket-protocol"), REALTIME, "sec-websocket-protocol", &protocol, None),
            ("socket-query", known.get("socket-query"), LIVE, "", &plain, None),
            ("own-header", known.get("own-header"), REALTIME, "x-nullhop-key", &plain, None),
            ("own", &own[0], "/both/v1/realtime?model=m", "authorization", &bearer, None),
            ("own in a protocol", &own[1], "/both/v1/realtime?model=m", "sec-websocket-protocol", &protocol, None),
            ("wrong", &wrong[0], REALTIME, "authorization", &bearer, Some(401)),
            ("wrong in a protocol", &wrong[1], REALTIME, "sec-websocket-protocol", &protocol, Some(401)),
            ("wrong in a query", &wrong[2], LIVE, "", &plain, Some(401)),
            ("wrong in its header", &wrong[3], REALTIME, "x-nullhop-key", &plain, Some(401)),
            ("elsewhere", known.get("elsewhere"), REALTIME, "authorization", &bearer, Some(403)),
            ("revoked", known.get("revoked"), REALTIME, "sec-websocket-protocol", &protocol, Some(401)),
        ];
        let mut credentials = Vec::new();
        let mut sockets = Vec::new();
        for (name, secret, path, header, put, refused) in cases {
            let path = if header.is_empty() { format!("{path}?key={secret}") } else { path.to_owned() };
            let value = put(secret);
            let header = if header.is_empty() { "x-note" } else { header };
            let headers = [(header, if header == "x-note" { "none" } else { value.as_str() }), ("x-script", "ws=echo")];
            match (Socket::ask(&rig.edge, rig.client, &path, &headers).await, refused) {
                (Ok(mut socket), None) => {
                    let message = Frame::new(Opcode::Text, "{\"type\":\"session.update\"}");
                    socket.send(message.clone()).await;
                    assert_eq!(socket.next().await.expect("an echo").payload, message.payload, "{name}");
                    sockets.push(socket);
                }
                (Err(status), Some(refused)) => assert_eq!(status, refused, "{}: {name}", rig.name),
                (got, _) => panic!("{}: {name}: {:?}", rig.name, got.err()),
            }
            credentials.push((name.to_owned(), secret.to_owned()));
        }
        rig.gone("sockets open", &credentials);
        for socket in sockets {
            socket.close().await;
        }
        rig.gone("sockets closed", &credentials);
    });
}

#[test]
fn new_keys_and_a_reload_leave_the_operators_secrets_where_they_are() {
    on_all_pairs(async |rig, _| {
        let added = key(&rig.edge.scratch, "added", &[]);
        let added = step("added", &added, CHAT, "authorization", &[]);
        let deadline = std::time::Instant::now() + 20 * SECOND;
        loop {
            let mut client = rig.edge.connect(rig.client).await;
            let request = request(&client, &added).body(FullBody::new(BODY)).expect("request");
            if client.fetch(request).await.expect("an answer").status() == 200 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "the new key is taken");
            tokio::time::sleep(SECOND / 10).await;
        }
        let credentials = [(added.name.clone(), added.secret.clone())];
        rig.gone("a new key", &credentials);
        rig.edge.signal("HUP");
        assert!(rig.edge.wait_for_log(" config_reloaded", 20 * SECOND), "{:?}", rig.edge.log());
        let mut client = rig.edge.connect(rig.client).await;
        let request = request(&client, &added).body(FullBody::new(BODY)).expect("request");
        assert_eq!(client.fetch(request).await.expect("an answer").status(), 200);
        rig.gone("a reload", &credentials);
    });
}
