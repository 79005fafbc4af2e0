//! Drives rustls through a handshake, and takes over from it when that is done.
//!
//! rustls gets one record at a time, so that it never sees one that comes behind the handshake: content that a peer sends
//! with its last flight is opened by [`TlsStream`] alone.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::CommonState;
use rustls::ExtractedSecrets;
use rustls::ServerConfig;
use rustls::client::ClientConnectionData;
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::ServerName;
use rustls::server::ServerConnectionData;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::ConnectionState;
use rustls::unbuffered::EncodeError;
use rustls::unbuffered::UnbufferedStatus;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;

use super::stream::Kernel;
use super::stream::TlsStream;
use crate::hygiene::stack::scrub_handshake;

/// What is read at first; most handshakes need no more.
const READ_FIRST: usize = 4 << 10;

/// rustls takes messages of less than 64 KiB; what a peer may make us hold of one, with the heads of its records.
const READ_MAX: usize = 80 << 10;

/// One side of a handshake.
trait Side {
    type Data;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn state(&self) -> &CommonState;

    fn finish(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error>;
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Server(Box::new(kernel))))
    }
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn state(&self) -> &CommonState {
        self
    }

    fn finish(self) -> Result<(ExtractedSecrets, Kernel), rustls::Error> {
        let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
        Ok((secrets, Kernel::Client(Box::new(kernel))))
    }
}

/// Shakes hands with a client. `after` is called in the same poll as each step of rustls.
///
/// # Errors
/// rustls' error inside an `io::Error`, or the socket's.
pub(super) async fn accept<IO, T>(
    config: Arc<ServerConfig>,
    io: IO,
    after: impl FnMut(),
    settled: impl FnOnce(&CommonState) -> T,
) -> io::Result<(TlsStream<IO>, T)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let side = UnbufferedServerConnection::new(config).map_err(failed)?;
    shake(side, io, after, settled).await
}

/// Shakes hands with a server.
///
/// # Errors
/// As for `accept`.
pub(super) async fn connect<IO, T>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: IO,
    settled: impl FnOnce(&CommonState) -> T,
) -> io::Result<(TlsStream<IO>, T)>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let side = UnbufferedClientConnection::new(config, name).map_err(failed)?;
    shake(side, io, || {}, settled).await
}

fn failed(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What is to be done after a step of rustls.
enum Next {
    Step,
    Send,
    /// Give it a record more.
    Feed,
    Fail(rustls::Error),
    Closed,
}

async fn shake<S, IO, T>(
    mut side: S,
    mut io: IO,
    mut after: impl FnMut(),
    settled: impl FnOnce(&CommonState) -> T,
) -> io::Result<(TlsStream<IO>, T)>
where
    S: Side,
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut incoming = vec![0; READ_FIRST];
    // Of it, `fed` bytes are rustls' and `filled` are there.
    let (mut fed, mut filled) = (0, 0);
    let mut outgoing = Vec::new();
    // A peer that refuses us says so and leaves, and its word counts for more than that it took no more of ours.
    let mut unsent = None;
    loop {
        let (discard, next) = {
            let UnbufferedStatus { discard, state, .. } = side.process(&mut incoming[..fed]);
            let next = match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut outgoing, |room| data.encode(room))?;
                    Next::Step
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    Next::Send
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Next::Feed,
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Next::Closed,
                // Content behind the handshake is not given to it, and early data is off.
                Ok(_) => Next::Fail(rustls::Error::General("content in a handshake".to_owned())),
                Err(error) => Next::Fail(error),
            };
            (discard, next)
        };
        after();
        if discard > 0 {
            incoming.copy_within(discard..filled, 0);
            fed -= discard;
            filled -= discard;
        }
        match next {
            Next::Step => {}
            Next::Send => {
                if unsent.is_none() {
                    unsent = send(&mut io, &outgoing).await.err();
                }
                outgoing.clear();
            }
            Next::Feed if !side.state().is_handshaking() => {
                if fed > 0 {
                    return Err(failed(rustls::Error::General(
                        "a handshake that does not end with a record".to_owned(),
                    )));
                }
                break;
            }
            Next::Feed => {
                while !feedable(&incoming[fed..filled]) {
                    if filled == incoming.len() {
                        if filled >= READ_MAX {
                            return Err(failed(rustls::InvalidMessage::HandshakePayloadTooLarge.into()));
                        }
                        incoming.resize((2 * filled).min(READ_MAX), 0);
                    }
                    let read = io.read(&mut incoming[filled..]).await?;
                    if read == 0 {
                        return Err(unsent.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into()));
                    }
                    filled += read;
                }
                fed += feed_len(&incoming[fed..filled]);
            }
            Next::Closed => return Err(io::ErrorKind::UnexpectedEof.into()),
            Next::Fail(error) => {
                last_words(&mut side, &mut outgoing);
                // The peer may have left; what counts is why we do.
                let _ = send(&mut io, &outgoing).await;
                return Err(failed(error));
            }
        }
    }
    if let Some(fault) = unsent {
        return Err(fault);
    }
    let settled = settled(side.state());
    let (secrets, kernel) = side.finish().map_err(failed)?;
    let stream = TlsStream::new(io, kernel, secrets, &incoming[..filled])?;
    scrub_handshake();
    Ok((stream, settled))
}

async fn send<IO: AsyncWrite + Unpin>(io: &mut IO, bytes: &[u8]) -> io::Result<()> {
    io.write_all(bytes).await?;
    io.flush().await
}

fn encode(
    outgoing: &mut Vec<u8>,
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), io::Error> {
    let end = outgoing.len();
    let mut room = 0;
    loop {
        outgoing.resize(end + room, 0);
        match encode(&mut outgoing[end..]) {
            Ok(len) => {
                outgoing.truncate(end + len);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) if needed.required_size > room => room = needed.required_size,
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// What rustls has to say after an error: its alert, and what stands in front of it. It is asked for nothing else: it must
/// not look at the same bytes again.
fn last_words<S: Side>(side: &mut S, outgoing: &mut Vec<u8>) {
    while side.state().wants_write() {
        let UnbufferedStatus { state: Ok(ConnectionState::EncodeTlsData(mut data)), .. } = side.process(&mut []) else {
            return;
        };
        if encode(outgoing, |room| data.encode(room)).is_err() {
            return;
        }
    }
}

/// Whether a whole record is there, or the beginning of something that is none.
fn feedable(bytes: &[u8]) -> bool {
    feed_len(bytes) > 0
}

/// How much of `bytes` makes a record; all of them, if they are none and rustls has to say so.
fn feed_len(bytes: &[u8]) -> usize {
    let Some(&[kind, major, _, high, low]) = bytes.get(..5) else { return 0 };
    let len = 5 + usize::from(u16::from_be_bytes([high, low]));
    let a_record = (20..=24).contains(&kind) && major == 3 && len <= 5 + RECORD_BODY_MAX;
    match a_record {
        true if bytes.len() < len => 0,
        true => len,
        false => bytes.len(),
    }
}

/// What rustls takes for a record: RFC 5246 section 6.2.3.
const RECORD_BODY_MAX: usize = (16 << 10) + (2 << 10);
