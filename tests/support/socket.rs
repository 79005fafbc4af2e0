//! A client's WebSocket, over h1 or over an extended CONNECT on h2.

use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use http::Request;
use nullhop_loadtests::client::raw_tls_connect;
use nullhop_loadtests::io::Ending;
use nullhop_loadtests::io::Transport;
use nullhop_loadtests::tls::Alpn;
use nullhop_loadtests::websocket::Frame;
use nullhop_loadtests::websocket::Opcode;
use nullhop_loadtests::websocket::Role;
use nullhop_loadtests::websocket::WebSocket;
use serde_json::Value;

use super::Edge;

/// Ample on a busy machine; what is waited for comes at once otherwise.
const SOON: Duration = Duration::from_secs(20);

/// One socket on a connection of its own.
pub enum Socket {
    H1(Box<WebSocket<tokio_rustls::client::TlsStream<tokio::net::TcpStream>>>),
    H2 { send: h2::SendStream<Bytes>, receive: h2::RecvStream, received: BytesMut },
}

impl Socket {
    /// With any key, and a script for the provider.
    pub async fn open(edge: &Edge, alpn: Alpn, path: &str, script: &str) -> Self {
        let headers = [("authorization", "Bearer k"), ("x-script", script)];
        Self::ask(edge, alpn, path, &headers).await.unwrap_or_else(|status| panic!("answered with {status}"))
    }

    /// With these headers. Without a socket: the status that was answered instead.
    pub async fn ask(edge: &Edge, alpn: Alpn, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let tls = raw_tls_connect(edge.address(), "localhost", alpn, &edge.trust()).await.expect("connects");
        if alpn == Alpn::H1 {
            let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            return match WebSocket::connect(tls, "localhost", path, &headers).await {
                Ok(socket) => Ok(Self::H1(Box::new(socket))),
                Err(refused) => {
                    let head = refused.to_string();
                    let status = head.strip_prefix("HTTP/1.1 ").and_then(|head| head.get(..3)?.parse().ok());
                    Err(status.unwrap_or_else(|| panic!("{head}")))
                }
            };
        }
        let (sender, connection) = h2::client::handshake(tls).await.expect("handshake");
        tokio::spawn(connection);
        let mut sender = sender.ready().await.expect("ready");
        while !sender.is_extended_connect_protocol_enabled() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let request = Request::builder()
            .method("CONNECT")
            .uri(format!("https://localhost{path}"))
            .header("sec-websocket-version", "13")
            .extension(h2::ext::Protocol::from_static("websocket"));
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let (response, send) = sender.send_request(request.body(()).expect("request"), false).expect("sends");
        let response = response.await.expect("answer");
        match response.status().as_u16() {
            200 => Ok(Self::H2 { send, receive: response.into_body(), received: BytesMut::new() }),
            status => Err(status),
        }
    }

    pub async fn send(&mut self, frame: Frame) {
        self.send_raw(frame.encode(Some([0xa5, 0x3c, 0x96, 0x5a]))).await;
    }

    pub async fn send_raw(&mut self, bytes: Bytes) {
        match self {
            Self::H1(socket) => socket.send_raw(&bytes).await.expect("sends"),
            Self::H2 { send, .. } => send.send_data(bytes, false).expect("sends"),
        }
    }

    pub async fn say(&mut self, message: &Value) {
        self.send(Frame::new(Opcode::Text, message.to_string())).await;
    }

    /// The next frame; `None` at an end in order. An error where the socket was cut.
    pub async fn try_next(&mut self) -> Result<Option<Frame>, String> {
        let next = async {
            match self {
                Self::H1(socket) => socket.next_frame().await.map_err(|fault| fault.to_string()),
                Self::H2 { receive, received, .. } => loop {
                    if let Some(frame) = Frame::decode(received, Role::Client).expect("frame") {
                        return Ok(Some(frame));
                    }
                    let Some(data) = receive.data().await else { return Ok(None) };
                    let data = data.map_err(|fault| fault.to_string())?;
                    receive.flow_control().release_capacity(data.len()).expect("capacity");
                    received.extend_from_slice(&data);
                },
            }
        };
        tokio::time::timeout(SOON, next).await.expect("in time")
    }

    /// The next frame; `None` at an end in order.
    pub async fn next(&mut self) -> Option<Frame> {
        self.try_next().await.expect("frame")
    }

    /// The next message, which is JSON.
    pub async fn hear(&mut self) -> Value {
        let frame = self.next().await.expect("a message");
        assert!(frame.fin && matches!(frame.opcode, Opcode::Text | Opcode::Binary), "{:?}", frame.opcode);
        serde_json::from_slice(&frame.payload).expect("JSON")
    }

    /// Ends in order, from this side.
    pub async fn close(mut self) {
        self.send(Frame::close(1000, "")).await;
        assert_eq!(self.next().await.expect("a close").close_code(), 1000);
    }

    /// Leaves at once; on h2 by a RST_STREAM.
    pub fn reset(self) {
        if let Self::H1(socket) = self {
            Transport::Tls(Box::new(socket.into_inner().into())).end(Ending::Reset);
        }
    }
}
