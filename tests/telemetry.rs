//! Rule 8 of `docs/metrics.md` on the running program: what is exported is what is documented, nothing of a request is in
//! a metric or a log line, each request moves the counters that it should, and Prometheus' own tools agree.

mod support;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::tls::Trust;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::WebSocket;
use nullhop_loadtests::websocket::base64;
use support::Edge;
use support::Setup;
use support::wait_for;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(20);
const CHAT: &str = "/openai/v1/chat/completions";

fn provider() -> Provider {
    Provider::spawn(ProviderOptions::default()).expect("provider")
}

/// With impatient timeouts, and an upstream that nobody answers at.
fn impatient(provider: &Provider) -> Edge {
    let upstream = "head_timeout = \"1s\"\nsilence_timeout = \"1s\"\n";
    let upstreams = format!(
        "[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\nurl = \"{{url}}\"\n{{ca}}\nbare = true\nretention = {{ allow = [\"all\"] }}\n{upstream}\
         [[upstream]]\nname = \"patient\"\nprovider = \"openai\"\nurl = \"{{url}}\"\n{{ca}}\nretention = {{ allow = [\"all\"] }}\n\
         [[upstream]]\nname = \"dead\"\nprovider = \"compatible\"\nurl = \"http://127.0.0.1:9\"\n"
    );
    Edge::with(&provider.url(), provider.ca_pem(), Setup { upstreams: Some(upstreams), ..Setup::default() })
}

fn request(client: &Client, path: &str, script: &str, body: impl Into<bytes::Bytes>) -> Request<FullBody> {
    let request = match client.is_h2() {
        true => Request::post(format!("https://localhost{path}")),
        false => Request::post(path).header("host", "localhost"),
    };
    let request = request.header("authorization", "Bearer k").header("content-type", "application/json");
    request.header("x-script", script).body(FullBody::new(body)).expect("request")
}

/// One exchange to its end, good or bad.
async fn exchange(client: &mut Client, path: &str, script: &str) -> Received {
    client.ready().await.expect("ready");
    let request = request(client, path, script, "{}");
    Received::read(client.send(request).await.expect("head"), 1000).await
}

/// All series of a family, without its name.
fn series(page: &str, name: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
    lines
        .filter(|(labels, _)| labels.is_empty() || labels.starts_with('{'))
        .map(|(labels, value)| (labels.to_owned(), value.parse().expect("a number")))
        .collect()
}

/// What has moved, and by how much.
fn moved(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<(String, f64)> {
    let by = |(labels, value): (&String, &f64)| (labels.clone(), value - before.get(labels).unwrap_or(&0.0));
    after.iter().map(by).filter(|(_, by)| *by != 0.0).collect()
}

/// A little of everything, so that every family has a series.
async fn everything(edge: &Edge) {
    for alpn in [Alpn::H1, Alpn::H2] {
        let mut client = edge.connect(alpn).await;
        assert!(exchange(&mut client, CHAT, "events=100;event_bytes=50;usage=1").await.error.is_none());
        assert_eq!(exchange(&mut client, "/v1/embeddings", "size=100").await.head.status, 200);
    }
}

// ---------------------------------------------------------------------------------------------------------------------

/// The families of `docs/metrics.md` with their types.
fn documented() -> BTreeMap<String, String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).expect("page");
    let rows = page.lines().filter(|line| line.starts_with("| nullhop_") || line.starts_with("| process_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        (cells[1].to_owned(), cells[2].split(' ').next().expect("type").to_owned())
    })
    .collect()
}

/// Families without a series as long as there are no prices, no keys with series of their own, and no provider that tells
/// what it has left.
const NEEDS_MORE: [&str; 5] = [
    "nullhop_cost_usd_total",
    "nullhop_key_limit_used_ratio",
    "nullhop_key_requests_total",
    "nullhop_key_tokens_total",
    "nullhop_upstream_limit_remaining_ratio",
];

#[test]
fn every_family_is_documented_and_exported() {
    let provider = provider();
    let edge = Edge::before(&provider);
    support::runtime().block_on(everything(&edge));
    // The lag is sampled ten times a second.
    assert!(edge.wait_for_metric("nullhop_runtime_lag_seconds_count", &[], |count| count > 0.0, SOON));
    let page = edge.scrape();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let exported: BTreeMap<String, String> = types.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect();
    let mut documented = documented();
    for family in NEEDS_MORE {
        assert!(documented.remove(family).is_some(), "{family}");
    }
    assert_eq!(exported, documented);
    for family in exported.keys() {
        assert!(page.contains(&format!("# HELP {family} ")), "{family}");
    }
    assert!(!page.contains("_created") && !page.contains(" # {"), "no _created, no exemplars");
    assert!(edge.metric("nullhop_runtime_tasks", &[]) > 0.0);
}

/// Whether a tool of Prometheus is there. Without it a test says so and ends, or fails where it must be there.
fn installed(tool: &str, test: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|status| status.success()) {
        return true;
    }
    assert!(std::env::var_os("NULLHOP_REQUIRE_CLIENTS").is_none_or(|value| value != "1"), "{tool} is required");
    eprintln!("SKIPPED {test}: {tool} is not installed (Debian: apt-get install prometheus)");
    false
}

#[test]
fn promtool_has_nothing_to_say() {
    if !installed("promtool", "promtool_has_nothing_to_say") {
        return;
    }
    let provider = provider();
    let edge = Edge::before(&provider);
    support::runtime().block_on(everything(&edge));
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = command.spawn().expect("promtool");
    tool.stdin.take().expect("piped").write_all(edge.scrape().as_bytes()).expect("page");
    let output = tool.wait_with_output().expect("promtool");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["check", "rules", "opentelemetry.yml"],
        ["check", "rules", "usage.yml"],
        ["test", "rules", "alerts.test.yml"],
    ] {
        let output = Command::new("promtool").args(arguments).current_dir(&folder).output().expect("promtool");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

#[test]
fn rules_name_only_what_is_documented() {
    let rules = ["alerts.yml", "opentelemetry.yml", "usage.yml"].map(|name| {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus");
        std::fs::read_to_string(folder.join(name)).expect("rules")
    });
    let rules = rules.concat();
    let documented = documented();
    let words = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let mut named = BTreeSet::new();
    for word in words.filter(|word| word.starts_with("nullhop_")) {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(word);
        assert!(documented.contains_key(family) || documented.contains_key(word), "{word}");
        named.insert(word);
    }
    assert!(named.len() > 5);
}

/// An alert on a rise needs the zero that it rises from.
#[test]
fn what_alerts_watch_is_there_before_it_moves() {
    let edge = Edge::with("http://127.0.0.1:9", "", Setup::default());
    let page = edge.scrape();
    for (series, value) in [
        ("nullhop_limit_decisions_total{basis=\"local\",decision=\"deny\",limit=\"global\"}", 0),
        ("nullhop_limit_decisions_total{basis=\"local\",decision=\"deny\",limit=\"budget\"}", 0),
        ("nullhop_authentication_failures_total{reason=\"unknown\"}", 0),
        ("nullhop_keys_reloads_total{result=\"error\"}", 0),
        ("nullhop_keys_last_reload_successful", 1),
        ("nullhop_upstream_keys{state=\"ready\",upstream=\"openai\"}", 0),
        ("nullhop_upstream_keys{state=\"cooling\",upstream=\"openai\"}", 0),
        ("nullhop_usage_events_total{result=\"lost\"}", 0),
        ("nullhop_usage_event_disk_failures_total", 0),
        ("nullhop_unpriced_requests_total{upstream=\"openai\"}", 0),
    ] {
        assert!(page.lines().any(|line| line == format!("{series} {value}")), "{series}");
    }
}

#[test]
fn prometheus_scrapes_it() {
    if !installed("prometheus", "prometheus_scrapes_it") {
        return;
    }
    let provider = provider();
    let edge = Edge::before(&provider);
    support::runtime().block_on(everything(&edge));
    let rules = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/prometheus/alerts.yml");
    let config = edge.scratch.file(
        "prometheus.yml",
        &format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [\"{}\"]\nscrape_configs:\n\
             - job_name: nullhop\n  static_configs:\n  - targets: [\"{}\"]\n",
            rules.display(),
            edge.metrics
        ),
    );
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", edge.scratch.path().join("tsdb").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("prometheus");
    let address: SocketAddr = ([127, 0, 0, 1], port).into();
    let ask = |path: &str| -> Option<serde_json::Value> {
        let mut stream = TcpStream::connect(address).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    };
    let query = "/api/v1/query?query=sum(nullhop_requests_total%7Boutcome%3D%22ok%22%7D)";
    let seen = wait_for(Duration::from_secs(20), || {
        ask(query).is_some_and(|said| said["data"]["result"][0]["value"][1] == "4")
    });
    let targets = ask("/api/v1/targets");
    let rules = ask("/api/v1/rules");
    let _ = server.kill();
    let _ = server.wait();
    assert!(seen, "{targets:?}");
    assert_eq!(targets.expect("targets")["data"]["activeTargets"][0]["health"], "up");
    let rules = rules.expect("rules").to_string();
    assert!(rules.contains("NullhopDown") && !rules.contains("\"health\":\"err\""), "{rules}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Nothing of a request

/// A request in which everything that a client chooses holds `marker`, and its relatives that go wrong.
async fn mark_everything(edge: &Edge, marker: &str) {
    let lower = marker.to_ascii_lowercase();
    for alpn in [Alpn::H1, Alpn::H2] {
        let mut client =
            Client::connect(edge.address(), &format!("{lower}.test"), alpn, &Trust::AcceptAny).await.expect("connects");
        let scripts =
            ["echo=1", "echo=1;status=429", "echo=1;status=500", "size=5000;reset_after=100", "reset_after=head"];
        for (path, script) in scripts.iter().map(|script| (CHAT, *script)).chain([
            ("/openai/v1/responses", "echo=1"),
            ("/dead/v1/chat/completions", ""),
            ("/nowhere", ""),
            ("/openai/v1/", "echo=1"),
        ]) {
            let script = format!("{script};header=x-provider:{marker};header=set-cookie:{marker}");
            let uri = format!("{path}/{marker}?key={marker}&{marker}=1");
            let uri = if client.is_h2() { format!("https://localhost{uri}") } else { uri };
            let request = Request::post(uri)
                .header("content-type", "application/json")
                .header("authorization", format!("Bearer sk-{marker}"))
                .header("x-api-key", marker)
                .header("user-agent", marker)
                .header("cookie", marker)
                .header("referer", marker)
                .header("openai-organization", marker)
                .header(format!("x-{lower}"), marker)
                .header("x-script", script);
            let request = if client.is_h2() { request } else { request.header("host", "localhost") };
            let body =
                format!("{{\"model\":\"{marker}\",\"stream\":true,\"messages\":[{{\"content\":\"{marker}\"}}]}}");
            if client.ready().await.is_err() {
                client = edge.connect(alpn).await;
            }
            if let Ok(response) = client.send(request.body(FullBody::new(body)).expect("request")).await {
                Received::read(response, usize::MAX).await;
            }
        }
    }
    // Heads that are refused before they are requests.
    for head in [
        format!("{marker} / HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        format!("GET / HTTP/1.1\r\nhost: {marker}\r\n\r\n"),
        format!("GET http://{marker}/ HTTP/1.1\r\nhost: {marker}\r\n\r\n"),
        format!("CONNECT {marker}:443 HTTP/1.1\r\nhost: {marker}:443\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{marker} {marker}\r\n\r\n"),
        format!("{marker}\0\r\n\r\n"),
    ] {
        let stream = raw_tls_connect(edge.address(), "localhost", Alpn::H1, &edge.trust()).await;
        let mut stream = stream.expect("TLS");
        stream.write_all(head.as_bytes()).await.expect("written");
        let _ = tokio::time::timeout(Duration::from_millis(200), stream.read_to_end(&mut Vec::new())).await;
    }
    let mut plain = tokio::net::TcpStream::connect(edge.address()).await.expect("connects");
    plain.write_all(marker.as_bytes()).await.expect("written");
    let _ = plain.read(&mut [0; 100]).await;
    let stream = raw_tls_connect(edge.address(), "localhost", Alpn::H1, &edge.trust()).await.expect("TLS");
    let headers = format!("authorization: Bearer {marker}\r\nsec-websocket-protocol: {marker}\r\n");
    let path = format!("/openai/v1/realtime?model={marker}");
    if let Ok(mut socket) = WebSocket::connect(stream, "localhost", &path, &headers).await {
        socket.send_text(marker).await.expect("sent");
        assert!(socket.next_message().await.expect("echo").is_some());
        socket.send(Frame::close(1000, marker)).await.expect("sent");
        let _ = socket.next_frame().await;
    }
}

/// How `marker` may look in a text that should not have it.
fn forms(marker: &str) -> Vec<String> {
    let bytes = marker.as_bytes();
    let mut forms = vec![marker.to_ascii_lowercase()];
    forms.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
    forms.push(bytes.iter().map(|byte| format!("%{byte:02x}")).collect());
    forms.push(bytes.iter().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", "));
    // At each of the three places in a group of four; without the characters that neighbours share.
    for lead in 0..3 {
        let text = base64(&[&vec![b'x'; lead][..], bytes].concat());
        let inner = text.trim_end_matches('=');
        forms.push(inner[if lead == 0 { 0 } else { lead + 1 }..inner.len() - 1].to_ascii_lowercase());
    }
    forms
}

#[test]
fn no_marker_is_anywhere_and_series_do_not_grow() {
    let provider = provider();
    let edge = impatient(&provider);
    let settled = |edge: &Edge| edge.wait_for_metric("nullhop_requests_in_flight", &[], |open| open == 0.0, SOON);
    support::runtime().block_on(async {
        // The first round opens the series of this kind of traffic.
        mark_everything(&edge, "Qx0zebraW").await;
        assert!(settled(&edge));
        // Not of traffic: the first sample of the lag comes after a tenth of a second.
        assert!(edge.wait_for_metric("nullhop_runtime_lag_seconds_count", &[], |count| count > 0.0, SOON));
        let of = |page: &str| -> BTreeSet<String> {
            let lines = page.lines().filter(|line| !line.starts_with('#'));
            lines.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
        };
        let before = of(&edge.scrape());
        for round in 1..4 {
            mark_everything(&edge, &format!("Qx{round}zebraW")).await;
        }
        assert!(settled(&edge));
        let page = edge.scrape();
        let after = of(&page);
        assert!(after == before, "{:?}", after.difference(&before).collect::<Vec<_>>());
        // The markers did arrive where they were sent.
        assert!(provider.requests().len() > 40);
        let texts = [page.to_ascii_lowercase(), edge.log().join("\n").to_ascii_lowercase()];
        for round in 0..4 {
            for form in forms(&format!("Qx{round}zebraW")) {
                for text in &texts {
                    assert!(!text.contains(&form), "{form}");
                }
            }
        }
        assert!(!texts.iter().any(|text| text.contains("zebra")));
    });
}

const EVENTS: [&str; 28] = [
    "accept_failed",
    "budget_soft",
    "certificate_expires_soon",
    "certificate_refused",
    "certificate_reloaded",
    "config_refused",
    "config_reloaded",
    "drain_finished",
    "drain_started",
    "guard_threshold",
    "heap_chosen",
    "heap_limit_reached",
    "journal_needs_restart",
    "journal_refused",
    "journal_resumed",
    "keys_refused",
    "keys_reloaded",
    "listening",
    "panic_caught",
    "process_guard_missing",
    "provider_key_cooling",
    "retention_warning",
    "shedding",
    "started",
    "stopped",
    "upstream_down",
    "upstream_up",
    "usage_events_lost",
];

#[test]
fn json_lines_are_json_from_the_first_to_the_last() {
    let scratch = support::Scratch::new();
    let config = "[log]\nformat = \"json\"\n[[listener]]\naddress = \"127.0.0.1:0\"\n[metrics]\naddress = \"127.0.0.1:0\"\n\
                  [admin]\naddress = \"127.0.0.1:0\"\n[[upstream]]\nname = \"openai\"\nprovider = \"openai\"\n";
    // Worth a warning: others may read it.
    let config = config.replace("[admin]", "token = { file = \"token\" }\n[admin]");
    let token = scratch.file("token", "opensesame-1234");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&token, mode).expect("mode");
    let path = scratch.file("nullhop.toml", &config);
    let log = scratch.path().join("log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
    command.arg("run").arg("-c").arg(&path).stderr(std::fs::File::create(&log).expect("file"));
    let mut child = command.spawn().expect("starts");
    let signal = |name: &str| {
        let status = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
        assert!(status.expect("kill").success());
    };
    let read = || std::fs::read_to_string(&log).expect("log");
    assert!(wait_for(SOON, || read().contains("\"started\"")), "{}", read());
    signal("HUP");
    assert!(wait_for(SOON, || read().contains("\"config_reloaded\"")), "{}", read());
    scratch.file("nullhop.toml", "secret-canary = 1\n");
    signal("HUP");
    assert!(wait_for(SOON, || read().contains("\"config_refused\"")), "{}", read());
    signal("TERM");
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    let text = read();
    assert!(text.contains("\"event\":\"drain_finished\"") && text.contains("\"event\":\"stopped\""), "{text}");
    assert!(!text.contains("canary"), "{text}");
    let mut warnings = 0;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        if line["message"].is_string() {
            warnings += 1;
            continue;
        }
        let event = line["event"].as_str().expect("event");
        assert!(EVENTS.contains(&event), "{event}");
        assert!(["error", "warn", "info"].contains(&line["level"].as_str().expect("level")));
        assert!(line["time"].as_str().expect("time").ends_with('Z'));
    }
    assert_eq!(warnings, 1, "{text}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Each request once

#[test]
fn each_outcome_moves_one_counter_by_one() {
    let provider = provider();
    let edge = impatient(&provider);
    let key = |upstream: &str, mode: &str, operation: &str, outcome: &str| {
        format!("{{mode=\"{mode}\",operation=\"{operation}\",outcome=\"{outcome}\",upstream=\"{upstream}\"}}")
    };
    let relayed = |outcome: &str| key("openai", "byok", "chat_completions", outcome);
    support::runtime().block_on(async {
        for alpn in [Alpn::H1, Alpn::H2] {
            for (path, script, requests, response) in [
                (CHAT, "size=10", relayed("ok"), ("200", "upstream", "openai")),
                (CHAT, "events=3", relayed("ok"), ("200", "upstream", "openai")),
                (CHAT, "status=404;size=10", relayed("upstream_rejected"), ("404", "upstream", "openai")),
                (CHAT, "status=418;size=10", relayed("upstream_rejected"), ("4xx", "upstream", "openai")),
                (CHAT, "status=429;size=10", relayed("upstream_limited"), ("429", "upstream", "openai")),
                (CHAT, "status=529;size=10", relayed("upstream_limited"), ("529", "upstream", "openai")),
                (CHAT, "status=500;size=10", relayed("upstream_error"), ("500", "upstream", "openai")),
                (CHAT, "reset_after=head", relayed("upstream_error"), ("502", "nullhop", "openai")),
                (CHAT, "size=5000;reset_after=1000", relayed("upstream_cut"), ("200", "upstream", "openai")),
                (CHAT, "never=1", relayed("upstream_timeout"), ("504", "nullhop", "openai")),
                (CHAT, "size=5000;stall_after=1000", relayed("upstream_timeout"), ("200", "upstream", "openai")),
                ("/dead/v1/models", "", key("dead", "byok", "models", "upstream_error"), ("502", "nullhop", "dead")),
                ("/nowhere", "", key("none", "none", "other", "client_error"), ("404", "nullhop", "none")),
                ("/metrics", "", key("none", "none", "other", "client_error"), ("404", "nullhop", "none")),
            ] {
                let mut client = edge.connect(alpn).await;
                let before = edge.scrape();
                exchange(&mut client, path, script).await;
                let now = |name: &str| moved(&series(&before, name), &series(&edge.scrape(), name));
                assert!(wait_for(SOON, || !now("nullhop_requests_total").is_empty()), "{path} {script}");
                assert_eq!(now("nullhop_requests_total"), [(requests, 1.0)], "{path} {script}");
                let (status, source, upstream) = response;
                let wanted = format!("{{source=\"{source}\",status=\"{status}\",upstream=\"{upstream}\"}}");
                assert_eq!(now("nullhop_responses_total"), [(wanted, 1.0)], "{path} {script}");
                assert_eq!(now("nullhop_requests_in_flight"), [], "{path} {script}");
            }
            // The client leaves: while it waits for the head, and in mid-stream.
            for script in ["never=1", "events=1000;event_bytes=100;period_us=20000"] {
                let before = edge.scrape();
                let mut client = edge.connect(alpn).await;
                let asked = request(&client, "/patient/v1/chat/completions", script, "{}");
                let mut answer = Box::pin(client.send(asked));
                if let Ok(answer) = tokio::time::timeout(Duration::from_millis(300), &mut answer).await {
                    next_data(&mut answer.expect("head").into_body()).await.expect("data").expect("data");
                }
                // The runtime of this thread sends and closes, so it must not be blocked for long.
                let arrived = async {
                    while edge.metric("nullhop_requests_in_flight", &["upstream=\"patient\""]) != 1.0 {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                assert!(tokio::time::timeout(SOON, arrived).await.is_ok(), "{alpn:?} {script}");
                // On h2 it would keep the connection.
                drop(answer);
                client.abort(Ending::Reset);
                let now = |name: &str| moved(&series(&before, name), &series(&edge.scrape(), name));
                let settled = async {
                    while now("nullhop_requests_total").is_empty() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                };
                assert!(tokio::time::timeout(SOON, settled).await.is_ok(), "{alpn:?} {script}");
                let wanted = key("patient", "byok", "chat_completions", "client_abort");
                assert_eq!(now("nullhop_requests_total"), [(wanted, 1.0)], "{script}");
                assert_eq!(now("nullhop_requests_in_flight"), []);
            }
        }
    });
    assert!(edge.metric("nullhop_upstream_connects_total", &["upstream=\"dead\"", "result=\"refused\""]) >= 2.0);
    for reason in ["connect", "head_timeout", "idle_timeout", "reset"] {
        let label = format!("reason=\"{reason}\"");
        assert!(edge.metric("nullhop_upstream_failures_total", &[&label]) >= 1.0, "{reason}");
    }
    assert!(edge.wait_for_metric("nullhop_open_connections", &[], |open| open == 0.0, SOON));
}

#[test]
fn bytes_and_connections_are_exact() {
    for upstream in [Alpn::H1, Alpn::H2] {
        let provider =
            Provider::spawn(ProviderOptions { alpn: upstream, ..ProviderOptions::default() }).expect("provider");
        // One worker, so one pool.
        let setup = Setup { extra: "[runtime]\nworkers = 1\n".to_owned(), ..Setup::default() };
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
        support::runtime().block_on(async {
            for alpn in [Alpn::H1, Alpn::H2] {
                let mut client = edge.connect(alpn).await;
                let label = format!("protocol=\"{}\"", if client.is_h2() { "h2" } else { "h1" });
                // Our end of the handshake is over first.
                assert!(edge.wait_for_metric("nullhop_open_connections", &[&label], |open| open == 1.0, SOON));
                for (up, down) in [(0, 0), (1, 10), (12_345, 543_210), (1_000_000, 1)] {
                    let before = edge.scrape();
                    client.ready().await.expect("ready");
                    let asked = request(&client, CHAT, &format!("size={down}"), vec![b'x'; up]);
                    let answer = client.fetch(asked).await.expect("answer");
                    assert_eq!(answer.body.len(), down);
                    let now = || {
                        moved(
                            &series(&before, "nullhop_requests_total"),
                            &series(&edge.scrape(), "nullhop_requests_total"),
                        )
                    };
                    assert!(wait_for(SOON, || !now().is_empty()));
                    let name = "nullhop_body_bytes_total";
                    let bytes = moved(&series(&before, name), &series(&edge.scrape(), name));
                    let of = |direction: &str| {
                        let label = format!("direction=\"{direction}\"");
                        bytes.iter().filter(|(labels, _)| labels.contains(&label)).map(|(_, by)| *by).sum::<f64>()
                    };
                    assert_eq!((of("request"), of("response")), (up as f64, down as f64));
                }
            }
        });
        assert_eq!(
            edge.metric("nullhop_upstream_connects_total", &["result=\"ok\""]),
            provider.state().connects as f64
        );
        assert_eq!(edge.metric("nullhop_upstream_connects_total", &["result=\"ok\""]), 1.0, "pooled");
        assert_eq!(edge.metric("nullhop_connections_total", &[]), 2.0);
        assert_eq!(edge.metric("nullhop_tls_handshakes_total", &["result=\"ok\""]), 2.0);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Who may read it

fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(SOON)).expect("timeout");
    stream.write_all(request.replace('\n', "\r\n").as_bytes()).expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("reads");
    answer
}

#[test]
fn a_token_guards_the_page() {
    let edge = Edge::with("http://127.0.0.1:9", "", Setup::default());
    let open = ask(edge.metrics, "GET /metrics HTTP/1.1\nhost: x\norigin: https://evil.test\nconnection: close\n\n");
    assert!(open.starts_with("HTTP/1.1 200 ") && open.contains("text/plain; version=0.0.4"));
    assert!(!open.to_ascii_lowercase().contains("access-control"), "no web page may read it");
    assert!(ask(edge.metrics, "POST /metrics HTTP/1.1\nhost: x\nconnection: close\n\n").starts_with("HTTP/1.1 405 "));
    assert!(ask(edge.metrics, "GET / HTTP/1.1\nhost: x\nconnection: close\n\n").starts_with("HTTP/1.1 404 "));
    assert_eq!(edge.admin("GET", "/metrics").0, 404, "nor is it on the admin listener");

    edge.scratch.file("token", "opensesame-1234\n");
    let old = "[metrics]\naddress = \"127.0.0.1:0\"";
    let text = Edge::config("http://127.0.0.1:9", &Setup::default());
    assert!(text.contains(old));
    edge.scratch.file("nullhop.toml", &text.replace(old, &format!("{old}\ntoken = {{ file = \"token\" }}")));
    edge.signal("HUP");
    assert!(edge.wait_for_log(" config_reloaded", SOON), "{}", edge.log().join("\n"));
    let without = "GET /metrics HTTP/1.1\nhost: x\nconnection: close\n\n";
    assert!(wait_for(SOON, || ask(edge.metrics, without).starts_with("HTTP/1.1 401 ")));
    for (token, status) in [("opensesame-1234", "200"), ("opensesame-1235", "401"), ("", "401")] {
        let asked = format!("GET /metrics HTTP/1.1\nhost: x\nauthorization: Bearer {token}\nconnection: close\n\n");
        assert!(ask(edge.metrics, &asked).starts_with(&format!("HTTP/1.1 {status} ")), "{token}");
    }
    assert!(!edge.log().join("\n").contains("opensesame"));
}
