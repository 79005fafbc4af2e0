//! What a record costs: the door for `benches/request.rs`, in no other build.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Journal;
use super::Opened;
use super::Rotation;
use super::event;

/// A journal whose records are taken by hand, so that no other thread works meanwhile.
pub struct Records {
    opened: Opened,
    lines: event::Lines,
    text: String,
}

impl Records {
    /// Whose file stands in `folder`.
    pub fn new(folder: &Path) -> Self {
        let rotation = Arc::new(Rotation::new(1 << 30, Duration::from_secs(3600)));
        let Ok(opened) = super::open(folder, rotation) else { panic!("the folder can be written to") };
        Self { opened, lines: event::Lines::default(), text: String::new() }
    }

    pub(crate) fn journal(&self) -> Journal {
        self.opened.journal().clone()
    }

    /// Takes the records that wait and makes a line of each, as the writer does. Returns how many bytes they have.
    pub fn lines(&mut self) -> usize {
        self.text.clear();
        while let Ok(event) = self.opened.events.try_recv() {
            self.lines.put(&event, &mut self.text);
        }
        self.text.len()
    }

    /// Takes the records that wait, and makes nothing of them.
    pub fn forget(&mut self) {
        while self.opened.events.try_recv().is_ok() {}
    }
}
