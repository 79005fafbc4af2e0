//! Looks for the model in a multipart form (RFC 7578) as it passes. Edits nothing.

use super::Denied;
use super::Models;
use crate::hygiene::wipe::wipe;
use crate::meter::MODEL_BYTES_MAX;

/// RFC 2046 section 5.1.1: at most 70 letters.
const BOUNDARY_MAX: usize = 70;
/// A part's head; real ones have 200 bytes.
const HEAD_MAX: usize = 4096;

pub(super) struct Form {
    models: Models,
    /// `\n--` and the boundary: a part ends there, also for readers that do without the `\r` in front.
    delimiter: Vec<u8>,
    /// How much of it has just been read.
    matched: usize,
    state: State,
    /// The part's head so far, or the model's name so far.
    text: Vec<u8>,
    model_seen: bool,
    model: [u8; MODEL_BYTES_MAX],
    model_len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before the first delimiter.
    Preamble,
    /// Behind a delimiter: two dashes end the form, a line end begins a part.
    Behind,
    Head,
    /// In a part that does not matter.
    Skip,
    Model,
    End,
}

impl Form {
    /// `None`: the boundary that `content_type` names is none.
    pub(super) fn new(content_type: &[u8], models: Models) -> Option<Self> {
        let text = std::str::from_utf8(content_type).ok()?;
        let mut boundaries = text.split(';').skip(1).filter_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
        });
        let boundary = boundaries.next().filter(|boundary| !boundary.is_empty() && boundary.len() <= BOUNDARY_MAX)?;
        if boundaries.next().is_some() {
            return None;
        }
        let delimiter = [b"\n--", boundary.as_bytes()].concat();
        Some(Self {
            models,
            // The first delimiter may stand at the very beginning.
            matched: 1,
            delimiter,
            state: State::Preamble,
            text: Vec::with_capacity(HEAD_MAX),
            model_seen: false,
            model: [0; MODEL_BYTES_MAX],
            model_len: 0,
        })
    }

    pub(super) fn model(&self) -> Option<&[u8]> {
        (self.model_len > 0).then(|| &self.model[..self.model_len])
    }

    pub(super) fn forget_model(&mut self) {
        wipe(&mut self.model);
        self.model_len = 0;
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), Denied> {
        let mut place = 0;
        while let Some(&byte) = bytes.get(place) {
            match self.state {
                State::End => return Ok(()),
                State::Behind | State::Head => {
                    self.head_byte(byte)?;
                    place += 1;
                }
                State::Preamble | State::Skip | State::Model => {
                    if self.matched == 0 && self.state != State::Model {
                        // Files are skipped at memory speed.
                        match memchr::memchr(b'\n', &bytes[place..]) {
                            Some(ahead) => place += ahead,
                            None => return Ok(()),
                        }
                    }
                    self.content_byte(bytes[place])?;
                    place += 1;
                }
            }
        }
        Ok(())
    }

    fn content_byte(&mut self, byte: u8) -> Result<(), Denied> {
        if self.state == State::Model {
            if self.text.len() >= HEAD_MAX {
                return Err(Denied::Unreadable);
            }
            self.text.push(byte);
        }
        if byte == self.delimiter[self.matched] {
            self.matched += 1;
            if self.matched == self.delimiter.len() {
                self.matched = 0;
                if self.state == State::Model {
                    self.end_model()?;
                }
                self.text.clear();
                self.state = State::Behind;
            }
        } else {
            // A line feed stands at its beginning only.
            self.matched = usize::from(byte == b'\n');
        }
        Ok(())
    }

    fn head_byte(&mut self, byte: u8) -> Result<(), Denied> {
        if self.text.len() >= HEAD_MAX {
            return Err(Denied::Unreadable);
        }
        self.text.push(byte);
        if self.state == State::Behind {
            match self.text.as_slice() {
                b"--" => self.state = State::End,
                [.., b'\n'] if self.text.iter().all(u8::is_ascii_whitespace) => {
                    self.text.clear();
                    self.state = State::Head;
                }
                b"-" => {}
                text if text.iter().all(u8::is_ascii_whitespace) => {}
                // The boundary is the beginning of something longer: readers differ.
                _ => return Err(Denied::Unreadable),
            }
        } else if matches!(self.text.as_slice(), b"\n" | b"\r\n")
            || self.text.ends_with(b"\n\n")
            || self.text.ends_with(b"\n\r\n")
        {
            let is_model = self.head_is_models()?;
            wipe(&mut self.text);
            self.text.clear();
            // An empty part's delimiter begins with the line end that ended its head.
            self.matched = 1;
            self.state = if is_model { State::Model } else { State::Skip };
        }
        Ok(())
    }

    /// Whether the head is that of the field `model`.
    fn head_is_models(&self) -> Result<bool, Denied> {
        let head = std::str::from_utf8(&self.text).map_err(|_| Denied::Unreadable)?;
        let mut is_model = false;
        let mut encoded = false;
        for line in head.lines() {
            let Some((name, value)) = line.split_once(':') else {
                if line.is_empty() {
                    continue;
                }
                // Folded lines, or something else that readers differ over.
                return Err(Denied::Unreadable);
            };
            let value = value.trim();
            if name.trim().eq_ignore_ascii_case("content-transfer-encoding") {
                encoded |= !["7bit", "8bit", "binary"].iter().any(|plain| value.eq_ignore_ascii_case(plain));
            }
            if !name.trim().eq_ignore_ascii_case("content-disposition") {
                continue;
            }
            for parameter in value.split(';').skip(1) {
                let Some((name, value)) = parameter.split_once('=') else { continue };
                let name = name.trim();
                if name.eq_ignore_ascii_case("name*") || value.contains('\\') && name.eq_ignore_ascii_case("name") {
                    return Err(Denied::Unreadable);
                }
                let value = value.trim().trim_matches('"').trim();
                is_model |= name.eq_ignore_ascii_case("name")
                    && (value.eq_ignore_ascii_case("model") || value.eq_ignore_ascii_case("model[]"));
            }
        }
        if is_model && encoded { Err(Denied::Unreadable) } else { Ok(is_model) }
    }

    fn end_model(&mut self) -> Result<(), Denied> {
        let len = self.text.len() - self.delimiter.len();
        let value = &self.text[..len];
        let value = value.strip_suffix(b"\r").unwrap_or(value).trim_ascii();
        self.model_seen = true;
        if !self.models.allows(value, true) {
            return Err(Denied::Model);
        }
        if value.len() <= MODEL_BYTES_MAX {
            self.model_len = value.len();
            self.model[..value.len()].copy_from_slice(value);
        }
        wipe(&mut self.text);
        Ok(())
    }

    /// The form has ended.
    pub(super) fn finish(&mut self, model_required: bool) -> Result<(), Denied> {
        if self.state != State::End {
            return Err(Denied::Unreadable);
        }
        if model_required && !self.model_seen { Err(Denied::Model) } else { Ok(()) }
    }
}

impl Drop for Form {
    fn drop(&mut self) {
        wipe(&mut self.text);
        wipe(&mut self.model);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &[u8] = b"multipart/form-data; boundary=\"xYz\"";

    fn walk(body: &str, step: usize) -> Result<Option<Vec<u8>>, Denied> {
        let mut form = Form::new(TYPE, Models::matching(&["whisper-*".to_owned()])).unwrap();
        for piece in body.as_bytes().chunks(step) {
            form.feed(piece)?;
        }
        form.finish(true)?;
        Ok(form.model().map(<[u8]>::to_vec))
    }

    fn each_cut(body: &str, expected: Result<Option<&[u8]>, Denied>) {
        for step in [1, 2, 3, 5, 7, 64, 4096] {
            assert_eq!(walk(body, step), expected.map(|model| model.map(<[u8]>::to_vec)), "{step}: {body}");
        }
    }

    fn part(name: &str, value: &str) -> String {
        format!("--xYz\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    }

    #[test]
    fn the_model_is_found_wherever_it_stands() {
        let file = "--xYz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"model\"\r\n\
                    Content-Type: audio/wav\r\n\r\nRIFF\r\n--xY\n--x\r\n\r\n";
        let good = part("model", "whisper-1");
        let bad = part("model", "other");
        let end = "--xYz--\r\n";
        each_cut(&format!("{good}{file}{end}"), Ok(Some(b"whisper-1")));
        each_cut(&format!("{file}{good}{end}"), Ok(Some(b"whisper-1")));
        each_cut(&format!("preamble\r\n{file}{good}{end}epilogue"), Ok(Some(b"whisper-1")));
        each_cut(&format!("{file}{bad}{end}"), Err(Denied::Model));
        each_cut(&format!("{good}{bad}{end}"), Err(Denied::Model));
        each_cut(&format!("{bad}{good}{end}"), Err(Denied::Model));
        each_cut(&format!("{file}{end}"), Err(Denied::Model));
        each_cut(&format!("{good}{file}"), Err(Denied::Unreadable));
        each_cut(&format!("{}{end}", bad.replace("\r\n", "\n")), Err(Denied::Model));
        each_cut(&format!("{good}{}{end}", bad.replace("\"model\"", "Model")), Err(Denied::Model));
        each_cut(&good.replace("name=", "name*=utf-8''model; x="), Err(Denied::Unreadable));
        each_cut("--xYzz\r\n", Err(Denied::Unreadable));
        each_cut(&format!("{}{good}{end}", part("prompt", "")), Ok(Some(b"whisper-1")));
        each_cut(
            &format!("--xYz\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\n--xYz{}{end}", &good[5..]),
            Ok(Some(b"whisper-1")),
        );
    }

    #[test]
    fn boundaries() {
        assert!(Form::new(b"multipart/form-data", Models::default()).is_none());
        assert!(Form::new(b"multipart/form-data; boundary=", Models::default()).is_none());
        assert!(Form::new(b"multipart/form-data; boundary=a; boundary=b", Models::default()).is_none());
        assert!(Form::new(b"multipart/form-data; charset=x; Boundary=a", Models::default()).is_some());
    }
}
