//! The ways an exchange can go: each is driven on every lane at once, up to points at which the
//! memory is searched.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::Response;
use http::header;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use super::canary::Dictionary;
use super::canary::Kind;
use super::canary::is_content;
use super::client::Client;
use super::client::How;
use super::client::PATIENCE;
use super::client::Wire;
use super::client::frame;
use super::upstream::CLOSE;
use super::upstream::NOTE;
use super::upstream::PLAN;
use super::upstream::Plan;
use super::upstream::Plans;
use super::upstream::Reading;
use super::upstream::Seen;
use crate::config::derive::READ;
use crate::scripted;
use crate::scripted::Script;
use crate::scripted::Step;

/// One way an exchange can go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Path {
    Unary,
    UnaryLarge,
    Stream,
    StreamEnd,
    Upstream4xx,
    Upstream5xx,
    UpstreamBreaks,
    ClientAbort,
    UploadAbort,
    SlowReader,
    Parallel,
    WebSocket,
    Refused,
    Edited,
    Configured,
    Reload,
    Drain,
}

impl Path {
    /// In the order of the run: the drain ends it.
    pub(super) const ALL: [Self; 17] = [
        Self::Unary,
        Self::UnaryLarge,
        Self::Stream,
        Self::StreamEnd,
        Self::Upstream4xx,
        Self::Upstream5xx,
        Self::UpstreamBreaks,
        Self::ClientAbort,
        Self::UploadAbort,
        Self::SlowReader,
        Self::Parallel,
        Self::WebSocket,
        Self::Refused,
        Self::Edited,
        Self::Configured,
        Self::Reload,
        Self::Drain,
    ];

    /// In the report and for `--only`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::UnaryLarge => "unary-large",
            Self::Stream => "stream",
            Self::StreamEnd => "stream-end",
            Self::Upstream4xx => "upstream-4xx",
            Self::Upstream5xx => "upstream-5xx",
            Self::UpstreamBreaks => "upstream-breaks",
            Self::ClientAbort => "client-abort",
            Self::UploadAbort => "upload-abort",
            Self::SlowReader => "slow-reader",
            Self::Parallel => "parallel",
            Self::WebSocket => "websocket",
            Self::Refused => "refused",
            Self::Edited => "edited",
            Self::Configured => "configured",
            Self::Reload => "reload",
            Self::Drain => "drain",
        }
    }

    pub(super) fn says(self) -> &'static str {
        match self {
            Self::Unary => "a small request and a small answer; connections kept alive",
            Self::UnaryLarge => "a large request and a large answer",
            Self::Stream => "a stream whose provider stalls, after events of 1 byte to 1 MiB",
            Self::StreamEnd => "a stream that has ended; connections kept alive",
            Self::Upstream4xx => "the provider answers 429",
            Self::Upstream5xx => "the provider answers 500",
            Self::UpstreamBreaks => "the provider breaks off in mid-body",
            Self::ClientAbort => "the client leaves in mid-stream",
            Self::UploadAbort => "the provider does not read, then the client leaves in mid-upload",
            Self::SlowReader => "a reader that stalls, then catches up",
            Self::Parallel => "sixteen clients at once",
            Self::WebSocket => "WebSocket messages in both directions, the socket still open",
            Self::Refused => "nullhop itself answers 404, 405, 400",
            Self::Edited => {
                "a chat whose body the retention policy reads and edits, and whose usage is taken out again"
            }
            Self::Configured => "each configured upstream, by its own route",
            Self::Reload => "SIGHUP in mid-stream",
            Self::Drain => "SIGTERM in mid-stream",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|path| path.name() == name)
    }

    /// Whether a quick run has it: one of each sort.
    pub(super) fn is_quick(self) -> bool {
        matches!(
            self,
            Self::Unary
                | Self::Stream
                | Self::Upstream4xx
                | Self::ClientAbort
                | Self::SlowReader
                | Self::Edited
                | Self::WebSocket
                | Self::Reload
                | Self::Drain
        )
    }

    /// Whether this lane makes sense for it.
    pub(super) fn takes(self, lane: &Lane) -> bool {
        match self {
            // A WebSocket's upstream side is always h1.
            Self::WebSocket => !lane.upstream_h2,
            _ => true,
        }
    }
}

/// Sizes of the bodies.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) large: usize,
    /// More than all kernel buffers on the way take.
    pub(super) stalled: usize,
    pub(super) events: &'static [usize],
}

impl Sizes {
    pub(super) const FULL: Self =
        Self { large: 8 << 20, stalled: 8 << 20, events: &[1, 64, 200, 300, 2 << 10, 16 << 10, 200 << 10, 1 << 20] };
    pub(super) const QUICK: Self =
        Self { large: 1 << 20, stalled: 8 << 20, events: &[1, 64, 200, 300, 2 << 10, 200 << 10] };
}

/// What a small body is.
const SMALL: usize = 2 << 10;

/// The words of an edited request, and of its answer.
const EDITED: usize = 40 << 10;

/// One frame of a scripted body.
const FRAME: usize = 64 << 10;

/// One combination of HTTP and TLS versions, or one configured upstream.
#[derive(Clone)]
pub(super) struct Lane {
    pub(super) how: How,
    pub(super) upstream_h2: bool,
    /// Before the path: a route's prefix or nothing.
    pub(super) prefix: String,
    pub(super) host: String,
    /// Of a route that only takes well-known paths; no word fits in there.
    pub(super) fixed_path: Option<&'static str>,
}

impl Lane {
    /// "h1 to h2"; in the report.
    pub(super) fn pair(&self) -> String {
        let http = |h2| if h2 { "h2" } else { "h1" };
        format!("{} to {}", http(self.how.h2), http(self.upstream_h2))
    }

    pub(super) fn tls(&self) -> &'static str {
        match (self.how.tls, self.how.tls12) {
            (false, _) => "none",
            (true, true) => "1.2",
            (true, false) => "1.3",
        }
    }
}

/// A point in an exchange at which the memory is searched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// Everything that was sent has been delivered, and the exchange goes on: bodies must be gone.
    Mid(&'static str),
    /// The receiver of this kind does not take more: bounded.
    Stalled(Kind),
    /// The exchange is over, connections live on: bodies must be gone, heads a second later.
    End,
    /// As `Mid`, after a reload.
    Reload,
    /// As `Mid`, when the drain has begun.
    Drain,
}

impl Point {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mid(name) => name,
            Self::Stalled(_) => "stalled",
            Self::End => "after the exchange",
            Self::Reload => "after the reload",
            Self::Drain => "while draining",
        }
    }
}

/// What a lane tells the conductor.
pub(super) enum Told {
    Reached { lane: usize, point: Point, go_on: oneshot::Sender<()> },
    Ended { lane: usize, outcome: Result<(), Failed> },
}

/// An exchange did not go as planned: what failed.
pub(super) struct Failed(pub(super) &'static str);

/// All that a lane needs for its way.
pub(super) struct Drive {
    pub(super) path: Path,
    /// Place of the path in [`Path::ALL`], for its words.
    pub(super) place: usize,
    pub(super) lane_place: usize,
    pub(super) lane: Lane,
    pub(super) sizes: Sizes,
    /// How many clients of [`Path::Parallel`] this lane has.
    pub(super) clients: usize,
    pub(super) dictionary: Rc<Dictionary>,
    pub(super) plans: Plans,
    pub(super) tell: mpsc::UnboundedSender<Told>,
}

impl Drive {
    /// Drives the path to its end and tells how it went.
    pub(super) async fn run(mut self) {
        if self.path == Path::Edited {
            // There the policy is in force; it knows this path.
            self.lane.prefix.push_str(READ);
            self.lane.fixed_path = Some("/v1/chat/completions");
        }
        let outcome = match self.path {
            Path::Unary | Path::Configured => self.unary(SMALL, SMALL, 200).await,
            Path::UnaryLarge => self.unary(self.sizes.large, self.sizes.large, 200).await,
            Path::Upstream4xx => self.unary(SMALL, SMALL, 429).await,
            Path::Upstream5xx => self.unary(SMALL, SMALL, 500).await,
            Path::Stream => self.stream(self.sizes.events, Point::Mid("the provider stalls")).await,
            Path::StreamEnd => self.stream_end().await,
            Path::UpstreamBreaks => self.upstream_breaks().await,
            Path::ClientAbort => self.client_abort().await,
            Path::UploadAbort => self.upload_abort().await,
            Path::SlowReader => self.slow_reader().await,
            Path::Parallel => self.parallel().await,
            Path::WebSocket => self.websocket().await,
            Path::Refused => self.refused().await,
            Path::Edited => self.edited().await,
            Path::Reload => self.stream(&[300, SMALL], Point::Reload).await,
            Path::Drain => self.stream(&[300, SMALL], Point::Drain).await,
        };
        let _ = self.tell.send(Told::Ended { lane: self.lane_place, outcome });
    }

    async fn reach(&self, point: Point) {
        let (go_on, told) = oneshot::channel();
        let _ = self.tell.send(Told::Reached { lane: self.lane_place, point, go_on });
        let _ = told.await;
    }

    fn content(&self, kind: Kind, bytes: usize) -> Bytes {
        self.dictionary.word(self.place, self.lane_place, kind).content(bytes)
    }

    fn text(&self, kind: Kind) -> String {
        self.dictionary.word(self.place, self.lane_place, kind).text()
    }

    /// `bytes` of the answer's word, in frames.
    fn answer_steps(&self, bytes: usize) -> Vec<Step> {
        let one = self.content(Kind::ResponseBody, FRAME.min(bytes));
        let frames = (0..bytes).step_by(FRAME).map(|at| one.slice(..FRAME.min(bytes - at)));
        frames.map(Step::Send).collect()
    }

    async fn connect(&self) -> Result<Client, Failed> {
        Client::connect(self.lane.how).await.ok_or(Failed("the client could not connect"))
    }

    fn plan(&self, reading: Reading, status: u16, steps: Vec<Step>) -> (u64, Arc<Seen>) {
        let path = if self.lane.fixed_path.is_some() { String::new() } else { self.text(Kind::Path) };
        self.plans.lay(Plan {
            status,
            content_type: if steps.iter().all(|step| matches!(step, Step::Send(_))) {
                "application/json"
            } else {
                "text/event-stream"
            },
            reading,
            reply: self.text(Kind::ResponseHeader),
            steps,
            expected: [path, self.text(Kind::Query), self.text(Kind::Credential), self.text(Kind::RequestHeader)],
        })
    }

    /// A request with a word in each part of its head.
    fn request(&self, plan: u64, body: Script) -> Result<Request<Script>, Failed> {
        let path = match self.lane.fixed_path {
            Some(path) => path.to_owned(),
            None => format!("/v1/{}/chat/completions", self.text(Kind::Path)),
        };
        self.request_for("POST", &path, plan, body)
    }

    fn request_for(&self, method: &str, path: &str, plan: u64, body: Script) -> Result<Request<Script>, Failed> {
        let target = format!("{}{path}?note={}", self.lane.prefix, self.text(Kind::Query));
        let h2 = self.lane.how.h2;
        let builder = Request::builder().method(method).uri(match h2 {
            true => format!("https://{}{target}", self.lane.host),
            false => target,
        });
        let builder = if h2 { builder } else { builder.header(header::HOST, &self.lane.host) };
        builder
            .header(header::AUTHORIZATION, format!("Bearer sk-{}", self.text(Kind::Credential)))
            .header(NOTE, self.text(Kind::RequestHeader))
            .header(PLAN, plan)
            .body(body)
            .map_err(|_| Failed("a request could not be made"))
    }

    fn arrived(&self, seen: &Seen) -> Result<(), Failed> {
        // A configured upstream speaks what it is configured to.
        let expected = if self.lane.upstream_h2 { 2 } else { 1 };
        match seen.version() {
            None => Err(Failed("the request did not reach the provider with all its words")),
            Some(version) if version == expected || self.path == Path::Configured => Ok(()),
            Some(_) => Err(Failed("the provider was reached by another HTTP version")),
        }
    }

    async fn unary(&self, up: usize, down: usize, status: u16) -> Result<(), Failed> {
        let mut client = self.connect().await?;
        let (plan, seen) = self.plan(Reading::Whole, status, self.answer_steps(down));
        let request = self.request(plan, Script::at_once(self.content(Kind::RequestBody, up)))?;
        let answer = client.send(request).await.ok_or(Failed("no answer came"))?;
        if answer.status() != status {
            return Err(Failed("the answer had another status"));
        }
        let mut answer = answer.into_body();
        read(&mut answer, down).await?;
        end(&mut answer).await?;
        self.arrived(&seen)?;
        if seen.body_bytes.load(Relaxed) != up as u64 {
            return Err(Failed("the provider did not get the whole body"));
        }
        let _ = client.ready().await;
        self.reach(Point::End).await;
        Ok(())
    }

    /// A chat with usage asked for on nullhop's behalf: the request grows, and the answer loses the extra event.
    async fn edited(&self) -> Result<(), Failed> {
        let mut client = self.connect().await?;
        let words = |kind| String::from_utf8_lossy(&self.content(kind, EDITED)).into_owned();
        let asked = format!(
            "{{\"model\":\"m\",\"stream_options\":{{\"note\":\"n\"}},\"messages\":[{{\"content\":\"{}\"}}],\"stream\":true}}",
            words(Kind::RequestBody)
        );
        let head = format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}\"}}}}]", words(Kind::ResponseBody));
        let extra = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\n";
        let done = "data: [DONE]\n\n";
        let steps = vec![
            Step::Send(format!("{head},\"usage\":null}}\n\n").into()),
            Step::Pause(Duration::from_millis(5)),
            Step::Send(format!("{extra}{done}").into()),
        ];
        let (plan, seen) = self.plan(Reading::Whole, 200, steps);
        let sent = asked.len() as u64;
        let request = self.request(plan, Script::at_once(asked.into()))?;
        let mut answer = client.send(request).await.ok_or(Failed("no answer came"))?.into_body();
        let mut got = Vec::new();
        let expected = format!("{head}}}\n\n{done}");
        while got.len() < expected.len() {
            let data = tokio::time::timeout(PATIENCE, scripted::next_data(&mut answer)).await;
            let data = data.map_err(|_| Failed("an answer hung"))?.ok_or(Failed("an answer ended too soon"))?;
            got.extend_from_slice(&data.map_err(|_| Failed("an answer broke"))?);
        }
        if got != expected.as_bytes() {
            return Err(Failed("usage was not taken out of the answer again"));
        }
        end(&mut answer).await?;
        self.arrived(&seen)?;
        if seen.body_bytes.load(Relaxed) <= sent {
            return Err(Failed("the request was not edited"));
        }
        let _ = client.ready().await;
        self.reach(Point::End).await;
        Ok(())
    }

    /// A stream that stops after each event until the search is done.
    async fn stream(&self, events: &'static [usize], point: Point) -> Result<(), Failed> {
        let mut client = self.connect().await?;
        let gate = scripted::gate();
        let mut steps = Vec::new();
        for bytes in events {
            steps.extend(self.answer_steps(*bytes));
            steps.push(Step::Await(gate.clone()));
        }
        let (plan, seen) = self.plan(Reading::Whole, 200, steps);
        let request = self.request(plan, Script::at_once(self.content(Kind::RequestBody, SMALL)))?;
        let mut answer = client.send(request).await.ok_or(Failed("no answer came"))?.into_body();
        for (place, bytes) in events.iter().enumerate() {
            read(&mut answer, *bytes).await?;
            // A reload or a drain comes once; what follows it is an ordinary point.
            let again = matches!(point, Point::Reload | Point::Drain) && place > 0;
            self.reach(if again { Point::Mid("the stream goes on") } else { point }).await;
            gate.add_permits(1);
        }
        self.arrived(&seen)?;
        end(&mut answer).await?;
        drop(answer);
        if point != Point::Drain {
            self.reach(Point::End).await;
        }
        Ok(())
    }

    async fn stream_end(&self) -> Result<(), Failed> {
        let mut client = self.connect().await?;
        let pause = || Step::Pause(Duration::from_millis(5));
        let steps = [64, 200, 300, SMALL].into_iter().flat_map(|bytes| {
            let mut steps = self.answer_steps(bytes);
            steps.push(pause());
            steps
        });
        let (plan, seen) = self.plan(Reading::Whole, 200, steps.collect());
        let request = self.request(plan, Script::at_once(self.content(Kind::RequestBody, SMALL)))?;
        let mut answer = client.send(request).await.ok_or(Failed("no answer came"))?.into_body();
        read(&mut answer, 64 + 200 + 300 + SMALL).await?;
        end(&mut answer).await?;
        self.arrived(&seen)?;
        let _ = client.ready().await;
        self.reach(Point::End).await;
        Ok(())
    }

    async fn upstream_breaks(&self) -> Result<(), Failed> {
        let mut client = self.connect().await?;
        let mut steps = self.answer_steps(FRAME);
        steps.extend([Step::Pause(Duration::from_millis(50)), Step::Break]);
        let (plan, seen) = self.plan(Reading::Whole, 200, steps);
        let request = self.request(plan, Script::at_once(self.content(Kind::RequestBody, SMALL)))?;
        let mut answer = client.send(request).await.ok_or(Failed("no answer came"))?.into_body();
        read(&mut answer, FRAME).await?;
        self.arrived(&seen)?;
        match tokio::time::timeout(PATIENCE, scripted::next_data(&mut answer)).await {
            Ok(Some(Err(_))) => {}
            _ => return Err(Failed("a broken answer did not break")),
        }
        self.reach(Point::End).await;
        Ok(())
    }

    async fn client_abort(&self) -> Result<(), Failed> {
        let mut client = self.connect().await?;
        let mut steps = self.answer_steps(SMALL);
        // Never opened.
        steps.push(Step::Await(scripted::gate()));
        let (plan, seen) = self.plan(Reading::Whole, 200, steps);
        let request = self.request(plan, Script::at_once(self.content(Kind::RequestBody, SMALL)))?;
        let mut answer = client.send(request).await.ok_or(Failed("no answer came"))?.into_body();
        read(&mut answer, SMALL).await?;
        self.arrived(&seen)?;
        drop(answer);
        drop(client);
        self.reach(Point::End).await;
        Ok(())
    }

    async fn upload_abort(&self) -> Result<(), Failed> {
        let mut client = Client::connect_to_reset(self.lane.how).await.ok_or(Failed("the client could not connect"))?;
        let (plan, seen) = self.plan(Reading::Never, 200, Vec::new());
        let one = self.content(Kind::RequestBody, FRAME);
        let mut steps: Vec<Step> = (0..self.sizes.stalled / FRAME).map(|_| Step::Send(one.clone())).collect();
        steps.push(Step::Await(scripted::gate()));
        let answer = tokio::task::spawn_local(client.send(self.request(plan, Script::new(steps))?));
        // Until every buffer on the way is full.
        tokio::time::sleep(STALL).await;
        self.arrived(&seen)?;
        self.reach(Point::Stalled(Kind::RequestBody)).await;
        answer.abort();
        drop(client);
        self.reach(Point::End).await;
        Ok(())
    }

    async fn slow_reader(&self) -> Result<(), Failed> {
        let mut client = self.connect().await?;
        let (plan, seen) = self.plan(Reading::Whole, 200, self.answer_steps(self.sizes.stalled));
        let request = self.request(plan, Script::at_once(self.content(Kind::RequestBody, SMALL)))?;
        let mut answer = client.send(request).await.ok_or(Failed("no answer came"))?.into_body();
        tokio::time::sleep(STALL).await;
        self.arrived(&seen)?;
        self.reach(Point::Stalled(Kind::ResponseBody)).await;
        read(&mut answer, self.sizes.stalled).await?;
        end(&mut answer).await?;
        let _ = client.ready().await;
        self.reach(Point::End).await;
        Ok(())
    }

    async fn parallel(&self) -> Result<(), Failed> {
        let mut clients = Vec::new();
        let mut answers = Vec::new();
        for _ in 0..self.clients {
            let mut client = self.connect().await?;
            let (plan, _) = self.plan(Reading::Whole, 200, self.answer_steps(FRAME));
            let body = Script::at_once(self.content(Kind::RequestBody, FRAME));
            answers.push(tokio::task::spawn_local(client.send(self.request(plan, body)?)));
            clients.push(client);
        }
        for answer in answers {
            let answer: Option<Response<Incoming>> = answer.await.ok().flatten();
            let mut answer = answer.ok_or(Failed("no answer came"))?.into_body();
            read(&mut answer, FRAME).await?;
            end(&mut answer).await?;
        }
        self.reach(Point::End).await;
        drop(clients);
        Ok(())
    }

    async fn websocket(&self) -> Result<(), Failed> {
        const MESSAGES: [usize; 7] = [8, 64, 125, 300, 2 << 10, 16 << 10, 70 << 10];
        /// Close, code 1000, masked with zeros.
        const CLOSE_MASKED: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];
        let mut client = self.connect().await?;
        let up = |bytes| frame(&self.content(Kind::RequestBody, bytes), true);
        let down = |bytes| frame(&self.content(Kind::ResponseBody, bytes), false);
        let turns = MESSAGES.iter().map(|bytes| (*bytes, down(*bytes))).collect();
        let reading = Reading::WebSocket { turns, last: CLOSE_MASKED.len() };
        let (plan, seen) = self.plan(reading, 101, Vec::new());
        let path = format!("/v1/{}/realtime", self.text(Kind::Path));
        let method = if client.is_h2() { "CONNECT" } else { "GET" };
        let mut request = self.request_for(method, &path, plan, Script::empty())?;
        if client.is_h2() {
            request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
        } else {
            let headers = request.headers_mut();
            headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
            // RFC 6455 section 1.3's example: nothing secret about it.
            let key = header::HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
            headers.insert(header::SEC_WEBSOCKET_KEY, key);
        }
        request.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, header::HeaderValue::from_static("13"));
        let mut answer = client.send(request).await.ok_or(Failed("no answer came"))?;
        if !matches!(answer.status().as_u16(), 101 | 200) {
            return Err(Failed("the WebSocket was refused"));
        }
        let upgraded = hyper::upgrade::on(&mut answer).await.map_err(|_| Failed("the upgrade failed"))?;
        let mut wire = Wire::new(upgraded);
        let broke = |_| Failed("the WebSocket broke");
        for bytes in MESSAGES {
            wire.write(&up(bytes)).await.map_err(broke)?;
            let reading = tokio::time::timeout(PATIENCE, wire.read(down(bytes).len())).await;
            reading.map_err(|_| Failed("a message did not come"))?.map_err(broke)?;
        }
        self.arrived(&seen)?;
        self.reach(Point::Mid("messages delivered")).await;
        wire.write(&CLOSE_MASKED).await.map_err(broke)?;
        let reading = tokio::time::timeout(PATIENCE, wire.read(CLOSE.len())).await;
        reading.map_err(|_| Failed("the close was not answered"))?.map_err(broke)?;
        wire.end().await;
        self.reach(Point::End).await;
        Ok(())
    }

    async fn refused(&self) -> Result<(), Failed> {
        let word = self.text(Kind::Path);
        let lane = Lane { prefix: String::new(), ..self.lane.clone() };
        let bare = Self { lane, ..self.again() };
        let mut client = self.connect().await?;
        let ways = [
            (404, "POST", &bare, format!("/{word}/nothing")),
            (405, "PROPFIND", self, format!("/v1/{word}")),
            (400, "POST", self, format!("/v1/%2e%2e/{word}")),
        ];
        for (status, method, of, path) in ways {
            if !client.ready().await {
                client = self.connect().await?;
            }
            let body = Script::at_once(self.content(Kind::RequestBody, SMALL));
            let answer = client.send(of.request_for(method, &path, 0, body)?).await.ok_or(Failed("no answer came"))?;
            if answer.status() != status {
                return Err(Failed("nullhop's own answer had another status"));
            }
            let mut answer = answer.into_body();
            while let Some(Ok(_)) = scripted::next_data(&mut answer).await {}
        }
        let _ = client.ready().await;
        self.reach(Point::End).await;
        Ok(())
    }

    fn again(&self) -> Self {
        Self {
            lane: self.lane.clone(),
            dictionary: self.dictionary.clone(),
            plans: self.plans.clone(),
            tell: self.tell.clone(),
            ..*self
        }
    }
}

/// Long enough for a sender to fill every buffer that there is on loopback.
const STALL: Duration = Duration::from_millis(700);

/// Reads exactly so many bytes of an answer.
async fn read(answer: &mut Incoming, bytes: usize) -> Result<(), Failed> {
    let mut left = bytes;
    while left > 0 {
        let data = tokio::time::timeout(PATIENCE, scripted::next_data(answer)).await;
        let data = data.map_err(|_| Failed("an answer hung"))?;
        let data = data.ok_or(Failed("an answer ended too soon"))?.map_err(|_| Failed("an answer broke"))?;
        if data.len() > left || !is_content(&data) {
            return Err(Failed("an answer was another one"));
        }
        left -= data.len();
    }
    Ok(())
}

/// Reads the end of an answer.
async fn end(answer: &mut Incoming) -> Result<(), Failed> {
    loop {
        match tokio::time::timeout(PATIENCE, scripted::next_data(answer)).await {
            Ok(None) => return Ok(()),
            // h2 may end a stream with an empty frame.
            Ok(Some(Ok(data))) if data.is_empty() => {}
            _ => return Err(Failed("an answer did not end well")),
        }
    }
}
