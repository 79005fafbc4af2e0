//! What relaying costs: CPU time of nullhop's process for each unit of work, TLS on both sides, one worker.
//!
//! CPU time and not wall time, because it is the figure that a busy machine spoils least.
//! `cargo bench --bench relay` prints a table. `NULLHOP_HEAP=plain,secret` compares heaps: one nullhop for each, which
//! take turns, and the median of their turns. `NULLHOP_HEAP=unwiped,plain`, with `--features skip-measures`, tells what
//! wiping costs: `unwiped` is the plain heap with every measure left out. In the same list, `/a/path` is another build of
//! nullhop, and `nginx` is nginx as it is installed, which wants a high limit of open files. `NULLHOP_TURNS=3` sets the
//! number of turns, and `NULLHOP_WORK="SSE"` or `"down h1/h1"` does only what has this in its name.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use http::Request;
use nullhop::hygiene::measure::Measure;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::PatternBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use support::Edge;
use support::Setup;

/// What is measured: an `Edge`, or another proxy.
struct Side {
    edge: Option<Edge>,
    child: Option<std::process::Child>,
    address: std::net::SocketAddr,
    pid: u32,
    _scratch: Option<support::Scratch>,
}

impl Drop for Side {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Side {
    fn of(edge: Edge) -> Self {
        Self { address: edge.address(), pid: edge.pid(), edge: Some(edge), child: None, _scratch: None }
    }

    fn nginx(provider: u16) -> Self {
        let scratch = support::Scratch::new();
        let leaf = nullhop_loadtests::tls::Leaf::self_signed(&["localhost"]);
        scratch.file("edge.pem", &leaf.cert_pem);
        scratch.file("edge.key", &leaf.key_pem);
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = scratch.path().display().to_string();
        let config = format!(
            "daemon off; master_process off; pid {dir}/pid; error_log stderr; worker_rlimit_nofile 60000;\n\
             events {{ worker_connections 20000; }}\n\
             http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
             keepalive_requests 100000000; client_max_body_size 0; tcp_nodelay on;\n\
             upstream provider {{ server 127.0.0.1:{provider}; keepalive 1024; keepalive_requests 100000000; }}\n\
             server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {dir}/edge.pem; ssl_certificate_key {dir}/edge.key; ssl_protocols TLSv1.2 TLSv1.3;\n\
             http2_max_requests 100000000; location / {{ proxy_pass https://provider; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; proxy_request_buffering off; proxy_ssl_protocols TLSv1.2 TLSv1.3; proxy_ssl_session_reuse on; proxy_read_timeout 600s; }} }} }}\n"
        );
        let path = scratch.file("nginx.conf", &config);
        let child =
            std::process::Command::new("/usr/sbin/nginx").arg("-p").arg(&dir).arg("-c").arg(&path).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        let pid = child.id();
        Self { edge: None, child: Some(child), address: ([127, 0, 0, 1], port).into(), pid, _scratch: Some(scratch) }
    }

    async fn connect(&self, alpn: Alpn) -> Client {
        Client::connect(self.address, "localhost", alpn, &nullhop_loadtests::tls::Trust::AcceptAny)
            .await
            .expect("connects")
    }
}

fn main() {
    let heaps = std::env::var("NULLHOP_HEAP").unwrap_or_else(|_| "auto".to_owned());
    let heaps: Vec<&str> = heaps.split(',').collect();
    let turns = std::env::var("NULLHOP_TURNS")
        .ok()
        .and_then(|turns| turns.parse().ok())
        .unwrap_or(if heaps.len() > 1 { 9 } else { 1 });
    let wanted = std::env::var("NULLHOP_WORK").unwrap_or_default();
    let all_measures = Measure::ALL.map(Measure::name).join(",");
    println!("{:<34} {:>10} {:>12}", "work (client/upstream)", "units", "CPU each");
    for (name, client, upstream) in [
        ("h1/h1", Alpn::H1, Alpn::H1),
        ("h1/h2", Alpn::H1, Alpn::H2),
        ("h2/h1", Alpn::H2, Alpn::H1),
        ("h2/h2", Alpn::H2, Alpn::H2),
    ] {
        let options = ProviderOptions { alpn: upstream, hash_bodies: false, ..ProviderOptions::default() };
        let provider = Provider::spawn(options).expect("provider");
        let setup = |heap: &str| Setup {
            environment: if heap == "unwiped" {
                vec![("NULLHOP_SKIP_MEASURES".to_owned(), all_measures.clone())]
            } else {
                Vec::new()
            },
            extra: format!(
                "[runtime]\nworkers = 1\n[limits]\nrequests_per_connection = 1000000\nbody_bytes = \"256MiB\"\n\
                 [memory]\nheap = \"{}\"\n",
                if heap == "unwiped" { "plain" } else { heap }
            ),
            ..Setup::default()
        };
        let mut wanted_here = false;
        for work in [
            "SSE 160 bytes unpaced",
            "SSE 160 bytes paced 50/s",
            "SSE 160 bytes grouped 8/ms",
            "unary 1 KB/1 KB",
            "down",
            "up",
        ] {
            wanted_here |= format!("{work} {name}").contains(&wanted);
        }
        if !wanted_here {
            continue;
        }
        let edges: Vec<Side> = heaps
            .iter()
            .map(|heap| match *heap {
                "nginx" => Side::nginx(provider.port()),
                heap if heap.starts_with('/') => Side::of(Edge::with(
                    &provider.url(),
                    provider.ca_pem(),
                    Setup { binary: Some(heap.into()), ..setup("auto") },
                )),
                heap => Side::of(Edge::with(&provider.url(), provider.ca_pem(), setup(heap))),
            })
            .collect();
        for (heap, edge) in heaps.iter().zip(&edges) {
            let Some(edge) = &edge.edge else { continue };
            let left_out = edge.log().iter().any(|line| line.contains("is left out"));
            assert_eq!(*heap == "unwiped", left_out, "build with --features skip-measures");
        }
        let runtime = support::runtime();
        let measure = |work: &str, unit: &str, units: u64, run: &dyn for<'e> Fn(&'e Side) -> Running<'e>| {
            if !format!("{work} {name}").contains(&wanted) {
                return;
            }
            let mut taken = vec![Vec::new(); edges.len()];
            for edge in &edges {
                runtime.block_on(run(edge)); // warm
            }
            for _ in 0..turns {
                for (edge, taken) in edges.iter().zip(&mut taken) {
                    let before = cpu_seconds(edge.pid);
                    runtime.block_on(run(edge));
                    taken.push((cpu_seconds(edge.pid) - before) / units as f64 * 1e6);
                }
            }
            print!("{:<34} {units:>10}", format!("{work} {name}"));
            let median = |taken: &[f64]| {
                let mut sorted = taken.to_vec();
                sorted.sort_by(f64::total_cmp);
                sorted[sorted.len() / 2]
            };
            for (heap, own) in heaps.iter().zip(&taken) {
                print!(" {:>9.2} us/{unit} {heap}", median(own));
            }
            for (heap, own) in heaps.iter().zip(&taken).skip(1) {
                // Of each turn, so that what a busy machine does to both is in neither.
                let ratios: Vec<f64> = own.iter().zip(&taken[0]).map(|(own, first)| own / first).collect();
                print!("   {heap} / {} = {:.3}", heaps[0], median(&ratios));
            }
            println!();
        };
        measure("SSE 160 bytes unpaced", "event", 200_000, &|edge| {
            Box::pin(many(edge, client, 20, "events=10000;event_bytes=160"))
        });
        measure("SSE 160 bytes paced 50/s", "event", 200_000, &|edge| {
            Box::pin(many(edge, client, 500, "events=400;event_bytes=160;period_us=20000"))
        });
        // A provider's timer counts milliseconds: about eight events come at once, each as a chunk of its own.
        measure("SSE 160 bytes grouped 8/ms", "event", 200_000, &|edge| {
            Box::pin(many(edge, client, 50, "events=4000;event_bytes=160;period_us=125"))
        });
        measure("unary 1 KB/1 KB", "request", 3_000, &|edge| Box::pin(unary(edge, client, 3_000)));
        measure("down", "MB", 256, &|edge| Box::pin(many(edge, client, 1, "size=268435456;len=known")));
        measure("up", "MB", 128, &|edge| Box::pin(up(edge, client, 128 << 20)));
    }
}

type Running<'e> = std::pin::Pin<Box<dyn Future<Output = ()> + 'e>>;

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
async fn many(edge: &Side, alpn: Alpn, streams: usize, script: &'static str) {
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

async fn unary(edge: &Side, alpn: Alpn, requests: usize) {
    let mut client = edge.connect(alpn).await;
    let body = "x".repeat(1024);
    for _ in 0..requests {
        client.ready().await.expect("ready");
        let request = request(&client, "size=1024;len=known").body(FullBody::new(body.clone())).expect("request");
        let answer = client.fetch(request).await.expect("answer");
        assert_eq!(answer.body.len(), 1024);
    }
}

async fn up(edge: &Side, alpn: Alpn, bytes: u64) {
    let mut client = edge.connect(alpn).await;
    let request = request(&client, "size=2;len=known").body(PatternBody::new(bytes)).expect("request");
    assert_eq!(client.fetch(request).await.expect("answer").status(), 200);
}

/// User and system time of a process's threads so far (the first field of `schedstat`, in nanoseconds: `stat` counts
/// ticks, too coarse for a turn). Threads that ended are missing; workers do not.
fn cpu_seconds(pid: u32) -> f64 {
    std::thread::sleep(Duration::from_millis(50));
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks");
    let nanoseconds = tasks.map(|task| {
        let schedstat = std::fs::read_to_string(task.expect("task").path().join("schedstat")).unwrap_or_default();
        schedstat.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0_u64)
    });
    nanoseconds.sum::<u64>() as f64 / 1e9
}
