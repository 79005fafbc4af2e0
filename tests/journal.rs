//! The journal of usage events (docs/usage.md): what is in its folder after kills, full disks, drains and reloads, held
//! against what clients saw.

mod support;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use std::time::Instant;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::next_data;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use rustix::process::Resource;
use rustix::process::Rlimit;
use serde_json::Value;
use support::Edge;
use support::Scratch;
use support::Setup;
use support::wait_for;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(30);

const CHAT: &str = "/openai/v1/chat/completions";

fn provider(alpn: Alpn) -> Provider {
    let options = ProviderOptions { alpn, vectors: Some(support::vectors()), ..ProviderOptions::default() };
    Provider::spawn(options).expect("provider")
}

/// An edge whose journal is in `folder`; `journal` and `extra` are TOML.
fn edge(provider: &Provider, folder: &Path, journal: &str, extra: &str) -> Edge {
    let journal = format!("[journal]\nfolder = \"{}\"\n{journal}\n{extra}\n", folder.display());
    Edge::with(&provider.url(), provider.ca_pem(), Setup { extra: journal, ..Setup::default() })
}

fn request(client: &Client, path: &str, script: &str, body: String) -> Request<FullBody> {
    let request = match client.is_h2() {
        true => Request::post(format!("https://localhost{path}")),
        false => Request::post(path).header("host", "localhost"),
    };
    let request = request.header("authorization", "Bearer k").header("content-type", "application/json");
    request.header("x-script", script).body(FullBody::new(body)).expect("request")
}

/// A call whose answer reports so many input tokens: by them its event is known again.
fn call(client: &Client, number: u64) -> Request<FullBody> {
    let usage = format!("{{\"prompt_tokens\":{number},\"completion_tokens\":1,\"total_tokens\":{}}}", number + 1);
    request(client, CHAT, "echo=1", format!("{{\"model\":\"gpt-4o\",\"messages\":[],\"usage\":{usage}}}"))
}

/// Asks so many times, from `first` on.
async fn ask(edge: &Edge, alpn: Alpn, first: u64, count: u64) {
    let mut client = edge.connect(alpn).await;
    for number in first..first + count {
        client.ready().await.expect("ready");
        let answer = client.fetch(call(&client, number)).await.expect("an answer");
        assert_eq!(answer.status(), 200);
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        std::fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    files.sort();
    files
}

fn is_open(path: &Path) -> bool {
    path.to_str().expect("a name").ends_with(".open.jsonl")
}

/// Every event in a folder, by its id. Each line has to be one, and none may be there twice.
fn events(folder: &Path) -> Vec<Value> {
    let (mut events, mut ids) = (Vec::new(), BTreeSet::new());
    for path in files(folder) {
        // Closed, that is renamed, since the folder was read: from the beginning.
        let Ok(text) = std::fs::read_to_string(&path) else { return self::events(folder) };
        // What is behind the last end of a line is being written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        assert!(is_open(&path) || whole == text.len(), "{} is whole", path.display());
        for line in text[..whole].lines() {
            let event: Value = serde_json::from_str(line).expect("JSON");
            assert!(ids.insert(event["id"].as_str().expect("an id").to_owned()), "{event} twice");
            events.push(event);
        }
    }
    events
}

/// The numbers of calls that have an event, and how often.
fn numbers(events: &[Value]) -> BTreeMap<u64, u32> {
    let mut numbers = BTreeMap::new();
    for event in events {
        *numbers.entry(event["input_uncached"].as_u64().expect("a figure")).or_default() += 1;
    }
    numbers
}

fn wait_for_events(folder: &Path, count: usize) -> Vec<Value> {
    assert!(wait_for(SOON, || events(folder).len() >= count), "{} of {count}", events(folder).len());
    events(folder)
}

fn end(mut edge: Edge) {
    edge.signal("TERM");
    assert_eq!(edge.wait_exit(SOON), Some(0), "{}", edge.log().join("\n"));
}

/// Exit code, standard output, standard error.
fn nullhop(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nullhop"));
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

#[test]
fn an_event_says_what_happened() {
    let (provider, scratch) = (provider(Alpn::H2), Scratch::new());
    let folder = scratch.path().join("deep/usage");
    let edge = edge(&provider, &folder, "", "[node]\npop = \"fra-1\"\n");
    support::runtime().block_on(async {
        let mut client = edge.connect(Alpn::H2).await;
        for (path, script) in [
            (CHAT, "file=openai-chat-stream.sse"),
            ("/anthropic/v1/messages", "file=anthropic-stream.sse"),
            (CHAT, "status=429;size=10"),
            ("/openai/v1/models", "size=10"),
            // No upstream, no event.
            ("/nowhere", "size=10"),
        ] {
            let request = request(&client, path, script, "{\"model\":\"gpt-4o\"}".to_owned());
            client.fetch(request).await.expect("an answer");
        }
        // The client leaves: what was seen of it, and an estimate of the rest.
        let script = "file=anthropic-stream.sse;stall_after=700";
        let request = request(&client, "/anthropic/v1/messages", script, "{}".to_owned());
        let mut answer = client.send(request).await.expect("head").into_body();
        next_data(&mut answer).await.expect("not the end").expect("data");
        drop(answer);
        client.abort(Ending::Reset);
        tokio::time::sleep(Duration::from_millis(50)).await;
    });
    let events = wait_for_events(&folder, 5);
    assert_eq!(events.len(), 5);
    let said = |event: &Value| {
        ["pop", "upstream", "mode", "operation", "model", "source", "outcome"]
            .map(|name| event[name].as_str().unwrap_or("-").to_owned())
            .join(" ")
    };
    let wanted = [
        "fra-1 openai byok chat_completions * provider ok",
        "fra-1 anthropic byok messages * provider ok",
        "fra-1 openai byok chat_completions * none upstream_limited",
        "fra-1 openai byok models other none ok",
        "fra-1 anthropic byok messages * partial client_abort",
    ];
    for (event, wanted) in events.iter().zip(wanted) {
        let said = said(event);
        let (said, wanted) = (said.split(' '), wanted.split(' '));
        // Which model a sample names is the sample's matter.
        let differ = said.zip(wanted).filter(|(said, wanted)| said != wanted && *wanted != "*");
        assert_eq!(differ.collect::<Vec<_>>(), [], "{event}");
        assert!(event["duration_ms"].is_u64() && event.get("key").is_none() && event.get("cost_usd").is_none());
    }
    assert_eq!(
        ["input_uncached", "input_cache_read", "input_cache_write"]
            .map(|name| events[1][name].as_u64().expect("a figure"))
            .iter()
            .sum::<u64>(),
        4876
    );
    assert!(events[0]["first_token_ms"].is_u64() && events[3].get("first_token_ms").is_none());
    end(edge);
}

/// Lanes that run beside each other, each with a process of its own, all on one folder.
const LANES: u64 = 5;

/// Kills in each lane: fifty in all.
const ROUNDS: u64 = 10;

#[test]
fn fifty_kills_lose_nothing_that_ended_a_second_before() {
    let scratch = Scratch::new();
    let folder = scratch.path().join("usage");
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("time").subsec_nanos();
    eprintln!("seed {seed}");
    let lane = |lane: u64| {
        let provider = provider(Alpn::H1);
        let mut state = u64::from(seed) + lane;
        let mut must = Vec::new();
        let mut done = 0;
        for round in 0..ROUNDS {
            // Small files, so that kills meet their changes, too.
            let mut edge = edge(&provider, &folder, "bytes = \"16KiB\"", "[runtime]\nworkers = 2\n");
            // Numerical Recipes' generator.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let life = Duration::from_millis(1100 + (state >> 33) % 700);
            let ended = support::runtime().block_on(async {
                let first = (lane * ROUNDS + round) * 1_000_000 + 1;
                let calls = (0..4).map(|part| {
                    let (edge, alpn) = (&edge, if part % 2 == 0 { Alpn::H1 } else { Alpn::H2 });
                    async move {
                        let mut client = edge.connect(alpn).await;
                        let mut ended = Vec::new();
                        for number in first + part * 100_000.. {
                            let answer = async {
                                client.ready().await.ok()?;
                                client.fetch(call(&client, number)).await.ok()
                            };
                            let Some(answer) = answer.await else { return ended };
                            assert_eq!(answer.status(), 200);
                            ended.push((number, Instant::now()));
                            tokio::time::sleep(Duration::from_millis(3)).await;
                        }
                        ended
                    }
                });
                let [a, b, c, d]: [_; 4] = calls.collect::<Vec<_>>().try_into().ok().expect("four");
                let kill = async {
                    tokio::time::sleep(life).await;
                    let killed = Instant::now();
                    edge.signal("KILL");
                    killed
                };
                let (a, b, c, d, killed) = tokio::join!(a, b, c, d, kill);
                let all: Vec<(u64, Instant)> = [a, b, c, d].concat();
                done += all.len();
                all.into_iter().map(|(number, at)| (number, killed.saturating_duration_since(at))).collect::<Vec<_>>()
            });
            assert!(edge.wait_exit(SOON).is_some());
            must.extend(ended);
        }
        (must, done)
    };
    // A second is promised where a sync takes less than seven tenths of it (docs/usage.md); the disk of a busy machine may
    // take longer, which is seen beside.
    let over = AtomicBool::new(false);
    let (all, done, slowest) = std::thread::scope(|scope| {
        let probe = scope.spawn(|| {
            let mut file = std::fs::File::create(scratch.path().join("probe")).expect("a file");
            let mut slowest = Duration::ZERO;
            while !over.load(Relaxed) {
                let began = Instant::now();
                file.write_all(&[0; 4096]).and_then(|()| file.sync_data()).expect("written");
                slowest = slowest.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(50));
            }
            slowest
        });
        let lanes: Vec<_> = (0..LANES).map(|number| scope.spawn(move || lane(number))).collect();
        let lanes = lanes.into_iter().map(|lane| lane.join().expect("a lane"));
        let (all, done) =
            lanes.fold((Vec::new(), 0), |(all, done), (more, count)| ([all, more].concat(), done + count));
        over.store(true, Relaxed);
        (all, done, probe.join().expect("a probe"))
    });
    let promised = Duration::from_secs(1);
    let promised = if slowest < Duration::from_millis(700) { promised } else { promised + 2 * slowest };
    eprintln!("slowest sync {slowest:?}");
    let must: Vec<u64> = all.iter().filter(|(_, before)| *before > promised).map(|(number, _)| *number).collect();
    // The last ones' files are closed by whoever comes next.
    end(edge(&provider(Alpn::H1), &folder, "", ""));
    assert_eq!(files(&folder).iter().filter(|path| is_open(path)).count(), 0);
    let events = events(&folder);
    let numbers = numbers(&events);
    assert!(must.len() > 500 && done >= must.len(), "{} calls of {done} are a test", must.len());
    let lost: Vec<_> = must.iter().filter(|number| !numbers.contains_key(number)).collect();
    assert_eq!(lost, [] as [&u64; 0], "of {}, seed {seed}", must.len());
    let twice: Vec<_> = numbers.iter().filter(|(_, count)| **count > 1).collect();
    assert_eq!(twice, [], "an exchange is one event");
    eprintln!(
        "{done} calls, {} a second before a kill, {} events, {} files",
        must.len(),
        events.len(),
        files(&folder).len()
    );

    let (code, out, err) = nullhop(&["usage", folder.to_str().expect("a path"), "--by", "model", "--format", "json"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let sums: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(sums["total"]["requests"], events.len());
    assert_eq!(sums["total"]["input_uncached"], numbers.keys().sum::<u64>());
}

#[test]
fn sigterm_writes_everything() {
    let scratch = Scratch::new();
    for upstream in [Alpn::H1, Alpn::H2] {
        let provider = provider(upstream);
        let folder = scratch.path().join(format!("{upstream:?}"));
        let journal = format!(
            "[journal]\nfolder = \"{}\"\n[drain]\ngrace = \"0s\"\ndeadline = \"500ms\"\n[runtime]\nworkers = 2\n",
            folder.display()
        );
        let setup = Setup { extra: journal, upstream: "abort_drain = \"60s\"".to_owned(), ..Setup::default() };
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
        support::runtime().block_on(async {
            ask(&edge, Alpn::H1, 1, 50).await;
            ask(&edge, Alpn::H2, 51, 50).await;
            let mut clients = Vec::new();
            for alpn in [Alpn::H1, Alpn::H2] {
                for leaves in [false, true] {
                    let mut client = edge.connect(alpn).await;
                    let script = "file=anthropic-stream.sse;stall_after=700";
                    let request = request(&client, "/anthropic/v1/messages", script, "{}".to_owned());
                    let mut answer = client.send(request).await.expect("head").into_body();
                    next_data(&mut answer).await.expect("not the end").expect("data");
                    if leaves {
                        // It is read on without its client.
                        client.abort(Ending::Reset);
                    } else {
                        clients.push((client, answer));
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            edge.signal("TERM");
            // Streams are cut.
            assert!(wait_for_async(|| edge.log().iter().any(|line| line.contains(" drain_finished "))).await);
        });
        let mut edge = edge;
        assert_eq!(edge.wait_exit(SOON), Some(0));
        let log = edge.log();
        assert!(!log.iter().any(|line| line.contains("panic") || line.contains("lost")), "{}", log.join("\n"));
        assert_eq!(files(&folder).iter().filter(|path| is_open(path)).count(), 0);
        let mut outcomes = BTreeMap::new();
        for event in events(&folder) {
            *outcomes.entry(event["outcome"].as_str().expect("an outcome").to_owned()).or_insert(0) += 1;
        }
        let wanted = [("client_abort", 2), ("ok", 100), ("unavailable", 2)];
        assert_eq!(outcomes, wanted.map(|(outcome, count)| (outcome.to_owned(), count)).into(), "{upstream:?}");
    }
}

async fn wait_for_async(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// As with a full disk: files of the process may not have more than `bytes` (RLIMIT_FSIZE).
fn limit_files(edge: &Edge, bytes: Option<u64>) {
    let pid = rustix::process::Pid::from_raw(edge.pid().cast_signed());
    let limit = Rlimit { current: bytes, maximum: None };
    rustix::process::prlimit(pid, Resource::Fsize, limit).expect("a limit of our own process");
}

#[test]
fn a_disk_that_refuses_holds_up_nobody_and_what_is_lost_is_counted() {
    const QUEUE: u64 = 16_384;
    let (provider, scratch) = (provider(Alpn::H2), Scratch::new());
    let folder = scratch.path().join("usage");
    // The secret heap grows by what counts as a file, too.
    let edge = edge(&provider, &folder, "", "[memory]\nheap = \"plain\"\n[runtime]\nworkers = 2\n");
    let written = |count: u64| {
        edge.wait_for_metric("nullhop_usage_events_total", &["result=\"written\""], |value| value >= count as f64, SOON)
    };
    let lost = || edge.metric("nullhop_usage_events_total", &["result=\"lost\""]) as u64;
    support::runtime().block_on(ask(&edge, Alpn::H2, 1, 20));
    assert!(written(20), "{}", edge.scrape());
    limit_files(&edge, Some(std::fs::metadata(&files(&folder)[0]).expect("file").len() + 100));

    // A few wait, and none is lost.
    support::runtime().block_on(ask(&edge, Alpn::H2, 21, 20));
    let refused = |value: f64| value >= 2.0;
    assert!(edge.wait_for_metric("nullhop_usage_event_disk_failures_total", &[], refused, SOON));
    assert!(edge.wait_for_log(" error journal_refused error=file_too_large", SOON), "{}", edge.log().join("\n"));
    limit_files(&edge, None);
    assert!(edge.wait_for_log(" info journal_resumed", SOON));
    assert!(written(40));
    assert_eq!((lost(), events(&folder).len()), (0, 40));
    assert_eq!(numbers(&events(&folder)).len(), 40, "also the batch that was written in part");

    // More than fit.
    limit_files(&edge, Some(std::fs::metadata(&files(&folder)[0]).expect("file").len() + 100));
    // A connection has had enough after some hundred requests.
    let (lanes, rounds) = (16, 10);
    let each = (QUEUE + QUEUE / 4) / lanes / rounds;
    support::runtime().block_on(async {
        let tasks = (0..lanes).map(|lane| {
            let (address, trust) = (edge.address(), edge.trust());
            tokio::spawn(async move {
                for round in 0..rounds {
                    let mut client = Client::connect(address, "localhost", Alpn::H2, &trust).await.expect("connects");
                    for number in 0..each {
                        client.ready().await.expect("ready");
                        let call = call(&client, 1000 + (lane * rounds + round) * each + number);
                        assert_eq!(client.fetch(call).await.expect("an answer").status(), 200);
                    }
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.expect("answers");
        }
    });
    assert!(edge.wait_for_log(" error usage_events_lost events=", SOON), "{}", edge.log().join("\n"));
    limit_files(&edge, None);
    let all = 40 + lanes * rounds * each;
    assert!(wait_for(SOON, || {
        let (done, lost) = (edge.metric("nullhop_usage_events_total", &["result=\"written\""]) as u64, lost());
        lost > 0 && done + lost == all
    }));
    assert_eq!(events(&folder).len() as u64, all - lost(), "what was not lost is there");
    // And all is well again.
    let lost_before = lost();
    support::runtime().block_on(ask(&edge, Alpn::H2, 50_000_000, 20));
    assert!(written(all - lost_before + 20));
    assert_eq!(lost(), lost_before);
    end(edge);
    let numbers = numbers(&events(&folder));
    assert!((50_000_000..50_000_020).all(|number| numbers.get(&number) == Some(&1)));
}

#[test]
fn full_files_are_closed_under_load() {
    let (provider, scratch) = (provider(Alpn::H1), Scratch::new());
    let folder = scratch.path().join("usage");
    let edge = edge(&provider, &folder, "bytes = \"4KiB\"", "");
    support::runtime().block_on(async {
        for part in 0..4 {
            ask(&edge, Alpn::H2, 1 + part * 100, 100).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (code, out, err) = nullhop(&["usage", folder.to_str().expect("a path"), "--format", "json"]);
            assert_eq!((code, err.as_str()), (0, ""), "while it is written to");
            let sums: Value = serde_json::from_str(&out).expect("JSON");
            let seen = sums["total"]["requests"].as_u64().expect("a number");
            assert!(seen <= (part + 1) * 100 && sums["total"]["input_uncached"].is_u64());
        }
    });
    wait_for_events(&folder, 400);
    assert_eq!(files(&folder).iter().filter(|path| is_open(path)).count(), 1);
    end(edge);
    let files = files(&folder);
    assert!(files.len() > 20, "{}", files.len());
    for path in &files {
        let bytes = std::fs::metadata(path).expect("file").len();
        assert!(bytes > 0 && bytes < (4 << 10) + 1024 && !is_open(path), "{bytes} in {}", path.display());
    }
    assert_eq!(numbers(&events(&folder)), (1..=400).map(|number| (number, 1)).collect());
}

#[test]
fn a_reload_changes_files_and_not_the_folder() {
    let (provider, scratch) = (provider(Alpn::H1), Scratch::new());
    let folder = scratch.path().join("usage");
    let edge = edge(&provider, &folder, "", "");
    let config = edge.scratch.path().join("nullhop.toml");
    let text = std::fs::read_to_string(&config).expect("the configuration");
    let reload = |text: &str, reloads: usize| {
        std::fs::write(&config, text).expect("the configuration");
        edge.signal("HUP");
        let done = || edge.log().iter().filter(|line| line.contains(" config_reloaded")).count() >= reloads;
        assert!(wait_for(SOON, done), "{}", edge.log().join("\n"));
    };
    support::runtime().block_on(ask(&edge, Alpn::H1, 1, 100));
    wait_for_events(&folder, 100);
    assert_eq!(files(&folder).len(), 1);
    reload(&text.replace("[journal]", "[journal]\nbytes = \"4KiB\""), 1);
    support::runtime().block_on(ask(&edge, Alpn::H1, 101, 100));
    wait_for_events(&folder, 200);
    assert!(files(&folder).len() > 1, "files are smaller");
    assert!(!edge.log().iter().any(|line| line.contains("journal_needs_restart")));

    let elsewhere = scratch.path().join("elsewhere");
    let moved = text.replace(folder.to_str().expect("a path"), elsewhere.to_str().expect("a path"));
    reload(&moved, 2);
    assert!(edge.wait_for_log(" warn journal_needs_restart", SOON));
    support::runtime().block_on(ask(&edge, Alpn::H1, 201, 10));
    reload(&text.replace("[journal]", "[journal]\nenabled = false"), 3);
    let told = || edge.log().iter().filter(|line| line.contains("journal_needs_restart")).count() == 2;
    assert!(wait_for(SOON, told));
    support::runtime().block_on(ask(&edge, Alpn::H1, 211, 10));
    end(edge);
    assert!(!elsewhere.exists());
    assert_eq!(numbers(&events(&folder)), (1..=220).map(|number| (number, 1)).collect());
}

#[test]
fn a_folder_that_cannot_be_written_to_is_told_at_the_start() {
    let (scratch, provider) = (Scratch::new(), provider(Alpn::H1));
    let file = scratch.file("file", "");
    let setup = Setup {
        extra: format!("[journal]\nfolder = \"{}/usage\"\n", file.display()),
        listener: "[[listener]]\naddress = \"127.0.0.1:0\"\ntls = false\n".to_owned(),
        ..Setup::default()
    };
    let text = Edge::config(&provider.url(), &setup);
    scratch.file("provider-ca.pem", provider.ca_pem());
    let without_certificate: String = {
        let (before, rest) = text.split_once("[[certificate]]").expect("a certificate");
        format!("{before}{}", &rest[rest.find("[metrics]").expect("metrics")..])
    };
    let config = scratch.file("nullhop.toml", &without_certificate);
    let (code, out, err) = nullhop(&["run", "-c", config.to_str().expect("a path")]);
    assert_eq!((code, out.as_str()), (1, ""), "{err}");
    assert!(err.contains("for usage events") && err.contains("StateDirectory="), "{err}");
}

#[test]
fn the_examples_of_the_documentation_run() {
    let (provider, scratch) = (provider(Alpn::H1), Scratch::new());
    let folder = scratch.path().join("usage");
    let edge = edge(&provider, &folder, "", "[node]\npop = \"fra-1\"\n");
    support::runtime().block_on(ask(&edge, Alpn::H1, 1, 3));
    wait_for_events(&folder, 3);
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/usage.md")).expect("the page");
    let (_, examples) = page.split_once("```\nnullhop usage").expect("examples");
    let examples = format!("nullhop usage{}", examples.split("```").next().expect("their end"));
    let mut ran = 0;
    for example in examples.lines().filter(|line| !line.is_empty()) {
        let line = example.replace("/var/lib/nullhop/usage", folder.to_str().expect("a path"));
        let (code, out, err) = nullhop(&line.split(' ').skip(1).collect::<Vec<_>>());
        assert_eq!((code, err.as_str()), (0, ""), "{example}");
        assert!(out.contains("input_uncached"), "{example}: {out}");
        assert!(
            example.contains("--since") || example.contains("json") || out.contains("other") || out.contains("gpt-4o")
        );
        ran += 1;
    }
    assert!(ran >= 4);
    // Twice the same folder is once the same events.
    let folder = folder.to_str().expect("a path");
    let (code, out, err) = nullhop(&["usage", folder, folder, "--by", "pop,upstream"]);
    assert_eq!((code, err.as_str()), (0, "note: 3 events were there more than once and count once\n"));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["pop", "upstream", "requests", "input_uncached", "output_response", "cost_usd"]);
    assert_eq!(lines[1], ["fra-1", "openai", "3", "6", "3", "0"]);
    assert_eq!(lines[2], ["total", "3", "6", "3", "0"]);
    end(edge);
}

#[test]
fn files_can_be_read_again_whatever_the_mask() {
    use std::os::unix::fs::PermissionsExt;
    let (provider, scratch) = (provider(Alpn::H1), Scratch::new());
    let folder = scratch.path().join("usage");
    let edge = edge(&provider, &folder, "", "");
    let config = edge.scratch.path().join("nullhop.toml");
    drop(folder);
    let other = scratch.path().join("other");
    let text = std::fs::read_to_string(&config).expect("the configuration").replace("/usage\"", "/other\"");
    std::fs::write(&config, text).expect("the configuration");
    // As in the systemd unit.
    let mut child = Command::new("/bin/sh")
        .args(["-c", "umask 0777; exec \"$0\" run -c \"$1\"", env!("CARGO_BIN_EXE_nullhop")])
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell");
    let there = wait_for(SOON, || other.exists() && !files(&other).is_empty());
    let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let modes = there.then(|| (mode(&other), mode(&files(&other)[0])));
    child.kill().expect("ours");
    child.wait().expect("ended");
    assert_eq!(modes, Some((0o750, 0o640)));
    end(edge);
}

#[test]
fn the_writer_is_locked_down_like_all_others() {
    let (provider, scratch) = (provider(Alpn::H1), Scratch::new());
    let edge = edge(&provider, &scratch.path().join("usage"), "", "");
    let mut threads = 0;
    for entry in std::fs::read_dir(format!("/proc/{}/task", edge.pid())).expect("threads") {
        let status = std::fs::read_to_string(entry.expect("entry").path().join("status")).expect("status");
        if status.starts_with("Name:\tjournal\n") {
            threads += 1;
            for line in ["CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t3"] {
                let kept = line.starts_with("CapEff") && status.contains("CapEff:\t0000000000004000");
                assert!(status.contains(line) || kept, "{line} of {status}");
            }
        }
    }
    assert_eq!(threads, 1);
    end(edge);
}

#[test]
fn no_content_is_in_the_folder() {
    const WORDS: [&str; 6] = ["zebra-body", "zebra-key", "zebra-path", "zebra-query", "zebra-header", "zebra-model"];
    let (provider, scratch) = (provider(Alpn::H2), Scratch::new());
    let folder = scratch.path().join("usage");
    let edge = edge(&provider, &folder, "", "");
    support::runtime().block_on(async {
        for alpn in [Alpn::H1, Alpn::H2] {
            let mut client = edge.connect(alpn).await;
            for (path, script) in [
                (format!("{CHAT}?q=zebra-query"), "echo=1"),
                (format!("{CHAT}/zebra-path"), "echo=1"),
                ("/zebra-path".to_owned(), "echo=1"),
                (CHAT.to_owned(), "status=400;words=1;size=100"),
                ("/openai/v1/models/zebra-path".to_owned(), "header=x-answer:zebra-header;size=10"),
                ("/gemini/v1beta/models/zebra-model:generateContent?key=zebra-key".to_owned(), "echo=1"),
            ] {
                let body = "{\"model\":\"zebra-model\",\"messages\":[{\"content\":\"zebra-body\"}],\
                            \"usage\":{\"prompt_tokens\":1,\"zebra-body\":2}}";
                client.ready().await.expect("ready");
                let mut request = request(&client, &path, script, body.to_owned());
                let headers = request.headers_mut();
                headers.insert("authorization", "Bearer zebra-key".parse().expect("value"));
                headers.insert("x-own", "zebra-header".parse().expect("value"));
                client.fetch(request).await.expect("an answer");
            }
        }
    });
    end(edge);
    assert_eq!(events(&folder).len(), 10, "all but those without an upstream");
    for path in files(&folder) {
        let bytes = std::fs::read(&path).expect("file");
        let text = format!("{}{}", path.display(), String::from_utf8_lossy(&bytes)).to_lowercase();
        for word in WORDS.into_iter().chain(["zebra", "localhost", "bearer"]) {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }
}
