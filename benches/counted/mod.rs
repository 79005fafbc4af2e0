//! Work that is counted in instructions and not in time: a busy machine does not change them, so they can be held against
//! a record, also where nobody knows how fast the machine is.
//!
//! Counts are those of valgrind's callgrind, which runs this very program once for each work. They belong to a compiler and
//! to what valgrind knows of the processor (it does not have SHA-NI, for one): the record says which compiler it was. What
//! is allocated is counted beside it, where the bench counts blocks.

use std::hint::black_box;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// How many more instructions than recorded are let pass, in percent. Blocks of memory are not estimated: one more is more.
const TOLERANCE: u64 = 5;

/// One work.
pub struct Work {
    pub name: &'static str,
    /// Calls that are counted, after as many that are not: what is made at its first use is not counted.
    pub calls: u64,
    /// Makes what the work needs, and gives the work.
    pub prepare: Box<dyn FnOnce() -> Box<dyn FnMut()>>,
}

/// A bench's works, and its record.
pub struct Counted {
    /// In `benches/`.
    pub record: &'static str,
    pub works: fn() -> Vec<Work>,
    /// Blocks of memory that were asked for so far.
    pub blocks: Option<fn() -> u64>,
}

/// What one call of a work takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    instructions: u64,
    blocks: Option<u64>,
}

impl Counted {
    /// Does what the command line asks for. `false`: it asks for no counts.
    pub fn run(&self) -> bool {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let after = |flag: &str| arguments.iter().position(|argument| argument == flag).map(|place| place + 1);
        if let Some(at) = after("--work") {
            let at: usize = arguments.get(at).and_then(|at| at.parse().ok()).expect("the place of a work");
            self.one(at);
        } else if after("--bless").is_some() {
            let lines = self.costs().into_iter().map(|(name, cost)| match cost.blocks {
                Some(blocks) => format!("{name}: {} instructions, {blocks} blocks\n", cost.instructions),
                None => format!("{name}: {} instructions\n", cost.instructions),
            });
            let text = format!("# {}\n{}", compiler(), lines.collect::<String>());
            std::fs::write(self.path(), text).expect("the record is written");
        } else if after("--check").is_some() {
            assert!(self.check(), "more than recorded: see above. Where that is meant, `-- --bless` records it");
        } else {
            return false;
        }
        true
    }

    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("benches").join(self.record)
    }

    /// The child's part: does one work, and says how many blocks it asked for.
    fn one(&self, at: usize) {
        let work = (self.works)().swap_remove(at);
        let mut call = (work.prepare)();
        for _ in 0..work.calls {
            call();
        }
        let before = self.blocks.map(|blocks| blocks());
        counted_work(&mut call, work.calls);
        if let (Some(blocks), Some(before)) = (self.blocks, before) {
            let blocks = blocks() - before;
            println!("blocks: {}", blocks.div_ceil(work.calls));
        }
    }

    fn costs(&self) -> Vec<(&'static str, Cost)> {
        let program = std::env::current_exe().expect("this program");
        let counted = (self.works)().into_iter().enumerate().map(|(at, work)| {
            let out = Command::new("valgrind")
                .args([
                    "--tool=callgrind",
                    "--callgrind-out-file=/dev/null",
                    "--toggle-collect=*::counted::counted_work",
                ])
                .arg(&program)
                .args(["--work", &at.to_string()])
                .output()
                .expect("valgrind runs");
            let (said, told) = (String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout));
            assert!(out.status.success(), "{}: {said}", work.name);
            let after = |text: &str, word: &str| {
                let number = text.lines().find_map(|line| line.split_once(word))?.1.trim().parse::<u64>();
                Some(number.expect("a number"))
            };
            let instructions = after(&said, "Collected :").expect("a count") / work.calls;
            (work.name, Cost { instructions, blocks: after(&told, "blocks:") })
        });
        counted.collect()
    }

    /// Holds all costs against the record; `false` if one has grown.
    fn check(&self) -> bool {
        let record = std::fs::read_to_string(self.path()).expect("the record");
        let compiled_by = record.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or("");
        if compiled_by != compiler() {
            println!("the record is of another compiler: {compiled_by}");
        }
        let mut good = true;
        for (name, cost) in self.costs() {
            let line = record.lines().filter_map(|line| line.rsplit_once(": ")).find(|(work, _)| *work == name);
            let mut numbers =
                line.into_iter().flat_map(|(_, costs)| costs.split(' ')).filter_map(|word| word.parse().ok());
            let (instructions, blocks): (u64, Option<u64>) = (numbers.next().unwrap_or(0), numbers.next());
            let more = cost.instructions > instructions + instructions * TOLERANCE / 100
                || cost.blocks.unwrap_or(0) > blocks.unwrap_or(0);
            good &= !more;
            print!("{name:<34} {:>10} instructions, recorded {instructions:>10}", cost.instructions);
            if let Some(counted) = cost.blocks {
                print!("; {counted:>3} blocks, recorded {:>3}", blocks.unwrap_or(0));
            }
            println!("{}", if more { "  MORE" } else { "" });
        }
        good
    }
}

fn compiler() -> String {
    let said = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into())).arg("--version").output();
    let said = said.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default();
    format!("{said}, {}", std::env::consts::ARCH)
}

/// What is counted is all that happens in here, by this name.
#[inline(never)]
fn counted_work(call: &mut dyn FnMut(), calls: u64) {
    for _ in 0..black_box(calls) {
        call();
    }
}
