//! What is done once for each request, step by step: instructions and blocks of memory.
//!
//! `cargo bench --bench request --features skip-measures` prints the best time of each step, which is for a look only: a
//! busy machine spoils it. With `-- --check` instructions are counted (see `counted`) and held against
//! `benches/request.instructions`; `-- --bless` writes that file: with `NULLHOP_PGO=off`, since counts of a load test
//! (`deploy/pgo`) would change what is counted here. Both need `valgrind`, which has no room for the heap's
//! window: what is counted are the program's own instructions, and wiping, with the system's allocator below them. How
//! many blocks are asked for does not depend on that.
//!
//! What is made anew for each call, a head for one, is a work of its own: it is to be taken off from those that have it.

mod counted;

use std::hint::black_box;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use counted::Counted;
use counted::Work;
use nullhop::bench;
use nullhop::bench::CountingAllocator;

/// As in the program, and counted.
#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Calls of each work that are counted.
const CALLS: u64 = 32;

/// Keys that requests come with in turn.
const KEYS: usize = 100;

/// A request of OpenAI's SDK for Python, as it comes.
const REQUEST: [(&str, &str); 20] = [
    ("host", "localhost:8443"),
    ("accept-encoding", "gzip, deflate"),
    ("connection", "keep-alive"),
    ("accept", "application/json"),
    ("content-type", "application/json"),
    ("user-agent", "OpenAI/Python 1.99.1"),
    ("x-stainless-lang", "python"),
    ("x-stainless-package-version", "1.99.1"),
    ("x-stainless-os", "Linux"),
    ("x-stainless-arch", "x64"),
    ("x-stainless-runtime", "CPython"),
    ("x-stainless-runtime-version", "3.12.3"),
    ("authorization", "Bearer nhk_0123456789abcdefghijklmnopqrstuvwxyzABCD000000"),
    ("x-stainless-async", "false"),
    ("x-stainless-retry-count", "0"),
    ("x-stainless-read-timeout", "600"),
    ("content-length", "1010"),
    ("openai-organization", "org-0123456789abcdef"),
    ("idempotency-key", "stainless-python-retry-01234567"),
    ("x-stainless-helper-method", "chat.completions"),
];

/// An answer as OpenAI's API gives it.
const ANSWER: [(&str, &str); 20] = [
    ("date", "Sat, 21 Nov 2026 14:00:00 GMT"),
    ("content-type", "application/json"),
    ("content-length", "1010"),
    ("connection", "keep-alive"),
    ("access-control-expose-headers", "X-Request-ID"),
    ("openai-organization", "org-0123456789abcdef"),
    ("openai-processing-ms", "412"),
    ("openai-project", "proj_0123456789abcdef"),
    ("openai-version", "2020-10-01"),
    ("x-envoy-upstream-service-time", "431"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "2000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "1999744"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-ratelimit-reset-tokens", "7ms"),
    ("x-request-id", "req_0123456789abcdef0123456789abcdef"),
    ("strict-transport-security", "max-age=31536000; includeSubDomains; preload"),
    ("server", "cloudflare"),
    ("cf-ray", "9a0b1c2d3e4f5061-FRA"),
];

/// A request for chat of 1 KiB.
fn asked() -> Vec<u8> {
    let text = |bytes: usize| "What goes up must come down, they say. ".repeat(bytes / 39 + 1)[..bytes].to_owned();
    let body = |bytes: usize| {
        format!(
            "{{\"model\":\"gpt-5-mini\",\"messages\":[{{\"role\":\"system\",\"content\":\"{}\"}},{{\"role\":\"user\",\
             \"content\":\"{}\"}}],\"max_completion_tokens\":512,\"temperature\":0.7,\"stream\":false}}",
            text(200),
            text(bytes)
        )
    };
    body(1024 - body(0).len()).into_bytes()
}

/// Its answer, as long.
fn answered() -> Vec<u8> {
    let body = |bytes: usize| {
        format!(
            "{{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\
             \"gpt-5-mini-2025-08-07\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{}\",\
             \"refusal\":null,\"annotations\":[]}},\"logprobs\":null,\"finish_reason\":\"stop\"}}],\"usage\":\
             {{\"prompt_tokens\":214,\"completion_tokens\":120,\"total_tokens\":334,\"prompt_tokens_details\":\
             {{\"cached_tokens\":0,\"audio_tokens\":0}},\"completion_tokens_details\":{{\"reasoning_tokens\":64,\
             \"audio_tokens\":0}}}},\"service_tier\":\"default\",\"system_fingerprint\":null}}",
            "x".repeat(bytes)
        )
    };
    body(1024 - body(0).len()).into_bytes()
}

/// A folder that goes with its last user.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("nullhop-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn admission(folder: &Folder) -> bench::Admission {
    let mut admission = bench::Admission::new(&folder.0, KEYS);
    admission.reload();
    admission
}

fn work<C: FnMut() + 'static>(name: &'static str, prepare: impl FnOnce() -> C + 'static) -> Work {
    Work { name, calls: CALLS, prepare: Box::new(move || Box::new(prepare())) }
}

fn wipe(name: &'static str, bytes: usize) -> Work {
    work(name, move || {
        let mut block = vec![1_u8; bytes];
        move || bench::wipe(black_box(&mut block))
    })
}

/// A block that is asked for and given back, with others of its size around it.
fn block(name: &'static str, bytes: usize) -> Work {
    work(name, move || {
        let around: Vec<Vec<u8>> = (0..64).map(|_| Vec::with_capacity(bytes)).collect();
        move || {
            black_box(&around);
            drop(black_box(Vec::<u8>::with_capacity(bytes)));
        }
    })
}

/// A work that needs an admission.
fn with_admission<C: FnMut() + 'static>(
    name: &'static str,
    prepare: impl FnOnce(Rc<bench::Admission>, Folder) -> C + 'static,
) -> Work {
    work(name, move || {
        let folder = Folder::new();
        prepare(Rc::new(admission(&folder)), folder)
    })
}

/// One account after the other, with one permit that is settled: settling is among admission's works.
fn account(name: &'static str, end: fn(&mut bench::Records)) -> Work {
    with_admission(name, move |admission, folder| {
        let mut records = bench::Records::new(&folder.0);
        let accounts = bench::Accounts::new(&admission, &records);
        let (permit, answer, body) = (admission.admit(0), bench::Head::read(&ANSWER), answered());
        permit.settle();
        move || {
            accounts.whole(&admission, &permit, &answer, &body);
            end(&mut records);
        }
    })
}

/// Events of 160 bytes, each in a chunk of its own, all in one record: from the bytes that one socket gave to those that
/// the other gets.
fn chunk(name: &'static str, events: usize, whole: bool) -> Work {
    with_admission(name, move |admission, folder| {
        let permit = admission.admit(0);
        permit.approve();
        let mut stream = bench::Stream::new(&admission, &permit);
        let event = |bytes: usize| {
            format!(
                "data: {{\"id\":\"chatcmpl-0123456789\",\"object\":\"chat.completion.chunk\",\"model\":\"gpt-5-mini\",\
                 \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{}\"}}}}]}}\n\n",
                "x".repeat(bytes)
            )
        };
        let event = event(160_usize.saturating_sub(event(0).len()));
        let wire = format!("{:x}\r\n{event}\r\n", event.len()).repeat(events);
        move || {
            black_box((&folder, &permit));
            let len = stream.arrive(wire.as_bytes());
            if whole {
                assert!(stream.pass(len) > wire.len() / 2);
            }
        }
    })
}

fn works() -> Vec<Work> {
    let places = || {
        let mut place = 0;
        move || {
            place += 1;
            place
        }
    };
    let admitted = |admission: &bench::Admission| {
        let permit = admission.admit(0);
        permit.approve();
        permit
    };
    vec![
        wipe("wipe: 1 KiB", 1 << 10),
        wipe("wipe: 16 KiB", 16 << 10),
        with_admission("heads: a request's, made", |_, folder| {
            move || {
                black_box(&folder);
                drop(black_box(bench::Head::read(&REQUEST)));
            }
        }),
        with_admission("heads: checked and routed", |admission, folder| {
            let gate = bench::Gate::new(&admission);
            let mut request = bench::Asked::new(bench::Head::read(&REQUEST));
            move || {
                black_box(&folder);
                black_box(gate.pass(&mut request));
            }
        }),
        with_admission("admission: key looked up", move |admission, folder| {
            let mut next = places();
            move || {
                black_box(&folder);
                assert!(admission.look_up(next()));
            }
        }),
        with_admission("admission: admitted to settled", move |admission, folder| {
            let mut next = places();
            move || {
                black_box(&folder);
                admission.admit_and_settle(next());
            }
        }),
        with_admission("retention: head and body read", |_, folder| {
            let (mut reader, mut headers, body) = (bench::Reader::default(), bench::Head::read(&REQUEST), asked());
            move || {
                black_box(&folder);
                black_box(reader.read(&mut headers, &body));
            }
        }),
        with_admission("heads: made, rewritten, key put in", move |admission, folder| {
            let permit = admitted(&admission);
            move || {
                black_box(&folder);
                let mut head = bench::request_head(bench::Head::read(&REQUEST));
                permit.present(&mut head);
                drop(black_box(head));
            }
        }),
        with_admission("heads: an answer's, made", |_, folder| {
            move || {
                black_box(&folder);
                drop(black_box(bench::Head::read(&ANSWER)));
            }
        }),
        with_admission("heads: made, answer rewritten", move |admission, folder| {
            let permit = admitted(&admission);
            move || {
                black_box(&folder);
                let mut head = bench::response_head(bench::Head::read(&ANSWER));
                permit.rewrite_answer(&mut head);
                drop(black_box(head));
            }
        }),
        account("account: opened to recorded", |records| records.forget()),
        account("account: recorded, and its line", |records| assert!(records.lines() > 0)),
        chunk("chunk: sealed by the provider", 1, false),
        chunk("chunk: sealed, and its whole way", 1, true),
        chunk("chunks: eight sealed, whole way", 8, true),
    ]
}

/// What is timed only.
fn blocks() -> Vec<Work> {
    vec![
        block("heap: 24 bytes", 24),
        block("heap: 200 bytes", 200),
        block("heap: 1 KiB", 1 << 10),
        block("heap: 16 KiB", 16 << 10),
    ]
}

fn main() {
    let counted = Counted { record: "request.instructions", works, blocks: Some(CountingAllocator::blocks) };
    if counted.run() {
        return;
    }
    // `cargo test` runs benches as well: then once, to see that it works.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let long = if quick { Duration::ZERO } else { Duration::from_millis(300) };
    if !bench::open_heap() {
        println!("no 64 MiB can be locked: blocks are the system's");
    }
    for work in blocks().into_iter().chain(works()) {
        let mut call = (work.prepare)();
        let (begun, mut best) = (Instant::now(), Duration::MAX);
        loop {
            let begun_once = Instant::now();
            (0..64).for_each(|_| call());
            best = best.min(begun_once.elapsed());
            if begun.elapsed() >= long {
                break;
            }
        }
        println!("{:<36} {:>8} ns", work.name, best.as_nanos() / 64);
    }
}
