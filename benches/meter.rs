//! How fast the meter is, beside a parse of the same bytes by a JSON crate.
//!
//! `cargo bench --bench meter` prints bytes a second: the best of many rounds, because others may be using the machine.
//! `cargo bench --bench meter -- --check` counts instructions instead, which a busy machine does not change, and holds
//! them against `benches/meter.instructions`; `-- --bless` writes that file. Both need `valgrind`.

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use nullhop::meter::Api;
use nullhop::meter::Framing;
use nullhop::meter::Meter;
use nullhop::meter::Usage;

/// What is metered: a name, the dialect, the framing and the bytes.
struct Work {
    name: &'static str,
    api: Api,
    framing: Framing,
    bytes: Vec<u8>,
}

/// Bytes that a read from an upstream gives at most; pieces of this size are fed.
const PIECE: usize = 16 * 1024;

/// Bytes of each work.
const SIZE: usize = 1 << 20;

/// How much more than the recorded instructions are let pass, in percent.
const TOLERANCE: u64 = 5;

fn works() -> Vec<Work> {
    let chat_event = |text: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m-1\",\
             \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let usage = "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"total_tokens\":11}";
    let mut chat = String::new();
    while chat.len() < SIZE {
        chat.push_str(&chat_event("abcd"));
    }
    chat.push_str(&format!("data: {{\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n"));
    let mut anthropic = String::from(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":9}}}\n\n",
    );
    while anthropic.len() < SIZE {
        anthropic.push_str(
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\
             \"text_delta\",\"text\":\" some words\"}}\n\n",
        );
    }
    anthropic.push_str(
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":5}}\n\n",
    );
    let long = "words of an answer, with a \\\"quote\\\" and a line\\nnow and then. ".repeat(SIZE / 64);
    let long = format!("{{\"model\":\"m\",\"choices\":[{{\"message\":{{\"content\":\"{long}\"}}}}],{usage}}}");
    let plain = "c3RyaW5ncyBhcyBsb25nIGFzIGltYWdlcyBhcmU".repeat(SIZE / 40);
    let plain = format!("{{\"data\":[{{\"b64_json\":\"{plain}\"}}],\"usage\":{{\"input_tokens\":9}}}}");
    let floats = (0..SIZE / 12).map(|at| format!("-0.0{}", 12345678 + at)).collect::<Vec<_>>().join(",");
    let floats = format!("{{\"data\":[{{\"embedding\":[{floats}]}}],{usage}}}");
    let work = |name, api, framing, text: String| Work { name, api, framing, bytes: text.into_bytes() };
    vec![
        work("chat events of 160 bytes", Api::OpenaiChat, Framing::Sse, chat),
        work("anthropic events", Api::Anthropic, Framing::Sse, anthropic),
        work("one answer of long text", Api::OpenaiChat, Framing::Json, long),
        work("an image in base64", Api::OpenaiMedia, Framing::Json, plain),
        work("an embedding", Api::OpenaiChat, Framing::Json, floats),
    ]
}

/// Meters a work. `--check` counts the instructions in here, by this name.
#[inline(never)]
fn metered_work(work: &Work) -> u64 {
    let mut meter = Meter::new(work.api, work.framing);
    for piece in work.bytes.chunks(PIECE) {
        meter.feed(black_box(piece));
    }
    let report = meter.finish();
    assert!(report.usage != Usage::Absent, "{}", work.name);
    report.input.unwrap_or(0)
}

/// The documents of a work, each to be parsed as a whole.
fn documents(work: &Work) -> Vec<&[u8]> {
    if work.framing == Framing::Json {
        return vec![&work.bytes];
    }
    let lines = work.bytes.split(|byte| *byte == b'\n');
    lines.filter_map(|line| line.strip_prefix(b"data: ")).filter(|data| data.starts_with(b"{")).collect()
}

fn sonic(documents: &[&[u8]]) {
    for document in documents {
        let value: sonic_rs::Value = sonic_rs::from_slice(black_box(document)).expect("JSON");
        black_box(&value);
    }
}

fn simd(documents: &[&[u8]], buffers: &mut simd_json::Buffers, copy: &mut Vec<u8>) {
    for document in documents {
        copy.clear();
        copy.extend_from_slice(black_box(document));
        let tape = simd_json::to_tape_with_buffers(copy, buffers).expect("JSON");
        black_box(&tape);
    }
}

/// The best time of a second's rounds.
fn best(mut round: impl FnMut()) -> Duration {
    let begun = Instant::now();
    let mut best = Duration::MAX;
    while begun.elapsed() < Duration::from_millis(700) {
        let begun = Instant::now();
        round();
        best = best.min(begun.elapsed());
    }
    best
}

/// Instructions that metering each work takes.
fn instructions() -> Vec<(&'static str, u64)> {
    let program = std::env::current_exe().expect("this program");
    let counted = works().into_iter().enumerate().map(|(at, work)| {
        let out = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*metered_work*"])
            .arg(&program)
            .args(["--work", &at.to_string()])
            .output()
            .expect("valgrind");
        let said = String::from_utf8_lossy(&out.stderr);
        let collected = said.lines().find_map(|line| line.split_once("Collected :")).expect("a count");
        (work.name, collected.1.trim().parse().expect("a number"))
    });
    counted.collect()
}

/// Holds the instructions against the record; `false` if one has grown.
fn check(record: &str) -> bool {
    let mut good = true;
    for (name, counted) in instructions() {
        let recorded = record.lines().filter_map(|line| line.rsplit_once(": ")).find(|(work, _)| *work == name);
        let recorded: u64 = recorded.and_then(|(_, count)| count.parse().ok()).unwrap_or(0);
        let more = counted > recorded + recorded * TOLERANCE / 100;
        good &= !more;
        println!("{name:<28} {counted:>12} recorded {recorded:>12} {}", if more { "MORE" } else { "" });
    }
    good
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/meter.instructions");
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    if let Some(at) = arguments.iter().position(|argument| argument == "--work") {
        let at: usize = arguments.get(at + 1).and_then(|at| at.parse().ok()).expect("a number");
        black_box(metered_work(&works()[at]));
    } else if flag("--bless") {
        let lines: Vec<String> = instructions().iter().map(|(name, count)| format!("{name}: {count}\n")).collect();
        std::fs::write(file, lines.concat()).expect("the record");
    } else if flag("--check") {
        let record = std::fs::read_to_string(file).expect("the record");
        assert!(check(&record), "more instructions than recorded, by over {TOLERANCE} %");
    } else {
        speeds();
    }
}

fn speeds() {
    println!("{:<28} {:>10} {:>10} {:>10} {:>7}", "work", "meter", "sonic-rs", "simd-json", "ratio");
    for work in works() {
        let documents = documents(&work);
        let speed = |time: Duration| work.bytes.len() as f64 / time.as_secs_f64() / 1e9;
        let ours = speed(best(|| {
            black_box(metered_work(&work));
        }));
        let sonic = speed(best(|| sonic(&documents)));
        let (mut buffers, mut copy) = (simd_json::Buffers::new(1 << 21), Vec::new());
        let simd = speed(best(|| simd(&documents, &mut buffers, &mut copy)));
        let ratio = ours / sonic.max(simd);
        println!("{:<28} {ours:>5.2} GB/s {sonic:>5.2} GB/s {simd:>5.2} GB/s {ratio:>7.1}", work.name);
    }
}
