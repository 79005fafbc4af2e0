//! Records after the handshake: sealed and opened with the keys that rustls agreed on, from and into memory of the caller.
//!
//! What is opened goes straight to where it is wanted, and what is sealed is gathered where it will be sent from: no
//! buffer in between ever holds content. Formats: RFC 8446 section 5 (1.3); RFC 5246 section 6.2, RFC 5288 and RFC 7905
//! (1.2 with AES-GCM and ChaCha20-Poly1305, the only kinds that rustls speaks).

use std::io::IoSlice;

use aws_lc_rs::aead;
use aws_lc_rs::aead::Aad;
use aws_lc_rs::aead::LessSafeKey;
use aws_lc_rs::aead::NONCE_LEN;
use aws_lc_rs::aead::Nonce;
use aws_lc_rs::aead::UnboundKey;
use rustls::ConnectionTrafficSecrets;
use rustls::ProtocolVersion;
use rustls::SupportedCipherSuite;

use super::fault::StreamFault;
use crate::hygiene::wipe::wipe;

/// The most content of a record.
pub(super) const CONTENT_MAX: usize = 16 << 10;

/// A record's head: type, version (2), length (2).
pub(super) const HEAD: usize = 5;

/// What a record may have beyond its content: RFC 8446 section 5.2. The kinds of 1.2 that are spoken have 24 bytes.
const EXPANSION_MAX: usize = 256;

/// A whole record, at most.
pub(super) const RECORD_MAX: usize = HEAD + CONTENT_MAX + EXPANSION_MAX;

/// A whole record that we seal, at most: head, explicit nonce or type, content, tag.
pub(super) const SEALED_MAX: usize = HEAD + EXPLICIT + CONTENT_MAX + TAG;

const TAG: usize = 16;

/// The part of a 1.2 GCM nonce that is sent along.
const EXPLICIT: usize = 8;

/// What a record carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Alert,
    Handshake,
    Data,
}

impl Kind {
    fn of(byte: u8) -> Result<Self, StreamFault> {
        match byte {
            21 => Ok(Self::Alert),
            22 => Ok(Self::Handshake),
            23 => Ok(Self::Data),
            // ChangeCipherSpec ends with the handshake; there is no other.
            _ => Err(StreamFault::UnexpectedMessage),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }
}

/// How a version and cipher lay a record out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The type is encrypted behind the content; the nonce is the number of the record.
    Tls13,
    /// 1.2 with eight bytes of nonce in front.
    Explicit,
    /// 1.2 with a nonce as in 1.3.
    Counted,
}

/// One direction's key.
struct Key {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    form: Form,
}

impl Key {
    fn new(version: ProtocolVersion, secrets: ConnectionTrafficSecrets) -> Result<Self, StreamFault> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(StreamFault::Internal),
        };
        let form = match (version, &secrets) {
            (ProtocolVersion::TLSv1_3, _) => Form::Tls13,
            (ProtocolVersion::TLSv1_2, ConnectionTrafficSecrets::Chacha20Poly1305 { .. }) => Form::Counted,
            (ProtocolVersion::TLSv1_2, _) => Form::Explicit,
            _ => return Err(StreamFault::Internal),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_| StreamFault::Internal)?;
        let iv = iv.as_ref().try_into().map_err(|_| StreamFault::Internal)?;
        Ok(Self { key: LessSafeKey::new(key), iv, form })
    }

    /// RFC 8446 section 5.3. For 1.2 with GCM the same is a choice of the sender's, and unique likewise.
    fn nonce(&self, number: u64) -> [u8; NONCE_LEN] {
        let mut nonce = self.iv;
        for (byte, part) in nonce[NONCE_LEN - 8..].iter_mut().zip(number.to_be_bytes()) {
            *byte ^= part;
        }
        nonce
    }

    /// What stands between the head and the content.
    fn front(&self) -> usize {
        if self.form == Form::Explicit { EXPLICIT } else { 0 }
    }
}

/// What is authenticated with a record of 1.2: RFC 5246 section 6.2.3.3.
fn associated(number: u64, kind: u8, content_len: usize) -> [u8; 13] {
    let mut data = [0; 13];
    data[..8].copy_from_slice(&number.to_be_bytes());
    let [high, low] = (content_len as u16).to_be_bytes();
    data[8..].copy_from_slice(&[kind, 3, 3, high, low]);
    data
}

/// Encrypts what we send.
pub(super) struct Sealer {
    key: Key,
    number: u64,
    /// Records that one key may encrypt.
    records_max: u64,
}

impl Sealer {
    pub(super) fn new(
        suite: SupportedCipherSuite,
        (number, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, StreamFault> {
        let limit = match suite {
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        };
        let key = Key::new(suite.version().version, secrets)?;
        // The number itself must never come round.
        Ok(Self { key, number, records_max: limit.min(1 << 60) })
    }

    /// Whether so many records more may be sealed, and one that announces the next key.
    pub(super) fn good_for(&self, records: u64) -> bool {
        self.number.saturating_add(records) < self.records_max
    }

    #[cfg(test)]
    pub(super) fn limit(&mut self, records_max: u64) {
        self.records_max = self.number + records_max;
    }

    /// The same key is not used any more, from now on it is this one.
    pub(super) fn rekey(
        &mut self,
        suite: SupportedCipherSuite,
        secrets: (u64, ConnectionTrafficSecrets),
    ) -> Result<(), StreamFault> {
        *self = Self::new(suite, secrets)?;
        Ok(())
    }

    /// Writes one record to the front of `room`, which holds at least [`SEALED_MAX`] bytes: the first `len` bytes of
    /// `content`, at most [`CONTENT_MAX`]. Its length; on a fault nothing of the content is left in `room`.
    pub(super) fn seal(
        &mut self,
        kind: Kind,
        content: &mut Slices<'_, '_>,
        len: usize,
        room: &mut [u8],
    ) -> Result<usize, StreamFault> {
        if self.number >= self.records_max {
            return Err(StreamFault::KeyExhausted);
        }
        let at = HEAD + self.key.front();
        let inner = self.key.form == Form::Tls13;
        let sealed = len + usize::from(inner);
        content.take(&mut room[at..at + len]);
        if inner {
            room[at + len] = kind.byte();
        }
        let whole = at + sealed + TAG;
        let [high, low] = ((whole - HEAD) as u16).to_be_bytes();
        let head = [if inner { Kind::Data.byte() } else { kind.byte() }, 3, 3, high, low];
        room[..HEAD].copy_from_slice(&head);
        let nonce = self.key.nonce(self.number);
        if self.key.form == Form::Explicit {
            room[HEAD..at].copy_from_slice(&nonce[NONCE_LEN - EXPLICIT..]);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        let (body, rest) = room[at..].split_at_mut(sealed);
        let tag = if inner {
            self.key.key.seal_in_place_separate_tag(nonce, Aad::from(head), body)
        } else {
            let data = associated(self.number, kind.byte(), len);
            self.key.key.seal_in_place_separate_tag(nonce, Aad::from(data), body)
        };
        self.number += 1;
        match tag {
            Ok(tag) => {
                rest[..TAG].copy_from_slice(tag.as_ref());
                Ok(whole)
            }
            Err(_) => {
                wipe(body);
                Err(StreamFault::Internal)
            }
        }
    }
}

/// What is to be sealed, taken from the front.
pub(super) struct Slices<'a, 'b> {
    rest: &'a [IoSlice<'b>],
    /// Bytes of the first that are taken.
    taken: usize,
}

impl<'a, 'b> Slices<'a, 'b> {
    pub(super) fn new(slices: &'a [IoSlice<'b>]) -> Self {
        Self { rest: slices, taken: 0 }
    }

    /// Fills `room`; there is at least that much.
    fn take(&mut self, mut room: &mut [u8]) {
        while let Some(first) = self.rest.first()
            && !room.is_empty()
        {
            let left = &first[self.taken..];
            let len = left.len().min(room.len());
            room[..len].copy_from_slice(&left[..len]);
            room = &mut room[len..];
            self.taken += len;
            if len == left.len() {
                self.rest = &self.rest[1..];
                self.taken = 0;
            }
        }
    }
}

/// A record's head, the part of its nonce that was sent, and the rest.
type Parts<'r> = ([u8; HEAD], [u8; EXPLICIT], &'r [u8]);

/// Decrypts what the peer sends.
pub(super) struct Opener {
    key: Key,
    number: u64,
}

impl Opener {
    pub(super) fn new(
        version: ProtocolVersion,
        (number, secrets): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, StreamFault> {
        Ok(Self { key: Key::new(version, secrets)?, number })
    }

    /// How long the record is that begins here, if its head is there.
    pub(super) fn record_len(bytes: &[u8]) -> Result<Option<usize>, StreamFault> {
        let Some(&[kind, major, _, high, low]) = bytes.get(..HEAD) else { return Ok(None) };
        Kind::of(kind)?;
        let body = usize::from(u16::from_be_bytes([high, low]));
        if major != 3 {
            return Err(StreamFault::BadRecord);
        }
        if body > CONTENT_MAX + EXPANSION_MAX {
            return Err(StreamFault::RecordOverflow);
        }
        Ok(Some(HEAD + body))
    }

    /// The room that a whole record's opening takes.
    pub(super) fn room_for(&self, record: &[u8]) -> Result<usize, StreamFault> {
        record.len().checked_sub(HEAD + self.key.front() + TAG).ok_or(StreamFault::BadRecord)
    }

    /// Where the content begins in a record that [`Self::open_in_place`] has opened.
    pub(super) fn content_at(&self) -> usize {
        HEAD + self.key.front()
    }

    /// Opens a whole record into `room`, which has just [`Self::room_for`] it: what it carries and the length of its
    /// content, which stands in front. On a fault nothing of it is left in `room`.
    pub(super) fn open(&mut self, record: &[u8], room: &mut [u8]) -> Result<(Kind, usize), StreamFault> {
        let (head, explicit, body) = self.parts(record)?;
        let (sealed, tag) = body.split_at(room.len());
        let (nonce, data, data_len) = self.around(head, explicit, sealed.len());
        let opened = self.key.key.open_separate_gather(nonce, Aad::from(&data[..data_len]), sealed, tag, room);
        self.checked(head[0], opened.is_ok(), room)
    }

    /// The same where the record stands: its content begins at [`Self::content_at`].
    pub(super) fn open_in_place(&mut self, record: &mut [u8]) -> Result<(Kind, usize), StreamFault> {
        let (head, explicit, body) = self.parts(record)?;
        let sealed = body.len() - TAG;
        let (nonce, data, data_len) = self.around(head, explicit, sealed);
        let at = self.content_at();
        let body = &mut record[at..];
        let opened = self.key.key.open_in_place(nonce, Aad::from(&data[..data_len]), body).is_ok();
        self.checked(head[0], opened, &mut body[..sealed])
    }

    /// The head, the part of the nonce that was sent, and the rest, with at least a tag.
    fn parts<'r>(&self, record: &'r [u8]) -> Result<Parts<'r>, StreamFault> {
        let (head, rest) = record.split_first_chunk().ok_or(StreamFault::BadRecord)?;
        if self.key.form == Form::Tls13 && head[0] != Kind::Data.byte() {
            return Err(StreamFault::UnexpectedMessage);
        }
        let (explicit, rest) = match self.key.form {
            Form::Explicit => rest.split_first_chunk().map(|(explicit, rest)| (*explicit, rest)),
            Form::Tls13 | Form::Counted => Some(([0; EXPLICIT], rest)),
        }
        .ok_or(StreamFault::BadRecord)?;
        if rest.len() < TAG {
            return Err(StreamFault::BadRecord);
        }
        Ok((*head, explicit, rest))
    }

    /// The nonce of the next record, and what is authenticated with it.
    fn around(&self, head: [u8; HEAD], explicit: [u8; EXPLICIT], sealed: usize) -> (Nonce, [u8; 13], usize) {
        let mut nonce = self.key.nonce(self.number);
        if self.key.form == Form::Explicit {
            nonce = self.key.iv;
            nonce[NONCE_LEN - EXPLICIT..].copy_from_slice(&explicit);
        }
        let nonce = Nonce::assume_unique_for_key(nonce);
        if self.key.form == Form::Tls13 {
            let mut data = [0; 13];
            data[..HEAD].copy_from_slice(&head);
            (nonce, data, HEAD)
        } else {
            (nonce, associated(self.number, head[0], sealed), 13)
        }
    }

    /// What an opened record carries and how long it is; wiped if it may not be.
    fn checked(&mut self, outer: u8, opened: bool, content: &mut [u8]) -> Result<(Kind, usize), StreamFault> {
        if !opened {
            wipe(content);
            return Err(StreamFault::BadRecord);
        }
        self.number += 1;
        let checked = match self.key.form {
            Form::Tls13 => inner(content),
            Form::Explicit | Form::Counted => Kind::of(outer).map(|kind| (kind, content.len())),
        };
        let checked = checked.and_then(|(kind, len)| match len {
            ..=CONTENT_MAX => Ok((kind, len)),
            _ => Err(StreamFault::RecordOverflow),
        });
        if checked.is_err() {
            wipe(content);
        }
        checked
    }
}

/// The type behind the content, in front of padding with zeros: RFC 8446 section 5.4.
fn inner(opened: &[u8]) -> Result<(Kind, usize), StreamFault> {
    // With the type, so that padding counts: no sender has a reason to exceed it.
    if opened.len() > CONTENT_MAX + 1 {
        return Err(StreamFault::RecordOverflow);
    }
    let Some(at) = opened.iter().rposition(|byte| *byte != 0) else { return Err(StreamFault::UnexpectedMessage) };
    Ok((Kind::of(opened[at])?, at))
}
