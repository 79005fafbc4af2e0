//! Client keys: their text, the file that lists their hashes, and the table that a request's key is looked up in.

mod file;
mod table;
mod text;

pub(crate) use file::FileFault;
pub(crate) use file::Record;
pub(crate) use file::Track;
pub(crate) use file::change;
pub(crate) use file::is_name;
pub(crate) use file::is_pattern;
pub(crate) use file::read;
pub(crate) use file::read_lines;
pub(crate) use text::HashKey;
pub(crate) use text::generate;
pub(crate) use text::is_key;
pub(crate) use text::random_name;
