//! What a request may ask of a provider: rules by path and by field, and the edits that they need, in one pass over the
//! body. The table is `docs/retention.md`; what is edited and why so, `docs/decisions/0012-what-is-refused.md`.

#[cfg(feature = "skip-measures")]
pub(crate) mod bench;
mod fields;
mod form;
mod json;
mod models;
mod paths;
mod rules;
#[cfg(any(test, fuzzing))]
mod twin;
mod vendor;

use http::Method;

use crate::decode::DecodeFault;
use crate::decode::Decoder;
use crate::decode::Encoding;
use crate::hygiene::Chunk;
use crate::message::Fields;
use crate::message::Known;
use crate::message::Value;
use crate::message::name;
use crate::provider::Provider;

use fields::Act;
use fields::Node;
use form::Form;
use json::Json;
use json::Plan;
pub(crate) use models::Models;
pub(crate) use models::PATTERN_BYTES_MAX;
use paths::Body;
use paths::Path;
pub(crate) use rules::EVERY_RULE;
pub(crate) use rules::RULE_WORDS;
pub use rules::Rule;
pub(crate) use rules::RuleSet;
#[cfg(any(test, fuzzing))]
pub(crate) use twin::edited_as_the_twin_says;
pub(crate) use vendor::VENDOR_WORDS;
pub(crate) use vendor::Vendor;

/// What is in force for one upstream, or one key of it. Built when the configuration is loaded.
#[derive(Clone)]
pub(crate) struct Policy {
    /// Rules that are in force.
    pub(crate) rules: RuleSet,
    /// Whether usage is asked for in streams of clients that do not ask.
    pub(crate) usage: Usage,
    /// Models that may be asked.
    pub(crate) models: Models,
    /// `None`: by the host.
    pub(crate) vendor: Option<Vendor>,
}

/// Whether usage is asked for on behalf of nullhop.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usage {
    /// For keys that nullhop manages.
    Auto,
    Ask,
    Leave,
}

/// Why a request must not go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Denied {
    /// A retention rule.
    Rule(Rule),
    /// The model is not on the list.
    Model,
    /// A body that policy must read is not JSON that can be read, or has more to hold than is held.
    Unreadable,
    /// A body that policy must read comes in an encoding that is not known.
    Encoding,
    /// Encoded, and too large when decoded.
    TooLarge,
    /// Continues a message thread at Anthropic: its client sends the whole history when told so.
    Thread,
}

/// What a request's body said, so far. No text of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) stream: bool,
    /// Usage was asked for on behalf of nullhop: its event must not reach the client.
    pub(crate) usage_added: bool,
    /// `max_tokens` and its like, for the reservation.
    pub(crate) output_tokens_max: Option<u64>,
}

/// Reads and edits one request's body on its way up, or one message of a WebSocket.
pub(crate) struct Editor {
    /// Between the client's bytes and the walker, if they come encoded.
    decoder: Option<(Encoding, Option<Decoder>)>,
    plain_bytes_max: u64,
    walker: Walker,
    /// Whether anything came.
    begun: bool,
    /// Whether nothing at all is a body, too.
    may_be_empty: bool,
}

enum Walker {
    Json(Box<Json>),
    Form(Box<Form>, bool),
}

/// Decoded bytes of one call, unless told otherwise.
const PLAIN_BYTES_MAX: u64 = 32 << 20;
/// What one piece of encoded bytes may become. It waits for the upstream, whatever the whole body may be; zstd gives its
/// window, at most 8 MiB, at once.
const PLAIN_PIECE_MAX: usize = 9 << 20;
/// Encoded bytes that are fed at a time, so that little that is plain waits at once.
const ENCODED_PIECE: usize = 256;

impl Default for Policy {
    fn default() -> Self {
        Self { rules: RuleSet::EVERY, usage: Usage::Auto, models: Models::default(), vendor: None }
    }
}

impl Policy {
    /// This policy for one request: `managed` says that nullhop's own key pays.
    #[must_use]
    pub(crate) fn settled(&self, managed: bool) -> Self {
        let usage = match self.usage {
            Usage::Auto if managed => Usage::Ask,
            Usage::Auto => Usage::Leave,
            chosen => chosen,
        };
        Self { usage, ..self.clone() }
    }

    /// This policy for a key that has a list of models of its own, relaxes rules, or has its own word on usage.
    #[must_use]
    pub(crate) fn narrowed(&self, models: &Models, relaxed: &[Rule], usage: Option<Usage>) -> Self {
        Self {
            rules: relaxed.iter().copied().fold(self.rules, RuleSet::without),
            usage: usage.unwrap_or(self.usage),
            models: self.models.and(models),
            vendor: self.vendor,
        }
    }

    /// Looks at a request's head: method, upstream's own path and query. `Ok(None)`: the body needs no reading.
    /// Takes off `headers` what must not go on, and what no longer describes the body.
    ///
    /// # Errors
    /// When the head alone breaks a rule.
    pub(crate) fn read_head(
        &self,
        provider: Provider,
        host: &str,
        method: &Method,
        path: &str,
        query: Option<&str>,
        headers: &mut Fields,
    ) -> Result<Option<Editor>, Denied> {
        let vendor = self.vendor.unwrap_or_else(|| Vendor::of(provider, host));
        let path = Path::new(path);
        self.read_target(&path, vendor, method, query)?;
        if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE | Method::CONNECT) {
            return Ok(None);
        }
        let content_type = headers.get(name::CONTENT_TYPE).map_or(&b""[..], Value::as_bytes);
        let json = is_type(content_type, b"application/json");
        let Some(body) = path.body(vendor, json) else { return Ok(None) };
        if self.rules.has(Rule::Threads) {
            decline_threads(headers);
        }
        let Some(plan) = self.plan(body.root, body.model_required, body.usage, vendor, path.streams()) else {
            return Ok(None);
        };
        let Some(walker) = walker(plan, &body, headers)? else { return Ok(None) };
        let decoder = coding(headers)?;
        for name in DIGESTS {
            headers.remove(name);
        }
        if decoder.is_some() {
            headers.remove(name::CONTENT_ENCODING);
            headers.remove(name::CONTENT_LENGTH);
        }
        let may_be_empty = std::ptr::eq(body.root, &fields::MODEL_ONLY) && !body.model_required;
        Ok(Some(Editor { decoder, plain_bytes_max: PLAIN_BYTES_MAX, walker, begun: false, may_be_empty }))
    }

    /// Looks at the head of a WebSocket's request, whose messages come later.
    ///
    /// # Errors
    /// When the head alone breaks a rule.
    pub(crate) fn read_upgrade(
        &self,
        provider: Provider,
        host: &str,
        path: &str,
        query: Option<&str>,
    ) -> Result<(), Denied> {
        let vendor = self.vendor.unwrap_or_else(|| Vendor::of(provider, host));
        self.read_target(&Path::new(path), vendor, &Method::GET, query)
    }

    /// An editor for one text message of a client over a WebSocket at `path`. `None`: messages need no reading.
    pub(crate) fn read_message(&self, provider: Provider, host: &str, path: &str) -> Option<Editor> {
        let vendor = self.vendor.unwrap_or_else(|| Vendor::of(provider, host));
        let (root, only_create) = Path::new(path).messages()?;
        let mut plan = self.plan(root, false, false, vendor, true)?;
        plan.only_create = only_create;
        let walker = Walker::Json(Box::new(Json::new(plan)));
        Some(Editor { decoder: None, plain_bytes_max: PLAIN_BYTES_MAX, walker, begun: false, may_be_empty: true })
    }

    fn read_target(&self, path: &Path<'_>, vendor: Vendor, method: &Method, query: Option<&str>) -> Result<(), Denied> {
        if let Some(rule) = path.refused(vendor, method)
            && self.rules.has(rule)
        {
            return Err(Denied::Rule(rule));
        }
        let named = path.models().all(|name| self.models.allows(name.as_bytes(), true))
            && (self.models.is_any()
                || paths::models_of_query(query).all(|name| self.models.allows(name.as_bytes(), true)));
        if named { Ok(()) } else { Err(Denied::Model) }
    }

    /// `None`: nothing of such a body can matter.
    fn plan(
        &self,
        root: &'static Node,
        model_required: bool,
        usage: bool,
        vendor: Vendor,
        stream: bool,
    ) -> Option<Plan> {
        let usage = usage && self.usage == Usage::Ask && vendor.sends_usage_on_request();
        let needed = usage || !self.models.is_any() || touches(root, self.rules, 8);
        needed.then(|| Plan {
            root,
            rules: self.rules,
            models: self.models.clone(),
            model_required,
            usage,
            only_create: false,
            stream,
        })
    }
}

/// Headers that describe bytes which are changed (RFC 9530, RFC 1864).
const DIGESTS: [Known; 4] =
    [Known::named("content-digest"), Known::named("content-md5"), Known::named("digest"), Known::named("repr-digest")];

/// Whether one of `rules` can matter within `depth` levels of `node`.
fn touches(node: &'static Node, rules: RuleSet, depth: usize) -> bool {
    let own = match node.act {
        Act::Present(rule) | Act::Wish(rule) | Act::Store(rule) | Act::Force(rule, _) | Act::Drop(rule) => {
            rules.has(rule)
        }
        Act::Thread => rules.has(Rule::Threads),
        Act::RoutedModel => rules.has(Rule::Plugins),
        // Which rule is told by the text.
        Act::Judge(_) => !rules.is_empty(),
        _ => false,
    };
    own || node.ensured.iter().any(|ensured| rules.has(ensured.rule))
        || (depth > 0
            && (node.also.is_some_and(|also| touches(also, rules, depth))
                || node.members.iter().any(|(_, member)| touches(member, rules, depth - 1))))
}

fn is_type(value: &[u8], wanted: &[u8]) -> bool {
    let essence = value.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().eq_ignore_ascii_case(wanted)
}

fn walker(plan: Plan, body: &Body, headers: &Fields) -> Result<Option<Walker>, Denied> {
    let mut types = headers.get_all(name::CONTENT_TYPE);
    let content_type = types.next().map_or(&b""[..], Value::as_bytes);
    let form = is_type(content_type, b"multipart/form-data");
    if types.next().is_some() {
        return Err(Denied::Unreadable);
    }
    if body.form && form {
        // A form's rules are those of models.
        if plan.models.is_any() {
            return Ok(None);
        }
        let walker = Form::new(content_type, plan.models).ok_or(Denied::Unreadable)?;
        return Ok(Some(Walker::Form(Box::new(walker), plan.model_required)));
    }
    if std::ptr::eq(body.root, &fields::MODEL_ONLY)
        && !plan.model_required
        && !is_type(content_type, b"application/json")
    {
        // Whatever it is, it is no request to a model that we know of.
        return Ok(None);
    }
    Ok(Some(Walker::Json(Box::new(Json::new(plan)))))
}

/// The coding that the body comes in.
fn coding(headers: &Fields) -> Result<Option<(Encoding, Option<Decoder>)>, Denied> {
    let mut codings = headers.get_all(name::CONTENT_ENCODING);
    let Some(coding) = codings.next() else { return Ok(None) };
    if codings.next().is_some() {
        return Err(Denied::Encoding);
    }
    let value = coding.as_bytes().trim_ascii();
    if value.is_empty() || value.eq_ignore_ascii_case(b"identity") {
        return Ok(None);
    }
    Encoding::of(value).map(|encoding| Some((encoding, None))).ok_or(Denied::Encoding)
}

/// Takes the thread handshake out of `anthropic-beta`.
fn decline_threads(headers: &mut Fields) {
    let name = name::ANTHROPIC_BETA;
    let is_threads = |token: &str| token.trim().to_ascii_lowercase().starts_with("message-threads");
    let values: Vec<_> = headers.get_all(name).filter_map(Value::kept).collect();
    if !values.iter().any(|value| value.to_str().is_ok_and(|text| text.split(',').any(is_threads))) {
        return;
    }
    headers.remove(name);
    for value in values {
        let Ok(text) = value.to_str() else { continue };
        let kept: Vec<&str> = text.split(',').map(str::trim).filter(|token| !is_threads(token)).collect();
        if let Some(value) = Value::new(kept.join(",").as_bytes())
            && !kept.is_empty()
        {
            headers.append(name, value);
        }
    }
}

impl Editor {
    /// How many bytes longer an announced length becomes. `None`: the new length cannot be known, because the body comes
    /// encoded and goes on plain.
    pub(crate) fn slot(&self) -> Option<u64> {
        match (&self.decoder, &self.walker) {
            (Some(_), _) => None,
            (None, Walker::Json(json)) => Some(json.slot() as u64),
            (None, Walker::Form(..)) => Some(0),
        }
    }

    /// How many bytes an encoded body may have when it is decoded.
    pub(crate) fn limit(&mut self, plain_bytes_max: u64) {
        self.plain_bytes_max = plain_bytes_max;
    }

    /// The most bytes that are to be fed at once.
    pub(crate) fn piece_max(&self) -> usize {
        if self.decoder.is_some() { ENCODED_PIECE } else { usize::MAX }
    }

    /// Takes one piece in and puts what goes on into `out`.
    ///
    /// # Errors
    /// When the request must not be completed. `out` is not to be sent.
    pub(crate) fn feed(&mut self, chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        if chunk.as_slice().is_empty() {
            return Ok(());
        }
        let Some((encoding, decoder)) = &mut self.decoder else {
            self.begun = true;
            return self.walker.feed(chunk, out);
        };
        let decoder = decoder.get_or_insert_with(|| Decoder::new(*encoding, self.plain_bytes_max));
        let mut walked = Ok(());
        let mut given = 0;
        let decoded = decoder.push(chunk.as_slice(), &mut |plain| {
            given += plain.len();
            if given > PLAIN_PIECE_MAX {
                walked = Err(Denied::TooLarge);
            }
            if walked.is_ok() && !plain.is_empty() {
                self.begun = true;
                walked = self.walker.feed(Chunk::copied(plain), out);
            }
        });
        walked.and(decoded.map_err(denied))
    }

    /// The body has ended.
    ///
    /// # Errors
    /// As [`Editor::feed`].
    pub(crate) fn finish(&mut self, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        if let Some((_, Some(decoder))) = &mut self.decoder {
            let mut walked = Ok(());
            let decoded = decoder.finish(&mut |plain| {
                if walked.is_ok() && !plain.is_empty() {
                    self.begun = true;
                    walked = self.walker.feed(Chunk::copied(plain), out);
                }
            });
            walked.and(decoded.map_err(denied))?;
        }
        if self.begun || !self.may_be_empty { self.walker.finish(out) } else { Ok(()) }
    }

    /// Whether the document has ended, so that only white space may follow.
    pub(crate) fn is_closed(&self) -> bool {
        match &self.walker {
            Walker::Json(json) => json.is_closed(),
            Walker::Form(..) => false,
        }
    }

    /// What the body said so far.
    pub(crate) fn facts(&self) -> Facts {
        match &self.walker {
            Walker::Json(json) => json.facts(),
            Walker::Form(..) => Facts::default(),
        }
    }

    /// The model that the body names, if it did so already and it was not forgotten. Content: for looking at, not for
    /// keeping.
    pub(crate) fn model(&self) -> Option<&[u8]> {
        match &self.walker {
            Walker::Json(json) => json.model(),
            Walker::Form(form, _) => form.model(),
        }
    }

    /// Wipes the model's name, for whoever has looked it up.
    pub(crate) fn forget_model(&mut self) {
        match &mut self.walker {
            Walker::Json(json) => json.forget_model(),
            Walker::Form(form, _) => form.forget_model(),
        }
    }
}

impl Walker {
    fn feed(&mut self, chunk: Chunk, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        match self {
            Self::Json(json) => json.feed(chunk, out),
            Self::Form(form, _) => {
                form.feed(chunk.as_slice())?;
                out.push(chunk);
                Ok(())
            }
        }
    }

    fn finish(&mut self, out: &mut Vec<Chunk>) -> Result<(), Denied> {
        match self {
            Self::Json(json) => json.finish(out),
            Self::Form(form, required) => form.finish(*required),
        }
    }
}

fn denied(fault: DecodeFault) -> Denied {
    match fault {
        DecodeFault::Malformed => Denied::Unreadable,
        DecodeFault::TooLarge => Denied::TooLarge,
    }
}

#[cfg(test)]
mod tests;
