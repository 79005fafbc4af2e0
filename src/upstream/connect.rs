//! From an endpoint to a connected transport: addresses in turn, then TLS, under one deadline.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpSocket;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::socket::Socket;
use crate::socket::SocketWatch;
use crate::socket::Transport;
use crate::telemetry::labels::ConnectResult;
use crate::tls::Protocol;
use crate::tls::client::ClientTls;

/// RFC 8305 section 8: the recommended wait before the next address is tried beside the last one.
const NEXT_ADDRESS_AFTER: Duration = Duration::from_millis(250);

/// The kernel gives a connection up when sent data stays unacknowledged this long.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Behind the caller's own deadline, which covers DNS and TCP as well.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);

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
    tls: Option<(Arc<ClientTls>, ServerName<'static>)>,
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
    let Some((tls, name)) = tls else {
        return Ok(Connected { transport: Transport::Plain(socket), watch, h2: false });
    };
    let (stream, protocol) = tls.connect(socket, &name, HANDSHAKE_TIMEOUT).await.map_err(|_| ConnectResult::Tls)?;
    Ok(Connected { transport: Transport::Tls(stream), watch, h2: protocol == Protocol::Http2 })
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// An address that answers no SYN: its queue is full and nobody accepts.
    fn deaf() -> (socket2::Socket, Vec<socket2::Socket>, SocketAddr) {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let queued = (0..4).map(|_| {
            let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            let _ = client.connect(&address);
            client
        });
        let queued = queued.collect();
        (listener, queued, address.as_socket().unwrap())
    }

    #[test]
    fn the_next_address_does_not_wait_for_a_deaf_one() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let (_listener, _queued, deaf) = deaf();
            let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let started = Instant::now();
            let stream = first_to_answer(&[deaf, good.local_addr().unwrap()]).await.ok().unwrap();
            assert_eq!(stream.peer_addr().unwrap(), good.local_addr().unwrap());
            assert!(started.elapsed() >= NEXT_ADDRESS_AFTER);

            // One that refuses is passed over at once.
            let closed = {
                let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                listener.local_addr().unwrap()
            };
            assert!(first_to_answer(&[closed, good.local_addr().unwrap()]).await.is_ok());
            assert_eq!(first_to_answer(&[closed]).await.err(), Some(ConnectResult::Refused));
            assert_eq!(first_to_answer(&[]).await.err(), Some(ConnectResult::Dns));
        });
    }
}
