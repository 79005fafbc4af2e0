//! What an answer has said of itself so far, over all of its complete documents.

use super::End;
use super::Report;
use super::Usage;

/// Figures and marks of the documents that are complete.
#[derive(Default)]
pub(super) struct Totals {
    pub(super) input: u32,
    pub(super) cached: u32,
    pub(super) cache_write: u32,
    pub(super) output: u32,
    pub(super) reasoning: u32,
    pub(super) side_input: u32,
    pub(super) side_output: u32,
    pub(super) seconds: f64,
    /// Responses that were opened and not closed.
    pub(super) open: u32,
    /// Some figure was seen.
    pub(super) figures: bool,
    /// Seconds were.
    pub(super) timed: bool,
    /// The figures come from where they are final.
    pub(super) settled: bool,
    /// A reason to stop was seen.
    pub(super) reason: bool,
    /// The dialect's last word was seen.
    pub(super) ended: bool,
    /// An error was reported.
    pub(super) failed: bool,
    /// The answer is one JSON document, and it is complete.
    pub(super) whole: bool,
    /// `cached` and `cache_write` are beside `input`, as Anthropic's are, and have yet to be added.
    pub(super) beside: bool,
    /// The answer is one JSON document.
    pub(super) unary: bool,
    /// `[DONE]` was said.
    pub(super) done: bool,
    /// Several replies follow one another, each with figures of its own: a WebSocket.
    pub(super) many: bool,
    /// The figures are a makeshift, for want of the family's own.
    pub(super) makeshift: bool,
}

/// The figures of one document, in normal form.
#[derive(Default, Clone, Copy)]
pub(super) struct Figures {
    pub(super) input: u64,
    pub(super) cached: u64,
    pub(super) cache_write: u64,
    pub(super) output: u64,
    pub(super) reasoning: u64,
}

impl Totals {
    /// These figures are all there is to count.
    pub(super) fn replace(&mut self, figures: Figures) {
        self.input = clamp(figures.input);
        self.cached = clamp(figures.cached);
        self.cache_write = clamp(figures.cache_write);
        self.output = clamp(figures.output);
        self.reasoning = clamp(figures.reasoning);
        self.figures = true;
    }

    /// These figures count as well.
    pub(super) fn add(&mut self, figures: Figures) {
        self.input = self.input.saturating_add(clamp(figures.input));
        self.cached = self.cached.saturating_add(clamp(figures.cached));
        self.cache_write = self.cache_write.saturating_add(clamp(figures.cache_write));
        self.output = self.output.saturating_add(clamp(figures.output));
        self.reasoning = self.reasoning.saturating_add(clamp(figures.reasoning));
        self.figures = true;
    }

    /// These figures, input and output, are all there is beside the main ones.
    pub(super) fn replace_side(&mut self, [input, output]: [u64; 2]) {
        self.side_input = clamp(input);
        self.side_output = clamp(output);
    }

    /// These count beside the main ones as well.
    pub(super) fn add_side(&mut self, [input, output]: [u64; 2]) {
        self.side_input = self.side_input.saturating_add(clamp(input));
        self.side_output = self.side_output.saturating_add(clamp(output));
    }

    /// What is told at the end.
    pub(super) fn report(&self, gave_up: bool) -> Report {
        let seen = self.figures || self.timed;
        let usage = match (seen, self.settled) {
            (false, _) => Usage::Absent,
            (true, true) => Usage::Final,
            (true, false) => Usage::Provisional,
        };
        let end = if self.failed {
            End::Error
        } else if self.ended {
            End::Clean
        } else {
            End::Cut
        };
        let beside = if self.beside { u64::from(self.cached) + u64::from(self.cache_write) } else { 0 };
        let figure = |value: u32| seen.then_some(u64::from(value));
        Report {
            usage,
            end,
            input: seen.then_some(u64::from(self.input) + beside),
            cached: figure(self.cached),
            cache_write: figure(self.cache_write),
            output: figure(self.output),
            reasoning: figure(self.reasoning),
            side_input: u64::from(self.side_input),
            side_output: u64::from(self.side_output),
            seconds: self.timed.then_some(self.seconds),
            gave_up,
        }
    }
}

/// Four thousand million tokens are more than a connection lives to see.
fn clamp(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
