//! What systemd tells us and wants to hear: sockets that it opened, and how far we are.

use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixDatagram;

/// How far the process is (sd_notify(3)).
#[derive(Clone, Copy)]
pub(crate) enum State {
    Ready,
    Reloading,
    Stopping,
}

/// Tells the supervisor, if there is one that listens.
pub(crate) fn notify(state: State) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let text = match state {
        State::Ready => "READY=1".to_owned(),
        // systemd wants the time of the reload with it, in microseconds of the monotonic clock.
        State::Reloading => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
            format!("RELOADING=1\nMONOTONIC_USEC={micros}")
        }
        State::Stopping => "STOPPING=1".to_owned(),
    };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let bytes = path.as_encoded_bytes();
    // A leading "@" stands for the abstract namespace.
    let _ = match bytes.strip_prefix(b"@") {
        Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)
            .and_then(|address| socket.send_to_addr(text.as_bytes(), &address)),
        None => socket.send_to(text.as_bytes(), &path),
    };
}

/// The listening sockets that were passed to us (sd_listen_fds(3)), with their addresses.
pub(crate) fn passed_sockets() -> Vec<(SocketAddr, TcpListener)> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for place in 0..passed.len() {
        if let Ok(Some(listener)) = passed.take_tcp_listener(place)
            && listener.set_nonblocking(true).is_ok()
            && let Ok(address) = listener.local_addr()
        {
            sockets.push((address, listener));
        }
    }
    sockets
}
