//! HPACK (RFC 7541): reading header blocks with their dynamic table, and the pieces of writing them.

use std::collections::VecDeque;

use super::huffman;
use crate::hygiene::wipe::wipe;

/// What a peer may index before it knows better (RFC 9113 section 6.5.2).
const TABLE_BYTES: usize = 4096;

/// What a field takes in a table or list beside its bytes (RFC 7541 section 4.1).
const FIELD_OVERHEAD: usize = 32;

/// RFC 7541 appendix A, numbers 1 to 61.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// The block is not HPACK, or refers to what is not there. The connection cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BadBlock;

/// How the next field stands in a block (RFC 7541 section 6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// One number: name and value.
    Indexed(usize),
    /// Name as a number (or 0 and a string), then the value. `indexed`: the table takes it.
    Literal { name: usize, indexed: bool },
    /// The table's new size.
    Size(usize),
}

/// Reads a block from its start.
pub(super) struct Reader<'a> {
    block: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(block: &'a [u8]) -> Self {
        Self { block, place: 0 }
    }

    /// What was read since `start`.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        &self.block[start..self.place]
    }

    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// The next field's form; `None` at the end.
    pub(super) fn form(&mut self) -> Result<Option<Form>, BadBlock> {
        let Some(first) = self.block.get(self.place) else { return Ok(None) };
        Ok(Some(match *first {
            0x80.. => Form::Indexed(self.int(7)?),
            0x40.. => Form::Literal { name: self.int(6)?, indexed: true },
            0x20.. => Form::Size(self.int(5)?),
            _ => Form::Literal { name: self.int(4)?, indexed: false },
        }))
    }

    /// RFC 7541 section 5.1, up to 2^28.
    fn int(&mut self, prefix: u32) -> Result<usize, BadBlock> {
        let mask = (1_usize << prefix) - 1;
        let mut value = usize::from(*self.block.get(self.place).ok_or(BadBlock)?) & mask;
        self.place += 1;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = usize::from(*self.block.get(self.place).ok_or(BadBlock)?);
            self.place += 1;
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BadBlock)
    }

    /// Appends the next string, decoded (RFC 7541 section 5.2).
    pub(super) fn string(&mut self, out: &mut Vec<u8>) -> Result<(), BadBlock> {
        let coded = self.block.get(self.place).ok_or(BadBlock)? & 0x80 != 0;
        let len = self.int(7)?;
        let text = self.block.get(self.place..).and_then(|rest| rest.get(..len)).ok_or(BadBlock)?;
        self.place += len;
        if coded {
            huffman::decode(text, out).ok_or(BadBlock)
        } else {
            out.extend_from_slice(text);
            Ok(())
        }
    }
}

/// Appends a number behind the bits in `first` (RFC 7541 section 5.1).
fn put_int(out: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Appends a string as it is.
pub(super) fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    put_int(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Appends a field that no table takes.
pub(super) fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    put_string(out, name);
    put_string(out, value);
}

/// A name and a value.
type Field = (Box<[u8]>, Box<[u8]>);

/// Reads a peer's blocks. Its table holds what the peer may refer to: blocks of its own, which the
/// allocator clears when they go.
pub(super) struct Decoder {
    table: VecDeque<Field>,
    bytes: usize,
    /// As the peer has set it.
    bytes_max: usize,
    /// What the peer may set.
    bytes_allowed: usize,
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Self {
        Self {
            table: VecDeque::new(),
            bytes: 0,
            bytes_max: TABLE_BYTES,
            bytes_allowed: TABLE_BYTES,
            name: Vec::new(),
            value: Vec::new(),
        }
    }

    /// The peer knows that it may not index. Its encoder has emptied its table, and says so at the
    /// start of its next block (RFC 7541 section 4.2); nothing in it will be referred to again.
    pub(super) fn no_table(&mut self) {
        self.bytes_allowed = 0;
        self.resize(0);
        self.table.shrink_to_fit();
    }

    /// Reads a whole block and shows each field's name and value.
    ///
    /// # Errors
    /// When it is not HPACK.
    pub(super) fn decode(&mut self, block: &[u8], mut each: impl FnMut(&[u8], &[u8])) -> Result<(), BadBlock> {
        let (mut name, mut value) = (std::mem::take(&mut self.name), std::mem::take(&mut self.value));
        let decoded = self.decode_with(block, &mut name, &mut value, &mut each);
        wipe(&mut name);
        wipe(&mut value);
        (self.name, self.value) = (name, value);
        decoded
    }

    fn decode_with(
        &mut self,
        block: &[u8],
        name: &mut Vec<u8>,
        value: &mut Vec<u8>,
        each: &mut impl FnMut(&[u8], &[u8]),
    ) -> Result<(), BadBlock> {
        let mut reader = Reader::new(block);
        let mut begun = false;
        while let Some(form) = reader.form()? {
            let (number, indexed) = match form {
                Form::Size(bytes) => {
                    // Only before the first field (RFC 7541 section 4.2).
                    if begun || bytes > self.bytes_allowed {
                        return Err(BadBlock);
                    }
                    self.resize(bytes);
                    continue;
                }
                Form::Indexed(number) => {
                    begun = true;
                    let (name, value) = self.field(number)?;
                    each(name, value);
                    continue;
                }
                Form::Literal { name, indexed } => (name, indexed),
            };
            begun = true;
            // Longer ones before may have left something behind the end.
            wipe(name);
            wipe(value);
            name.clear();
            value.clear();
            if number == 0 {
                reader.string(name)?;
            } else {
                name.extend_from_slice(self.field(number)?.0);
            }
            reader.string(value)?;
            each(name, value);
            if indexed {
                self.insert(name, value);
            }
        }
        Ok(())
    }

    fn field(&self, number: usize) -> Result<(&[u8], &[u8]), BadBlock> {
        match number {
            0 => Err(BadBlock),
            1..=61 => {
                let (name, value) = STATIC[number - 1];
                Ok((name.as_bytes(), value.as_bytes()))
            }
            _ => self.table.get(number - 62).map(|(name, value)| (&**name, &**value)).ok_or(BadBlock),
        }
    }

    fn insert(&mut self, name: &[u8], value: &[u8]) {
        let bytes = name.len() + value.len() + FIELD_OVERHEAD;
        // One that does not fit empties the table (RFC 7541 section 4.4).
        self.shrink(self.bytes_max.saturating_sub(bytes));
        if bytes <= self.bytes_max {
            self.table.push_front((name.into(), value.into()));
            self.bytes += bytes;
        }
    }

    fn resize(&mut self, bytes_max: usize) {
        self.bytes_max = bytes_max;
        self.shrink(bytes_max);
    }

    fn shrink(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some((name, value)) = self.table.pop_back() else { return };
            self.bytes -= name.len() + value.len() + FIELD_OVERHEAD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fields = Vec<(String, String)>;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, BadBlock> {
        let mut fields = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(block, |name, value| fields.push((text(name), text(value))))?;
        Ok(fields)
    }

    fn pairs(fields: &[(&str, &str)]) -> Fields {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// RFC 7541 appendix C.3 and C.4: three requests on one connection, plain and coded.
    #[test]
    fn the_rfcs_requests() {
        let plain: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x0fwww.example.com",
            b"\x82\x86\x84\xbe\x58\x08no-cache",
            b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
        ];
        let coded: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
            b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
        ];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::new();
            let common = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
            assert_eq!(decoded(&mut decoder, blocks[0]).expect("valid"), pairs(&common));
            let second = [&common[..], &[("cache-control", "no-cache")]].concat();
            assert_eq!(decoded(&mut decoder, blocks[1]).expect("valid"), pairs(&second));
            let third = [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                (":authority", "www.example.com"),
                ("custom-key", "custom-value"),
            ];
            assert_eq!(decoded(&mut decoder, blocks[2]).expect("valid"), pairs(&third));
            assert_eq!(decoder.bytes, 164, "as the RFC says");
        }
    }

    #[test]
    fn the_table_is_bounded_and_can_be_taken_away() {
        let mut decoder = Decoder::new();
        let mut block = vec![0x40];
        put_string(&mut block, b"x-a");
        put_string(&mut block, &[b'v'; 2000]);
        for _ in 0..10 {
            decoded(&mut decoder, &block).expect("valid");
            assert!(decoder.bytes <= TABLE_BYTES);
        }
        assert_eq!(decoder.table.len(), 2);
        decoder.no_table();
        assert_eq!((decoder.table.len(), decoder.bytes), (0, 0));
        assert_eq!(decoded(&mut decoder, &[0xbe]), Err(BadBlock), "what it referred to is gone");
        assert!(decoded(&mut decoder, &[0x20, 0x82]).is_ok(), "a size of zero is what the RFC asks for");
        decoded(&mut decoder, &block).expect("a peer that goes on indexing is understood");
        assert_eq!(decoder.table.len(), 0);
        assert_eq!(decoded(&mut decoder, &[0x3f, 0xe1, 0x1f]), Err(BadBlock), "4096 again");
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let bad: [&[u8]; 9] = [
            &[0x80],
            &[0xbe],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0x00],
            &[0x00, 0x05, b'a'],
            &[0x00, 0x01, b'a'],
            &[0x00, 0x01, b'a', 0x81, 0x00],
            &[0x82, 0x20],
            &[0x7f],
        ];
        for block in bad {
            assert_eq!(decoded(&mut Decoder::new(), block), Err(BadBlock), "{block:x?}");
        }
    }

    #[test]
    fn numbers_of_all_sizes_survive() {
        for value in [0, 1, 14, 15, 16, 30, 31, 126, 127, 128, 255, 1337, 16_383, 1 << 20] {
            for prefix in 4..=7 {
                let mut out = Vec::new();
                put_int(&mut out, 0, prefix, value);
                let mut reader = Reader::new(&out);
                assert_eq!(reader.int(prefix), Ok(value));
                assert_eq!(reader.place(), out.len());
            }
        }
    }
}
