//! What relaying costs: CPU time of nullhop's process for each unit of work, TLS on both sides, one worker.
//!
//! CPU time and not wall time, because it is the figure that a busy machine spoils least.
//! `cargo bench --bench relay` prints a table. `NULLHOP_HEAP=plain` (or `locked`) compares heaps.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::PatternBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use support::Edge;
use support::Setup;

fn main() {
    let heap = std::env::var("NULLHOP_HEAP").unwrap_or_else(|_| "auto".to_owned());
    println!("{:<34} {:>10} {:>12}", "work (client/upstream)", "units", "CPU each");
    for (name, client, upstream) in [
        ("h1/h1", Alpn::H1, Alpn::H1),
        ("h1/h2", Alpn::H1, Alpn::H2),
        ("h2/h1", Alpn::H2, Alpn::H1),
        ("h2/h2", Alpn::H2, Alpn::H2),
    ] {
        let options = ProviderOptions { alpn: upstream, hash_bodies: false, ..ProviderOptions::default() };
        let provider = Provider::spawn(options).expect("provider");
        let setup = Setup {
            extra: format!(
                "[runtime]\nworkers = 1\n[limits]\nrequests_per_connection = 1000000\nbody_bytes = \"256MiB\"\n\
                 [memory]\nheap = \"{heap}\"\n"
            ),
            ..Setup::default()
        };
        let edge = Edge::with(&provider.url(), provider.ca_pem(), setup);
        let runtime = support::runtime();
        let measure =
            |work: &str, unit: &str, units: u64, future: &dyn Fn() -> std::pin::Pin<Box<dyn Future<Output = ()>>>| {
                runtime.block_on(future()); // warm
                let before = cpu_seconds(edge.pid());
                runtime.block_on(future());
                let each = (cpu_seconds(edge.pid()) - before) / units as f64 * 1e6;
                println!("{:<34} {units:>10} {each:>9.2} us/{unit}", format!("{work} {name}"));
            };
        measure("SSE 160 bytes unpaced", "event", 200_000, &|| {
            Box::pin(many(&edge, client, 20, "events=10000;event_bytes=160"))
        });
        measure("SSE 160 bytes paced 50/s", "event", 50_000, &|| {
            Box::pin(many(&edge, client, 500, "events=100;event_bytes=160;period_us=20000"))
        });
        measure("unary 1 KB/1 KB", "request", 3_000, &|| Box::pin(unary(&edge, client, 3_000)));
        measure("down", "MB", 256, &|| Box::pin(many(&edge, client, 1, "size=268435456;len=known")));
        measure("up", "MB", 128, &|| Box::pin(up(&edge, client, 128 << 20)));
    }
}

fn request(client: &Client, script: &str) -> http::request::Builder {
    let path = "/openai/v1/chat/completions";
    let builder = if client.is_h2() {
        Request::post(format!("https://localhost{path}"))
    } else {
        Request::post(path).header("host", "localhost")
    };
    builder.header("authorization", "Bearer k").header("x-script", script)
}

/// `streams` at once, each on a connection of its own on h1, together on one on h2.
async fn many(edge: &Edge, alpn: Alpn, streams: usize, script: &'static str) {
    let mut tasks = Vec::new();
    let mut shared: Vec<Client> = Vec::new();
    for place in 0..streams {
        let mut client = if alpn == Alpn::H2 && place % 50 != 0 {
            shared.last().and_then(Client::share).expect("h2")
        } else {
            let client = edge.connect(alpn).await;
            if let Some(share) = client.share() {
                shared.push(share);
            }
            client
        };
        tasks.push(tokio::spawn(async move {
            let request = request(&client, script).body(FullBody::new("{}")).expect("request");
            let response = client.send(request).await.expect("answer");
            let received = Received::read(response, 0).await;
            assert!(received.error.is_none() && received.head.status == 200);
        }));
    }
    for task in tasks {
        task.await.expect("stream");
    }
}

async fn unary(edge: &Edge, alpn: Alpn, requests: usize) {
    let mut client = edge.connect(alpn).await;
    let body = "x".repeat(1024);
    for _ in 0..requests {
        client.ready().await.expect("ready");
        let request = request(&client, "size=1024;len=known").body(FullBody::new(body.clone())).expect("request");
        let answer = client.fetch(request).await.expect("answer");
        assert_eq!(answer.body.len(), 1024);
    }
}

async fn up(edge: &Edge, alpn: Alpn, bytes: u64) {
    let mut client = edge.connect(alpn).await;
    let request = request(&client, "size=2;len=known").body(PatternBody::new(bytes)).expect("request");
    assert_eq!(client.fetch(request).await.expect("answer").status(), 200);
}

/// User and system time of a process so far (proc(5): fields 14 and 15 of `stat`, in ticks).
fn cpu_seconds(pid: u32) -> f64 {
    std::thread::sleep(Duration::from_millis(50));
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("comm").1.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime");
    ticks / 100.0
}
