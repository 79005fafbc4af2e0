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

/// The meter's report as the twin would put it.
fn reading(report: &Report, model: Option<&[u8]>) -> twin::Reading {
    let figures = [report.input, report.cached, report.cache_write, report.output, report.reasoning];
    twin::Reading {
        usage: report.usage,
        end: report.end,
        figures: report.input.map(|_| figures.map(|figure| figure.expect("all or none"))),
        side: [report.side_input, report.side_output],
        seconds: report.seconds,
        model: model.map(|model| String::from_utf8_lossy(model).into_owned()),
    }
}

/// Holds the meter against its twin, and against itself cut elsewhere; whether the twin could say anything.
fn compare(api: Api, framing: Framing, bytes: &[u8], dice: &mut Dice) -> bool {
    let whole = metered(api, framing, bytes, &[]);
    for _ in 0..3 {
        let cuts = dice.cuts(bytes.len());
        assert!(metered(api, framing, bytes, &cuts) == whole, "cut at {cuts:?}: {}", String::from_utf8_lossy(bytes));
    }
    let Some(expected) = twin::read(api, framing, bytes) else { return false };
    let read = reading(&whole.0, whole.1.as_deref());
    assert_eq!(read, expected, "{api:?} {framing:?}: {}", String::from_utf8_lossy(bytes));
    true
}

#[test]
fn the_twin_agrees_on_every_vector() {
    let mut dice = Dice(1);
    for vector in vectors() {
        assert!(compare(vector.api, vector.framing, &vector.bytes, &mut dice), "{}", vector.name);
    }
}

/// Bytes that are changed at random: flipped, left out, said twice, or with a trap put in.
fn mutated(bytes: &[u8], dice: &mut Dice) -> Vec<u8> {
    const TRAPS: &[&str] = &[
        r#""usage":{"prompt_tokens":31337,"input_tokens":31337,"output_tokens":31337},"#,
        r#""metadata":{"usage":{"input_tokens":7,"prompt_tokens":7}},"#,
        r#""usage":null,"#,
        r#""us\u0061ge":{"input_tokens":11,"prompt_tokens":12,"completion_tokens":13},"#,
        r#""usageMetadata":{"promptTokenCount":5},"#,
        r#""usage":{},"#,
        r#""usage":[{"prompt_tokens":4}],"#,
        r#""choices":[],"#,
        r#""error":{"message":"no"},"#,
        r#""type":"response.completed","#,
        r#""input_tokens":17,"#,
        r#""output_tokens":-1,"#,
        r#""completion_tokens":1.5,"#,
        r#""prompt_tokens":100000001,"#,
        r#""model":"","#,
        r#""model":"other","#,
        r#""x":[[{"usage":{"a":"}]\\\""}}]],"#,
        "\ndata: ",
        "\r\n",
        ": usage\n",
        "event: error\n",
        "data: [DONE]\n\n",
        " ",
    ];
    let mut bytes = bytes.to_vec();
    for _ in 0..=dice.roll(3) {
        if bytes.is_empty() {
            break;
        }
        let from = dice.roll(bytes.len());
        let to = (from + 1 + dice.roll(40)).min(bytes.len());
        match dice.roll(8) {
            0 => bytes[from] ^= 1 << dice.roll(8),
            1 => bytes[from] = b"0123456789\"{}[],:\\\n nulltrue-."[dice.roll(30)],
            2 => _ = bytes.drain(from..to),
            3 => {
                let part = bytes[from..to].to_vec();
                let at = dice.roll(bytes.len());
                bytes.splice(at..at, part);
            }
            4 => bytes.truncate(from),
            5 => {
                // A whole line once more, or in another place.
                let line = bytes[..from].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
                let end = bytes[from..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |at| from + at + 1);
                let line = bytes[line..end].to_vec();
                let places: Vec<usize> = (0..bytes.len()).filter(|at| *at == 0 || bytes[at - 1] == b'\n').collect();
                let at = places[dice.roll(places.len())];
                bytes.splice(at..at, line);
            }
            _ => {
                // Right after an opening brace or a comma, where a key may stand.
                let places: Vec<usize> =
                    (1..bytes.len()).filter(|at| matches!(bytes[at - 1], b'{' | b',' | b'\n')).collect();
                if !places.is_empty() {
                    let at = places[dice.roll(places.len())];
                    bytes.splice(at..at, TRAPS[dice.roll(TRAPS.len())].bytes());
                }
            }
        }
    }
    bytes
}

#[test]
fn the_twin_agrees_on_mutated_vectors() {
    let vectors: Vec<Vector> = vectors().into_iter().filter(|vector| vector.bytes.len() < 10_000).collect();
    let mut dice = Dice(0xfeed);
    let mut said = 0;
    const CASES: usize = 12_000;
    for case in 0..CASES {
        let vector = &vectors[case % vectors.len()];
        let bytes = mutated(&vector.bytes, &mut dice);
        said += usize::from(compare(vector.api, vector.framing, &bytes, &mut dice));
    }
    assert!(said > CASES / 3, "only {said} could be compared");
}
