//! Every sample stream is relayed byte for byte: both protocols on both sides, whole and cut at
//! every offset of its manifest entry.

mod support;

use http::Request;
use nullhop_loadtests::client::Client;
use nullhop_loadtests::client::FullBody;
use nullhop_loadtests::client::Received;
use nullhop_loadtests::provider::Provider;
use nullhop_loadtests::provider::ProviderOptions;
use nullhop_loadtests::tls::Alpn;
use support::Edge;

#[test]
fn byte_identical_on_all_four_pairs() {
    let manifest = std::fs::read_to_string(support::vectors().join("manifest.json")).expect("manifest");
    let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("manifest");
    let files = manifest["vectors"].as_array().expect("vectors");
    assert!(files.len() > 40, "the set is complete");
    for upstream in [Alpn::H1, Alpn::H2] {
        let options =
            ProviderOptions { alpn: upstream, vectors: Some(support::vectors()), ..ProviderOptions::default() };
        let provider = Provider::spawn(options).expect("provider");
        let edge = Edge::before(&provider);
        for client in [Alpn::H1, Alpn::H2] {
            support::runtime().block_on(async {
                let mut connection = edge.connect(client).await;
                for entry in files {
                    let name = entry["file"].as_str().expect("file");
                    for cut in ["", "cuts=splits;", "every=1;"] {
                        relay(&mut connection, name, cut, entry).await;
                    }
                }
            });
        }
    }
}

async fn relay(connection: &mut Client, name: &str, cut: &str, entry: &serde_json::Value) {
    let wanted = std::fs::read(support::vectors().join(name)).expect("vector");
    let request = Request::post(if connection.is_h2() {
        "https://localhost/openai/v1/chat/completions"
    } else {
        "/openai/v1/chat/completions"
    });
    let request = if connection.is_h2() { request } else { request.header("host", "localhost") };
    let request = request
        .header("authorization", "Bearer k")
        .header("content-type", "application/json")
        .header("x-script", format!("{cut}file={name}"))
        .body(FullBody::new("{}"))
        .expect("request");
    connection.ready().await.expect("ready");
    let response = connection.send(request).await.unwrap_or_else(|error| panic!("{name} {cut}: {error}"));
    // The error samples carry their status in their names.
    let status = name.split_once("-error-").and_then(|(_, rest)| rest.get(..3)?.parse().ok()).unwrap_or(200);
    assert_eq!(response.status().as_u16(), status, "{name}");
    let received = Received::read(response, usize::MAX).await;
    assert!(received.error.is_none(), "{name} {cut}: {:?}", received.error);
    assert!(received.body == wanted, "{name} {cut}: {} bytes instead of {}", received.len, wanted.len());
    if let Some(kind) = entry["content_type"].as_str() {
        assert_eq!(received.head.headers["content-type"], kind, "{name}");
    }
}
