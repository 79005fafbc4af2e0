//! The directory of ready-made replies and its manifest.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

/// One file, read when the provider starts.
#[derive(Clone, Debug)]
pub struct Vector {
    /// The file, byte-exact.
    pub bytes: Bytes,
    /// None for WebSocket messages.
    pub content_type: Option<String>,
    /// As in the manifest: `json`, `sse`, `json_array`, `ws_jsonl`, `eventstream`.
    pub framing: String,
    /// 200, unless the endpoint's remark says `(HTTP N)`.
    pub status: StatusCode,
    /// Set where the bytes are compressed.
    pub content_encoding: Option<String>,
    /// Offsets worth cutting at.
    pub splits: Vec<u64>,
}

/// All files of a directory by name.
#[derive(Clone, Debug, Default)]
pub struct Vectors {
    files: HashMap<String, Vector>,
}

impl Vectors {
    /// Reads `manifest.json` and the files it names.
    pub fn load(directory: &Path) -> io::Result<Vectors> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let manifest: Value = serde_json::from_slice(&fs::read(directory.join("manifest.json"))?)?;
        let entries = manifest["vectors"].as_array().ok_or_else(|| invalid("manifest without vectors"))?;
        let mut files = HashMap::new();
        for entry in entries {
            let file = entry["file"].as_str().ok_or_else(|| invalid("vector without a file"))?;
            let text = |key: &str| entry[key].as_str().map(str::to_owned);
            let status = text("endpoint").and_then(|endpoint| {
                let (_, status) = endpoint.split_once("(HTTP ")?;
                StatusCode::from_bytes(status.get(..3)?.as_bytes()).ok()
            });
            let vector = Vector {
                bytes: fs::read(directory.join(file))?.into(),
                content_type: text("content_type"),
                framing: text("framing").unwrap_or_default(),
                status: status.unwrap_or(StatusCode::OK),
                content_encoding: text("content_encoding"),
                splits: entry["splits"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect(),
            };
            files.insert(file.to_owned(), vector);
        }
        Ok(Vectors { files })
    }

    /// A file of the manifest.
    pub fn get(&self, name: &str) -> Option<&Vector> {
        self.files.get(name)
    }

    /// The names, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.files.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}
