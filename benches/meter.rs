//! How fast the meter is, beside a parse of the same bytes by a JSON crate.
//!
//! `cargo bench --bench meter` prints bytes a second: the best of many rounds, because others may be using the machine.
//! `cargo bench --bench meter -- --check` counts instructions instead (see `counted`) and holds them against
//! `benches/meter.instructions`; `-- --bless` writes that file. Both need `valgrind`.

mod counted;

use std::hint::black_box;
use std::time::Duration;
use std::time::Instant;

use nullhop::meter::Api;
use nullhop::meter::Framing;
use nullhop::meter::Meter;
use nullhop::meter::Usage;

/// What is metered: a name, the dialect, the framing, the bytes and where each piece of them ends.
struct Work {
    name: &'static str,
    api: Api,
    framing: Framing,
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// Bytes that a read from an upstream gives at most; pieces of this size are fed.
const PIECE: usize = 16 * 1024;

/// Bytes of each work.
const SIZE: usize = 1 << 20;

/// What events carry, one after the other: texts as tokens have them.
const TEXTS: [&str; 16] = [
    "The", " answer", " is", ",", " as", " so", " often", ":", "\\n\\n", " it", " depends", " \\\"on", "\\\"", " what",
    " you", " compute",
];

fn works() -> Vec<Work> {
    let chat_event = |text: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"m-1\",\
             \"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
        )
    };
    let usage = "\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"total_tokens\":11}";
    let mut texts = TEXTS.iter().cycle();
    let mut text = || texts.next().copied().unwrap_or_default();
    let mut chat = String::new();
    while chat.len() < SIZE {
        chat.push_str(&chat_event(text()));
    }
    chat.push_str(&format!("data: {{\"choices\":[],{usage}}}\n\ndata: [DONE]\n\n"));
    let mut anthropic = String::from(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"input_tokens\":9}}}\n\n",
    );
    while anthropic.len() < SIZE {
        anthropic.push_str(&format!(
            "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\
             \"text_delta\",\"text\":\"{}\"}}}}\n\n",
            text()
        ));
    }
    anthropic.push_str(
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":5}}\n\n",
    );
    let mut responses = String::new();
    let mut number = 0_u32;
    while responses.len() < SIZE {
        number += 1;
        responses.push_str(&format!(
            "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",\"sequence_number\":{number},\
             \"item_id\":\"msg_1\",\"output_index\":0,\"content_index\":0,\"delta\":\"{}\",\"logprobs\":[],\
             \"obfuscation\":\"{:x}\"}}\n\n",
            text(),
            u64::from(number.wrapping_mul(0x9E37_79B9)) << (number % 32),
        ));
    }
    responses.push_str(
        "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"model\":\"m\",\"usage\":\
         {\"input_tokens\":9,\"output_tokens\":5}}}\n\n",
    );
    let long = "words of an answer, with a \\\"quote\\\" and a line\\nnow and then. ".repeat(SIZE / 64);
    let long = format!("{{\"model\":\"m\",\"choices\":[{{\"message\":{{\"content\":\"{long}\"}}}}],{usage}}}");
    let plain = "c3RyaW5ncyBhcyBsb25nIGFzIGltYWdlcyBhcmU".repeat(SIZE / 40);
    let plain = format!("{{\"data\":[{{\"b64_json\":\"{plain}\"}}],\"usage\":{{\"input_tokens\":9}}}}");
    let floats = (0..SIZE / 12).map(|at| format!("-0.0{}", 12345678 + at)).collect::<Vec<_>>().join(",");
    let floats = format!("{{\"data\":[{{\"embedding\":[{floats}]}}],{usage}}}");
    let work = |name, api, framing, text: String| Work {
        name,
        api,
        framing,
        ends: (PIECE..text.len()).step_by(PIECE).chain([text.len()]).collect(),
        bytes: text.into_bytes(),
    };
    let ends = chat.match_indices("\n\n").map(|(at, _)| at + 2).collect();
    let alone = Work { ends, ..work("each of them alone", Api::OpenaiChat, Framing::Sse, chat.clone()) };
    vec![
        work("chat events of 160 bytes", Api::OpenaiChat, Framing::Sse, chat),
        alone,
        work("responses events", Api::OpenaiResponses, Framing::Sse, responses),
        work("anthropic events", Api::Anthropic, Framing::Sse, anthropic),
        work("one answer of long text", Api::OpenaiChat, Framing::Json, long),
        work("an image in base64", Api::OpenaiMedia, Framing::Json, plain),
        work("an embedding", Api::OpenaiChat, Framing::Json, floats),
    ]
}

/// Meters a work.
fn metered(work: &Work) -> u64 {
    let mut meter = Meter::new(work.api, work.framing);
    let mut from = 0;
    for &end in &work.ends {
        meter.feed(black_box(&work.bytes[from..end]));
        from = end;
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

/// Parses each into a tape, with buffers that are used again: the least that the fastest JSON crate can do.
fn parsed(documents: &[&[u8]], buffers: &mut simd_json::Buffers, copy: &mut Vec<u8>) {
    for document in documents {
        copy.clear();
        copy.extend_from_slice(black_box(document));
        let tape = simd_json::to_tape_with_buffers(copy, buffers).expect("JSON");
        black_box(&tape);
    }
}

/// The best time of each, in rounds of two seconds in which they take turns.
fn best<const N: usize>(rounds: &mut [&mut dyn FnMut(); N]) -> [Duration; N] {
    let begun = Instant::now();
    let mut best = [Duration::MAX; N];
    while begun.elapsed() < Duration::from_secs(2) {
        for (round, best) in rounds.iter_mut().zip(&mut best) {
            let begun = Instant::now();
            round();
            *best = begun.elapsed().min(*best);
        }
    }
    best
}

/// The works, as they are counted.
fn as_counted() -> Vec<counted::Work> {
    let counted = works().into_iter().map(|work| counted::Work {
        name: work.name,
        calls: 1,
        prepare: Box::new(move || Box::new(move || _ = black_box(metered(&work)))),
    });
    counted.collect()
}

fn main() {
    let counted = counted::Counted { record: "meter.instructions", works: as_counted, blocks: None };
    if !counted.run() {
        speeds();
    }
}

fn speeds() {
    println!("{:<28} {:>10} {:>10} {:>7}", "work", "meter", "simd-json", "ratio");
    for work in works() {
        let documents = documents(&work);
        let speed = |time: Duration| work.bytes.len() as f64 / time.as_secs_f64() / 1e9;
        let (mut buffers, mut copy) = (simd_json::Buffers::new(1 << 21), Vec::new());
        let [ours, theirs] =
            best(&mut [&mut || _ = black_box(metered(&work)), &mut || parsed(&documents, &mut buffers, &mut copy)])
                .map(speed);
        println!("{:<28} {ours:>5.2} GB/s {theirs:>5.2} GB/s {:>7.1}", work.name, ours / theirs);
    }
}
