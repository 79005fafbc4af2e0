//! From an endpoint to a connected transport: addresses in turn, then TLS, under one deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::socket::Socket;
use crate::socket::SocketWatch;
use crate::socket::Transport;
use crate::telemetry::labels::ConnectResult;

/// RFC 8305 section 8: the recommended wait before the next address is tried beside the last one.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// The kernel gives a connection up when sent data stays unacknowledged this long.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection that is ready for HTTP.
pub(super) struct Connected {
    pub(super) transport: Transport,
    pub(super) watch: SocketWatch,
    /// ALPN settled on h2.
    pub(super) h2: bool,
}

/// Connects to the first of `addresses` that answers, and shakes hands if there is a `tls`.
/// No deadline of its own: the caller drops the future.
///
/// # Errors
/// The label of what went wrong last.
pub(super) async fn connect(
    addresses: &[SocketAddr],
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
) -> Result<Connected, ConnectResult> {
    let stream = first_to_answer(addresses).await?;
    let _ = stream.set_nodelay(true);
    let reference = socket2::SockRef::from(&stream);
    let _ = reference.set_tcp_keepalive(
        &socket2::TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)),
    );
    let _ = reference.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let (socket, watch) = Socket::new(stream);
    watch.hear_out();
    let Some((config, name)) = tls else {
        return Ok(Connected { transport: Transport::Plain(socket), watch, h2: false });
    };
    let connector = tokio_rustls::TlsConnector::from(config);
    let stream = connector
        .connect_with(name, socket, |tls| tls.set_buffer_limit(Some(crate::tls::BUFFER_BYTES_MAX)))
        .await
        .map_err(|_| ConnectResult::Tls)?;
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Connected { transport: Transport::Tls(stream.into()), watch, h2 })
}

async fn first_to_answer(addresses: &[SocketAddr]) -> Result<TcpStream, ConnectResult> {
    let mut attempts = JoinSet::new();
    let mut waiting = addresses.iter().copied();
    let mut last = ConnectResult::Dns;
    loop {
        if let Some(address) = waiting.next() {
            attempts.spawn_local(async move {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                socket.connect(address).await
            });
        } else if attempts.is_empty() {
            return Err(last);
        }
        let finished = if waiting.len() > 0 {
            match tokio::time::timeout(NEXT_ADDRESS_AFTER, attempts.join_next()).await {
                Ok(finished) => finished,
                Err(_) => continue,
            }
        } else {
            attempts.join_next().await
        };
        match finished {
            // Dropping the set ends the slower attempts.
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(fault))) => {
                last = match fault.kind() {
                    std::io::ErrorKind::ConnectionRefused => ConnectResult::Refused,
                    std::io::ErrorKind::TimedOut => ConnectResult::Timeout,
                    _ => ConnectResult::Other,
                };
            }
            Some(Err(_)) => last = ConnectResult::Other,
            None => {}
        }
    }
}
