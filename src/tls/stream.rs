//! A TLS stream after its handshake.
//!
//! rustls shakes hands and keeps what keys and tickets are made of; the records are sealed and opened here, because a
//! proxy's own needs are few and its promise is strict. What arrives is opened from a buffer of ciphertext straight into
//! the reader's memory; what is written is gathered and sealed in one buffer a thread, and sent from it in one system
//! call. So nothing here holds content between two calls but the rest of a record that its reader had no room for: it is
//! opened where it stands and wiped as it is handed out. A connection without a record under way holds no buffer at all.
//!
//! Beside content the peer may send: alerts, tickets (kept by rustls), and demands for a next key. RFC 8446 sections 4.6
//! and 6; of TLS 1.2 also a request to shake hands again, which is refused with a warning (RFC 5746 section 4.5).

use std::cell::RefCell;
use std::io;
use std::io::IoSlice;
use std::ops::Range;
use std::pin::Pin;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;
use std::task::ready;

use rustls::ExtractedSecrets;
use rustls::ProtocolVersion;
use rustls::SupportedCipherSuite;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;

use super::fault::StreamFault;
use super::record::CONTENT_MAX;
use super::record::Kind;
use super::record::Opener;
use super::record::RECORD_MAX;
use super::record::SEALED_MAX;
use super::record::Sealer;
use super::record::Slices;
use crate::hygiene::stack::scrub_crypto;
use crate::hygiene::wipe::wipe;

/// Records that one write seals: part of the bound on what a stream holds for a reader that stops.
const RECORDS_PER_WRITE: usize = 2;

/// What one read takes from the socket: two whole records.
const READ_MAX: usize = 2 * RECORD_MAX;

/// Read buffers that a thread keeps for its next reads.
const SPARE_BUFFERS: usize = 4;

/// A message of the handshake protocol, at most: type, length (3), and what a ticket may have (RFC 8446 section 4.6.1).
const MESSAGE_MAX: usize = 4 + (64 << 10) + 300;

/// Warnings that carry nothing, and demands for a new key without content in between, as many as rustls takes.
const WARNINGS_MAX: u8 = 4;
const UPDATES_MAX: u8 = 32;

const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const NO_RENEGOTIATION: u8 = 100;

const HELLO_REQUEST: u8 = 0;
const CLIENT_HELLO: u8 = 1;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

/// rustls' part of a stream.
pub(super) enum Kernel {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

impl Kernel {
    fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Client(kernel) => kernel.negotiated_cipher_suite(),
            Self::Server(kernel) => kernel.negotiated_cipher_suite(),
        }
    }

    fn version(&self) -> ProtocolVersion {
        match self {
            Self::Client(kernel) => kernel.protocol_version(),
            Self::Server(kernel) => kernel.protocol_version(),
        }
    }

    fn next_sealer(&mut self, sealer: &mut Sealer) -> Result<(), StreamFault> {
        let secrets = match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        };
        sealer.rekey(self.suite(), secrets.map_err(|_| StreamFault::Internal)?)
    }

    fn next_opener(&mut self) -> Result<Opener, StreamFault> {
        let secrets = match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        };
        Opener::new(self.version(), secrets.map_err(|_| StreamFault::Internal)?)
    }
}

/// One stream, either side.
pub struct TlsStream<IO> {
    io: IO,
    kernel: Kernel,
    sealer: Sealer,
    opener: Opener,
    tls13: bool,
    /// Ciphertext that is not opened yet, and the rest of a record whose reader had no room for all of it.
    incoming: Option<Incoming>,
    /// Ciphertext that the socket has not taken yet, from `sent` on.
    outgoing: Vec<u8>,
    sent: usize,
    /// Who was told to wait until the socket takes more. A socket wakes one task for writing: a reader that sends on must
    /// not take that place, for it does not wait for it.
    writer: Option<Waker>,
    /// The beginning of a message that goes on in the next record.
    message: Vec<u8>,
    /// The peer said that nothing comes any more.
    closed: bool,
    /// We have said so.
    close_sent: bool,
    /// A next key of ours is to be announced, because the peer wants one.
    update_due: bool,
    warnings_left: u8,
    updates_left: u8,
    fault: Option<StreamFault>,
}

/// A read buffer. Its content is ciphertext, but for `rest`.
struct Incoming {
    bytes: Box<[u8]>,
    /// What is not opened yet.
    start: usize,
    end: usize,
    /// What is opened and not handed out yet; it stands before `start`.
    rest: Range<usize>,
}

thread_local! {
    /// Read buffers for whoever reads next.
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
    /// Where writes are sealed. Content stands in it only within one call.
    static SEALED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Incoming {
    fn take() -> Self {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Self { bytes: spare.unwrap_or_else(|| vec![0; READ_MAX].into_boxed_slice()), start: 0, end: 0, rest: 0..0 }
    }

    /// Leaves the buffer to the next reader, if nothing stands in it any more.
    fn give_back_empty(this: &mut Option<Self>) {
        if let Some(incoming) = this.take_if(|incoming| incoming.start == incoming.end && incoming.rest.is_empty()) {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_BUFFERS {
                    spare.push(incoming.bytes);
                }
            });
        }
    }
}

impl<IO> TlsStream<IO> {
    /// Takes over from a handshake: `secrets` are in force in both directions, and `early` is what has arrived behind it.
    pub(super) fn new(io: IO, kernel: Kernel, secrets: ExtractedSecrets, early: &[u8]) -> Result<Self, StreamFault> {
        let version = kernel.version();
        let mut incoming = None;
        if !early.is_empty() {
            let mut taken = Incoming::take();
            if early.len() > taken.bytes.len() {
                // What did not fit in the read buffer of a handshake is no record.
                taken.bytes = vec![0; early.len()].into_boxed_slice();
            }
            taken.bytes[..early.len()].copy_from_slice(early);
            taken.end = early.len();
            incoming = Some(taken);
        }
        Ok(Self {
            io,
            sealer: Sealer::new(kernel.suite(), secrets.tx)?,
            opener: Opener::new(version, secrets.rx)?,
            tls13: version == ProtocolVersion::TLSv1_3,
            kernel,
            incoming,
            outgoing: Vec::new(),
            sent: 0,
            writer: None,
            message: Vec::new(),
            closed: false,
            close_sent: false,
            update_due: false,
            warnings_left: WARNINGS_MAX,
            updates_left: UPDATES_MAX,
            fault: None,
        })
    }

    /// What it runs over.
    pub(crate) fn io(&self) -> &IO {
        &self.io
    }

    /// Bytes of buffers in use.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let incoming = self.incoming.as_ref().map_or(0, |incoming| incoming.bytes.len());
        self.outgoing.capacity() + self.message.capacity() + incoming
    }

    /// The key of ours that is in force seals so many records from its first on.
    #[cfg(test)]
    pub(super) fn limit_records(&mut self, records_max: u64) {
        self.sealer.limit(records_max);
    }

    /// Which version of TLS is spoken.
    #[cfg(test)]
    pub(super) fn version(&self) -> ProtocolVersion {
        self.kernel.version()
    }

    /// Hands out what is left of the last record. `false`: nothing is.
    fn hand_out(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        let Some(incoming) = self.incoming.as_mut().filter(|incoming| !incoming.rest.is_empty()) else { return false };
        let left = &mut incoming.bytes[incoming.rest.clone()];
        let len = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..len]);
        wipe(&mut left[..len]);
        incoming.rest.start += len;
        Incoming::give_back_empty(&mut self.incoming);
        true
    }

    /// Opens the whole records that are there, as far as `buffer` has room. One record that finds only a part of its room
    /// is opened if it is the first.
    fn open(&mut self, buffer: &mut ReadBuf<'_>) -> Result<(), StreamFault> {
        let before = buffer.filled().len();
        let mut opened = false;
        let outcome = self.open_records(buffer, before, &mut opened);
        if opened {
            scrub_crypto();
        }
        outcome
    }

    fn open_records(&mut self, buffer: &mut ReadBuf<'_>, before: usize, opened: &mut bool) -> Result<(), StreamFault> {
        while !self.closed
            && let Some(incoming) = &mut self.incoming
        {
            let bytes = &mut incoming.bytes[incoming.start..incoming.end];
            let Some(len) = Opener::record_len(bytes)?.filter(|len| *len <= bytes.len()) else { return Ok(()) };
            let record = &mut bytes[..len];
            let room = self.opener.room_for(record)?;
            *opened = true;
            let (kind, content) = if room <= buffer.remaining() {
                let into = buffer.initialize_unfilled_to(room);
                let (kind, content) = self.opener.open(record, into)?;
                if kind == Kind::Data {
                    // A message does not go on behind content.
                    if !self.message.is_empty() {
                        wipe(into);
                        return Err(StreamFault::UnexpectedMessage);
                    }
                    self.updates_left = UPDATES_MAX;
                    buffer.advance(content);
                    incoming.start += len;
                    Incoming::give_back_empty(&mut self.incoming);
                    continue;
                }
                // What is no content goes the other way, which is rare.
                let at = self.opener.content_at();
                record[at..at + content].copy_from_slice(&into[..content]);
                wipe(into);
                (kind, content)
            } else if buffer.filled().len() > before {
                return Ok(());
            } else {
                self.opener.open_in_place(record)?
            };
            let start = incoming.start + self.opener.content_at();
            incoming.start += len;
            incoming.rest = start..start + content;
            if kind == Kind::Data {
                if !self.message.is_empty() {
                    wipe(&mut incoming.bytes[start..start + content]);
                    incoming.rest = 0..0;
                    return Err(StreamFault::UnexpectedMessage);
                }
                self.updates_left = UPDATES_MAX;
                if self.hand_out(buffer) {
                    return Ok(());
                }
                Incoming::give_back_empty(&mut self.incoming);
                continue;
            }
            let said = incoming.bytes[start..start + content].to_vec();
            wipe(&mut incoming.bytes[start..start + content]);
            incoming.rest = 0..0;
            Incoming::give_back_empty(&mut self.incoming);
            if kind == Kind::Handshake {
                self.messages(&said)?;
            } else if self.message.is_empty() {
                self.alert(&said)?;
            } else {
                return Err(StreamFault::UnexpectedMessage);
            }
        }
        Ok(())
    }

    fn alert(&mut self, said: &[u8]) -> Result<(), StreamFault> {
        let &[level, what] = said else { return Err(StreamFault::BadMessage) };
        match (level, what) {
            (_, CLOSE_NOTIFY) => {
                self.closed = true;
                if let Some(incoming) = &mut self.incoming {
                    incoming.start = incoming.end;
                }
                Incoming::give_back_empty(&mut self.incoming);
                Ok(())
            }
            (1, what) if !self.tls13 || what == USER_CANCELED => {
                self.warnings_left = self.warnings_left.checked_sub(1).ok_or(StreamFault::TooMany)?;
                Ok(())
            }
            _ => Err(StreamFault::Alert),
        }
    }

    /// Messages of the handshake protocol, which may begin and end within records.
    fn messages(&mut self, said: &[u8]) -> Result<(), StreamFault> {
        if said.is_empty() {
            return Err(StreamFault::UnexpectedMessage);
        }
        let mut joined = std::mem::take(&mut self.message);
        joined.extend_from_slice(said);
        let mut rest = &joined[..];
        while let Some((&[kind, a, b, c], behind)) = rest.split_first_chunk() {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            if 4 + len > MESSAGE_MAX {
                return Err(StreamFault::BadMessage);
            }
            let Some((body, behind)) = behind.split_at_checked(len) else { break };
            rest = behind;
            self.one_message(kind, body, rest.is_empty())?;
        }
        self.message = rest.to_vec();
        Ok(())
    }

    fn one_message(&mut self, kind: u8, body: &[u8], last: bool) -> Result<(), StreamFault> {
        match (&mut self.kernel, kind) {
            (_, KEY_UPDATE) if self.tls13 => {
                self.updates_left = self.updates_left.checked_sub(1).ok_or(StreamFault::TooMany)?;
                match body {
                    [0] => {}
                    [1] => self.update_due = true,
                    _ => return Err(StreamFault::BadMessage),
                }
                if !last {
                    // What follows was sealed with the old key.
                    return Err(StreamFault::UnexpectedMessage);
                }
                self.opener = self.kernel.next_opener()?;
                Ok(())
            }
            (Kernel::Client(kernel), NEW_SESSION_TICKET) if self.tls13 => {
                kernel.handle_new_session_ticket(body).map_err(|_| StreamFault::BadMessage)
            }
            (Kernel::Client(_), HELLO_REQUEST) | (Kernel::Server(_), CLIENT_HELLO) if !self.tls13 => {
                // Once is enough for an answer.
                if self.warnings_left < WARNINGS_MAX {
                    return Err(StreamFault::TooMany);
                }
                self.warnings_left -= 1;
                self.queue(Kind::Alert, &[1, NO_RENEGOTIATION])
            }
            _ => Err(StreamFault::UnexpectedMessage),
        }
    }

    /// Seals a message of our own behind what waits to be sent.
    fn queue(&mut self, kind: Kind, said: &[u8]) -> Result<(), StreamFault> {
        let mut record = [0; 64];
        let len = self.sealer.seal(kind, &mut Slices::new(&[IoSlice::new(said)]), said.len(), &mut record)?;
        self.outgoing.extend_from_slice(&record[..len]);
        Ok(())
    }

    /// Announces a next key of ours and goes on to it.
    fn update(&mut self) -> Result<(), StreamFault> {
        self.queue(Kind::Handshake, &[KEY_UPDATE, 0, 0, 1, 0])?;
        self.kernel.next_sealer(&mut self.sealer)
    }

    /// The stream is over; the peer is told why, if the socket takes it at once.
    fn fail(&mut self, fault: StreamFault) {
        if self.fault.is_none() {
            self.fault = Some(fault);
            if let Some(alert) = fault.alert()
                && !self.close_sent
            {
                self.close_sent = true;
                let _ = self.queue(Kind::Alert, &[2, alert]);
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    /// Reads what the socket has behind what is there.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let incoming = self.incoming.get_or_insert_with(Incoming::take);
        if incoming.start > 0 {
            incoming.bytes.copy_within(incoming.start..incoming.end, 0);
            incoming.end -= incoming.start;
            incoming.start = 0;
        }
        let mut room = ReadBuf::new(&mut incoming.bytes[incoming.end..]);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut room);
        let read = room.filled().len();
        incoming.end += read;
        Incoming::give_back_empty(&mut self.incoming);
        ready!(polled)?;
        Poll::Ready(Ok(read))
    }

    /// What has arrived, as a block of its own: every whole record that is there, opened into exactly the room that they
    /// need. Reads on if there is none. An empty block is the peer's orderly end.
    ///
    /// # Errors
    /// As for reading.
    pub fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Vec<u8>>> {
        loop {
            let room = if self.fault.is_some() { 1 } else { self.room_wanted().unwrap_or(1) };
            if room == 0 && !self.closed {
                if ready!(self.poll_fill(cx))? == 0 {
                    return Poll::Ready(Err(cut_off()));
                }
                continue;
            }
            let mut block = vec![0; room];
            let mut buffer = ReadBuf::new(&mut block);
            // Records that carry nothing leave it empty, and nothing is read as long as it is not.
            match self.poll_open(cx, &mut buffer) {
                Ok(()) => {}
                Err(fault) => return Poll::Ready(Err(fault)),
            }
            let filled = buffer.filled().len();
            if filled > 0 || self.closed {
                block.truncate(filled);
                return Poll::Ready(Ok(block));
            }
        }
    }

    /// Room for the rest of a record and all whole records that wait; 0: nothing can be handed out.
    fn room_wanted(&self) -> Result<usize, StreamFault> {
        let Some(incoming) = &self.incoming else { return Ok(0) };
        if !incoming.rest.is_empty() {
            return Ok(incoming.rest.len());
        }
        let mut bytes = &incoming.bytes[incoming.start..incoming.end];
        let mut room = 0;
        while let Some(len) = Opener::record_len(bytes)?.filter(|len| *len <= bytes.len()) {
            let (record, behind) = bytes.split_at(len);
            room += self.opener.room_for(record)?;
            bytes = behind;
        }
        Ok(room)
    }

    /// Hands out what is there, without reading on.
    fn poll_open(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> io::Result<()> {
        if self.hand_out(buffer) {
            return Ok(());
        }
        if let Some(fault) = self.fault {
            return Err(fault.into());
        }
        if let Err(fault) = self.open(buffer) {
            self.fail(fault);
        }
        if self.update_due || self.sent < self.outgoing.len() {
            // What does not go out at once goes with the next write or flush.
            let writer = self.writer.take();
            let _ = self.poll_send(&mut writer.as_ref().map_or(Context::from_waker(cx.waker()), Context::from_waker));
            self.writer = writer;
        }
        Ok(())
    }

    /// Keeps who waits to write.
    fn waits_to_write(&mut self, cx: &Context<'_>) {
        match &mut self.writer {
            Some(writer) => writer.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
    }

    /// Sends what waits, for a writer.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = self.poll_send(cx);
        if polled.is_pending() {
            self.waits_to_write(cx);
        }
        polled
    }

    /// Sends what waits.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.outgoing.len() {
                let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.outgoing[self.sent..]))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += written;
            }
            if self.sent > 0 {
                self.outgoing = Vec::new();
                self.sent = 0;
            }
            // Only now, so that a peer that asks again and again makes us hold one answer.
            if !std::mem::take(&mut self.update_due) || self.close_sent {
                return Poll::Ready(Ok(()));
            }
            self.update()?;
        }
    }

    fn poll_write_slices(&mut self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if let Some(fault) = self.fault {
            return Poll::Ready(Err(fault.into()));
        }
        if self.close_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if self.sent < self.outgoing.len() || self.update_due {
            ready!(self.poll_sent(cx))?;
        }
        let whole: usize = slices.iter().map(|slice| slice.len()).sum();
        let len = whole.min(RECORDS_PER_WRITE * CONTENT_MAX);
        if len == 0 {
            return Poll::Ready(Ok(0));
        }
        if !self.sealer.good_for(RECORDS_PER_WRITE as u64) && self.tls13 {
            self.update()?;
            ready!(self.poll_sent(cx))?;
        }
        SEALED.with_borrow_mut(|room| {
            room.resize(RECORDS_PER_WRITE * SEALED_MAX, 0);
            let mut content = Slices::new(slices);
            let (mut left, mut end) = (len, 0);
            while left > 0 {
                let part = left.min(CONTENT_MAX);
                end += self.sealer.seal(Kind::Data, &mut content, part, &mut room[end..])?;
                left -= part;
            }
            scrub_crypto();
            let mut sent = 0;
            while sent < end {
                match Pin::new(&mut self.io).poll_write(cx, &room[sent..end]) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => sent += written,
                    Poll::Ready(Err(fault)) => return Poll::Ready(Err(fault)),
                    Poll::Pending => {
                        // Taken all the same; a flush waits for it.
                        self.outgoing.extend_from_slice(&room[sent..end]);
                        self.waits_to_write(cx);
                        break;
                    }
                }
            }
            Poll::Ready(Ok(len))
        })
    }
}

/// Without a goodbye nobody knows whether it was all: whoever can close a TCP connection can cut it.
fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection without saying so in TLS")
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            this.poll_open(cx, buffer)?;
            if buffer.filled().len() > before || (this.closed && this.fault.is_none()) {
                return Poll::Ready(Ok(()));
            }
            if this.fault.is_none() && ready!(this.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(cut_off()));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.sent < this.outgoing.len() || this.update_due {
            ready!(this.poll_sent(cx))?;
        }
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.close_sent {
            this.update_due = false;
            this.close_sent = true;
            this.queue(Kind::Alert, &[1, CLOSE_NOTIFY])?;
        }
        ready!(this.poll_sent(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
