//! `nullhop demo`: nullhop in front of a scripted provider, both on loopback, and one stream through
//! them. No file, no key, no network.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::header;
use hyper::body::Incoming;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use tokio::net::TcpStream;

use crate::app;
use crate::cli::DemoArgs;
use crate::config::Config;
use crate::hygiene::heap;
use crate::hygiene::io::HyperIo;
use crate::hygiene::process::Hardened;
use crate::scripted;
use crate::scripted::Port;
use crate::scripted::Script;
use crate::scripted::Step;

/// Between two events of the scripted provider.
const PACE: Duration = Duration::from_millis(60);

const WORDS: [&str; 12] =
    ["Prompts", " pass", " through", ",", " chunk", " by", " chunk", ",", " and", " nothing", " stays", "."];

/// Runs the demo; returns when it is interrupted, or after one stream with `--once`.
pub(crate) fn run(arguments: &DemoArgs, hardened: Hardened) -> ExitCode {
    // Before the provider's thread is there. Nothing is demanded, so nothing can be refused.
    let heap = heap::choose(heap::Wanted::Auto).unwrap_or(heap::Kind::Plain);
    let Some((provider, socket)) = bind_provider() else {
        eprintln!("nullhop demo: cannot listen on 127.0.0.1");
        return ExitCode::FAILURE;
    };
    let port = arguments.port.unwrap_or(0);
    // Not the guards that this machine lacks: those are for who serves with `run`.
    let text = format!(
        "[[listener]]\naddress = \"127.0.0.1:{port}\"\n[runtime]\nworkers = 1\n[drain]\ngrace = \"0s\"\ndeadline = \"2s\"\n\
         [metrics]\naddress = \"127.0.0.1:0\"\n[admin]\naddress = \"127.0.0.1:0\"\n[log]\nlevel = \"error\"\n\
         [[upstream]]\nname = \"openai\"\nprovider = \"openai\"\nurl = \"http://{provider}\"\nbare = true\n\
         [[upstream]]\nname = \"anthropic\"\nprovider = \"anthropic\"\nurl = \"http://{provider}\"\nbare = true\n\
         [[upstream]]\nname = \"gemini\"\nprovider = \"gemini\"\nurl = \"http://{provider}\"\nbare = true\n"
    );
    let config = match Config::from_toml(&text, Path::new(""), "demo") {
        Ok(loaded) => loaded.config,
        Err(report) => {
            eprintln!("{report}");
            return ExitCode::FAILURE;
        }
    };
    crate::init_log(&config);
    let bound = match app::start(config, hardened, heap, Box::new(|| Err(1))) {
        Ok(bound) => bound,
        Err(fault) => {
            eprintln!("nullhop demo: {fault}");
            return ExitCode::FAILURE;
        }
    };
    // After the start, so that the process is locked down before it has a second thread.
    if scripted::serve("demo-provider", vec![Port { socket, tls: None }], play).is_err() {
        eprintln!("nullhop demo: cannot start a thread");
        return ExitCode::FAILURE;
    }
    let address = bound.listeners[0];
    let metrics = bound.metrics;
    let Some(pem) = bound.self_signed_pem() else { return ExitCode::FAILURE };
    let once = arguments.once;
    let shown = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ok = shown.clone();
    bound.run_until(async move {
        match show(address, &pem).await {
            Some(measured) => {
                ok.store(true, std::sync::atomic::Ordering::Relaxed);
                tell(address, metrics, &measured, once);
            }
            None => {
                eprintln!("nullhop demo: the stream did not come through");
                return;
            }
        }
        if !once {
            std::future::pending::<()>().await;
        }
    });
    if shown.load(std::sync::atomic::Ordering::Relaxed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Measured {
    first_byte: Duration,
    whole: Duration,
    chunks: usize,
    bytes: usize,
    tls: &'static str,
    group: String,
}

/// Sends a streaming chat through nullhop and prints its words as they come.
async fn show(address: SocketAddr, pem: &str) -> Option<Measured> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).ok()?).ok()?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await.ok()?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from("localhost").ok()?, stream).await.ok()?;
    let session = stream.get_ref().1;
    let tls = if session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3) { "TLS 1.3" } else { "TLS 1.2" };
    let group = session.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name())).unwrap_or_default();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(HyperIo::new(stream)).await.ok()?;
    tokio::task::spawn_local(connection);
    let body = r#"{"model":"demo","stream":true,"messages":[{"role":"user","content":"What happens to my prompt?"}]}"#;
    let request = Request::post("/openai/v1/chat/completions")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::AUTHORIZATION, "Bearer demo-key")
        .body(Script::at_once(Bytes::from_static(body.as_bytes())))
        .ok()?;
    let started = Instant::now();
    let mut answer = sender.send_request(request).await.ok()?.into_body();
    let mut measured = Measured { first_byte: Duration::ZERO, whole: Duration::ZERO, chunks: 0, bytes: 0, tls, group };
    println!("The stream, as it arrives through nullhop:\n");
    print!("  ");
    let mut text = String::new();
    while let Some(data) = scripted::next_data(&mut answer).await {
        let data = data.ok()?;
        if measured.chunks == 0 {
            measured.first_byte = started.elapsed();
        }
        measured.chunks += 1;
        measured.bytes += data.len();
        text.push_str(std::str::from_utf8(&data).ok()?);
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            print!("{}", word_of(&event));
            let _ = std::io::stdout().flush();
        }
    }
    println!("\n");
    measured.whole = started.elapsed();
    Some(measured)
}

fn word_of(event: &str) -> String {
    let data = event.trim().strip_prefix("data: ").unwrap_or("");
    let json: serde_json::Value = serde_json::from_str(data).unwrap_or_default();
    json["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned()
}

fn tell(address: SocketAddr, metrics: Option<SocketAddr>, measured: &Measured, once: bool) {
    println!(
        "What was measured: {} with {}, {} chunks, {} bytes, first byte after {:.1} ms, whole stream {:.0} ms.",
        measured.tls,
        measured.group,
        measured.chunks,
        measured.bytes,
        measured.first_byte.as_secs_f64() * 1e3,
        measured.whole.as_secs_f64() * 1e3
    );
    println!("Every chunk was overwritten in nullhop's memory when it had been written to your side.\n");
    if once {
        return;
    }
    let port = address.port();
    println!("Try it yourself (the certificate is self-signed and lives in memory only):\n");
    println!("  curl -kN https://localhost:{port}/openai/v1/chat/completions -H 'authorization: Bearer any' \\");
    println!("    -H 'content-type: application/json' -d '{{\"model\":\"demo\",\"stream\":true,\"messages\":[]}}'\n");
    println!("  # Python: pip install openai");
    println!("  import httpx, openai");
    println!("  client = openai.OpenAI(base_url=\"https://localhost:{port}/openai/v1\", api_key=\"any\",");
    println!("                         http_client=httpx.Client(verify=False))");
    println!("  for event in client.chat.completions.create(model=\"demo\", stream=True,");
    println!("                                              messages=[{{\"role\": \"user\", \"content\": \"hi\"}}]):");
    println!("      print(event.choices[0].delta.content or \"\", end=\"\")\n");
    println!("  # Anthropic SDKs and Claude Code: ANTHROPIC_BASE_URL=https://localhost:{port}/anthropic");
    println!("  # Gemini SDKs and CLI:            GOOGLE_GEMINI_BASE_URL=https://localhost:{port}/gemini\n");
    if let Some(metrics) = metrics {
        println!("  curl http://{metrics}/metrics | grep ^nullhop_\n");
    }
    println!("Ctrl-C ends it.");
}

fn bind_provider() -> Option<(SocketAddr, std::net::TcpListener)> {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").ok()?;
    Some((socket.local_addr().ok()?, socket))
}

/// An answer in the dialect of the path that was called.
async fn play(request: Request<Incoming>) -> Response<Script> {
    let path = request.uri().path().to_owned();
    let mut body = request.into_body();
    let mut streamed = path.contains(":streamGenerateContent");
    let mut read = 0;
    while let Some(Ok(data)) = scripted::next_data(&mut body).await {
        read += data.len();
        let text: Vec<u8> = data.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
        streamed |= text.windows(13).any(|window| window == b"\"stream\":true");
        if read > 1 << 20 {
            break;
        }
    }
    let events = script(&path, streamed);
    let kind = if streamed { "text/event-stream" } else { "application/json" };
    let steps = events.into_iter().flat_map(|event| [Step::Pause(PACE), Step::Send(event)]);
    let mut response = Response::new(Script::new(steps.skip_while(|step| !streamed && matches!(step, Step::Pause(_)))));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn script(path: &str, streamed: bool) -> Vec<Bytes> {
    let whole: String = WORDS.concat();
    let tokens = WORDS.len();
    let mut events: Vec<String> = Vec::new();
    if path.contains("/messages") {
        if streamed {
            events.push("event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_demo\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"demo\",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{\"input_tokens\":9,\"output_tokens\":1}}}\n\n".to_string());
            events.push("event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n".to_owned());
            for word in WORDS {
                events.push(format!("event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"{word}\"}}}}\n\n"));
            }
            events
                .push("event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n".to_owned());
            events.push(format!("event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"end_turn\",\"stop_sequence\":null}},\"usage\":{{\"output_tokens\":{tokens}}}}}\n\n"));
            events.push("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n".to_owned());
        } else {
            events.push(format!("{{\"id\":\"msg_demo\",\"type\":\"message\",\"role\":\"assistant\",\"model\":\"demo\",\"content\":[{{\"type\":\"text\",\"text\":\"{whole}\"}}],\"stop_reason\":\"end_turn\",\"stop_sequence\":null,\"usage\":{{\"input_tokens\":9,\"output_tokens\":{tokens}}}}}"));
        }
    } else if path.contains("enerateContent") {
        let frame = |text: &str, end: &str| {
            format!(
                "{{\"candidates\":[{{\"content\":{{\"parts\":[{{\"text\":\"{text}\"}}],\"role\":\"model\"}},\"index\":0{end}}}],\"usageMetadata\":{{\"promptTokenCount\":9,\"candidatesTokenCount\":{tokens},\"totalTokenCount\":{}}},\"modelVersion\":\"demo\"}}",
                tokens + 9
            )
        };
        if streamed {
            for (place, word) in WORDS.iter().enumerate() {
                let end = if place + 1 == tokens { ",\"finishReason\":\"STOP\"" } else { "" };
                events.push(format!("data: {}\r\n\r\n", frame(word, end)));
            }
        } else {
            events.push(frame(&whole, ",\"finishReason\":\"STOP\""));
        }
    } else if streamed {
        let chunk = |delta: &str, end: &str| {
            format!(
                "data: {{\"id\":\"chatcmpl-demo\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"demo\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{end}}}]}}\n\n"
            )
        };
        for word in WORDS {
            events.push(chunk(&format!("{{\"content\":\"{word}\"}}"), "null"));
        }
        events.push(chunk("{}", "\"stop\""));
        events.push("data: [DONE]\n\n".to_owned());
    } else {
        events.push(format!("{{\"id\":\"chatcmpl-demo\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"demo\",\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":\"{whole}\"}},\"finish_reason\":\"stop\"}}],\"usage\":{{\"prompt_tokens\":9,\"completion_tokens\":{tokens},\"total_tokens\":{}}}}}", tokens + 9));
    }
    events.into_iter().map(Bytes::from).collect()
}
