//! Every vector, whole and cut; the meter beside its naive twin; what is held and wiped.

use std::path::Path;

use serde_json::Value;

use super::*;

/// A vector: its name, dialect, framing, bytes, expectation and where to cut it.
pub(super) struct Vector {
    pub(super) name: String,
    pub(super) api: Api,
    pub(super) framing: Framing,
    pub(super) bytes: Vec<u8>,
    expect: Value,
    splits: Vec<usize>,
}

pub(super) fn vectors() -> Vec<Vector> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let manifest = std::fs::read(folder.join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("manifest");
    let entries = manifest["vectors"].as_array().expect("vectors");
    let vectors = entries.iter().map(|entry| {
        assert!(entry["content_encoding"].is_null(), "decoding stands elsewhere");
        let name = entry["file"].as_str().expect("file").to_owned();
        Vector {
            api: api(entry["dialect"].as_str().expect("dialect")),
            framing: match entry["framing"].as_str().expect("framing") {
                "json" => Framing::Json,
                "sse" => Framing::Sse,
                "json_array" => Framing::Array,
                "ws_jsonl" => Framing::Messages,
                "eventstream" => Framing::EventStream,
                other => panic!("framing {other}"),
            },
            bytes: std::fs::read(folder.join(&name)).expect("vector"),
            expect: entry["expect"].clone(),
            splits: entry["splits"]
                .as_array()
                .expect("splits")
                .iter()
                .map(|at| at.as_u64().expect("an offset") as usize)
                .collect(),
            name,
        }
    });
    vectors.collect()
}

fn api(dialect: &str) -> Api {
    match dialect {
        "openai_chat" => Api::OpenaiChat,
        "openai_responses" => Api::OpenaiResponses,
        "openai_media" => Api::OpenaiMedia,
        "openai_realtime" => Api::OpenaiRealtime,
        "openai_live" => Api::OpenaiLive,
        "anthropic" => Api::Anthropic,
        "gemini" => Api::Gemini,
        "gemini_live" => Api::GeminiLive,
        "gemini_interactions" => Api::GeminiInteractions,
        "bedrock_converse" => Api::BedrockConverse,
        "bedrock_invoke" => Api::BedrockInvoke,
        other => panic!("dialect {other}"),
    }
}

/// What a meter says of `bytes`, cut at `cuts`; WebSocket messages are lines.
pub(super) fn metered(api: Api, framing: Framing, bytes: &[u8], cuts: &[usize]) -> (Report, Option<Vec<u8>>, u64) {
    let mut meter = Meter::new(api, framing);
    let mut from = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let piece = &bytes[from..cut];
        from = cut;
        if framing == Framing::Messages {
            let mut rest = piece;
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                meter.feed(&rest[..end]);
                meter.message_end();
                rest = &rest[end + 1..];
            }
            meter.feed(rest);
        } else {
            meter.feed(piece);
        }
    }
    let report = meter.finish();
    assert_eq!(meter.finish(), report, "once more");
    (report, meter.model().map(<[u8]>::to_vec), meter.output_events())
}

/// A small generator of numbers, the same for the same seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % sides.max(1)
    }

    /// Up to eight places to cut `length` bytes at, in order.
    pub(super) fn cuts(&mut self, length: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = (0..self.roll(9)).map(|_| self.roll(length + 1)).collect();
        cuts.sort_unstable();
        cuts
    }
}

#[test]
fn every_vector_gives_its_result_however_it_is_cut() {
    let mut dice = Dice(0x1dea);
    let mut wrong = Vec::new();
    let vectors = vectors();
    assert!(vectors.len() > 50);
    for vector in &vectors {
        let metered = |cuts: &[usize]| metered(vector.api, vector.framing, &vector.bytes, cuts);
        let whole = metered(&[]);
        let (report, model, _) = &whole;
        let figure = |name: &str| vector.expect[name].as_u64();
        let word = |name: &str| vector.expect[name].as_str().expect("a word").to_owned();
        let usage = match report.usage {
            Usage::Final => "final",
            Usage::Provisional => "provisional",
            Usage::Absent => "absent",
        };
        let end = match report.end {
            End::Clean => "clean",
            End::Error => "error",
            End::Cut => "cut",
        };
        let right = usage == word("usage")
            && end == word("end")
            && report.input == figure("input")
            && report.cached == figure("cached")
            && report.cache_write == figure("cache_write")
            && report.output == figure("output")
            && report.reasoning == figure("reasoning")
            && Some(report.side_input) == figure("side_input")
            && Some(report.side_output) == figure("side_output")
            && report.seconds == vector.expect["seconds"].as_f64()
            && model.as_deref() == vector.expect["model"].as_str().map(str::as_bytes)
            && !report.gave_up;
        if !right {
            wrong.push(format!("{}: {report:?} {:?}", vector.name, model.as_ref().map(|m| String::from_utf8_lossy(m))));
        }
        let all: Vec<usize> = (0..vector.bytes.len()).collect();
        assert_eq!(metered(&all), whole, "{} byte by byte", vector.name);
        assert_eq!(metered(&vector.splits), whole, "{} at its splits", vector.name);
        for split in &vector.splits {
            assert_eq!(metered(&[*split]), whole, "{} at {split}", vector.name);
        }
        if vector.bytes.len() < 10_000 {
            for cut in &all {
                assert_eq!(metered(&[*cut]), whole, "{} at {cut}", vector.name);
            }
        }
        for _ in 0..100 {
            let cuts = dice.cuts(vector.bytes.len());
            assert_eq!(metered(&cuts), whole, "{} at {cuts:?}", vector.name);
        }
        if vector.framing == Framing::Array {
            assert_eq!(super::tests::metered(vector.api, Framing::Json, &vector.bytes, &[]), whole, "{}", vector.name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
