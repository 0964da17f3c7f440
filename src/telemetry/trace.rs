//! Which trace a job belongs to: W3C trace context, carried as a header of jobs, of calls to the nodes and of results.
//!
//! It correlates what the processes log and nothing else. Nobody signs it and nobody trusts it: whoever can publish can write what they
//! like there, so it decides nothing, and what is malformed counts as none.

use async_nats::HeaderMap;
use data_encoding::HEXLOWER;
use std::fmt;
use tracing::{Instrument as _, Span};

/// Name of the header.
pub const HEADER: &str = "traceparent";

/// A span of a trace: `00-<trace id, 32 hex digits>-<span id, 16>-<flags, 2>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

tokio::task_local! {
    /// What the current task works for.
    static CURRENT: Option<TraceContext>;
}

impl TraceContext {
    /// A trace of its own, to be recorded.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut context = Self { trace: [0; 16], span: [0; 8], flags: 1 };
        getrandom::fill(&mut context.trace)?;
        getrandom::fill(&mut context.span)?;
        Ok(context)
    }

    /// Another span of the same trace.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub fn child(self) -> Result<Self, getrandom::Error> {
        let mut span = [0; 8];
        getrandom::fill(&mut span)?;
        Ok(Self { span, ..self })
    }

    /// These ids, as somebody else has chosen them; `None` if one of them is zero.
    #[must_use]
    pub fn of(trace: [u8; 16], span: [u8; 8], flags: u8) -> Option<Self> {
        (trace != [0; 16] && span != [0; 8]).then_some(Self { trace, span, flags })
    }

    /// Trace id, span id and flags.
    #[must_use]
    pub const fn parts(self) -> ([u8; 16], [u8; 8], u8) {
        (self.trace, self.span, self.flags)
    }

    /// Reads version 00, to the letter: lower case, no id zero, nothing before or behind.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // Longer than any that can be read, so that nothing long is looked at.
        let mut parts = (text.len() == 55).then(|| text.split('-'))?;
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() {
            return None;
        }
        let [flags] = decode(flags)?;
        Self::of(decode(trace)?, decode(span)?, flags)
    }

    /// The one that a message names, if it names one, once.
    #[must_use]
    pub fn from_headers(headers: Option<&HeaderMap>) -> Option<Self> {
        let mut values = headers?.get_all(HEADER);
        let first = values.next()?;
        if values.next().is_some() { None } else { Self::parse(first.as_str()) }
    }

    /// The one that whoever started this process works for: the environment's `TRACEPARENT`.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        std::env::var("TRACEPARENT").ok().and_then(|text| Self::parse(&text))
    }

    /// Names it in a message.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(HEADER, self.to_string());
    }

    /// The trace's id, for logs.
    #[must_use]
    pub const fn trace_id(&self) -> Hex<'_> {
        Hex(&self.trace)
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", Hex(&self.trace), Hex(&self.span), self.flags)
    }
}

/// Bytes of an id, shown in hex where somebody looks.
#[derive(Debug, Clone, Copy)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Exactly so many bytes in lower-case hex.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

/// Work for a trace, or for none, in a span of its own.
pub struct Traced {
    context: Option<TraceContext>,
    span: Span,
}

/// Begins work for what a message names. `span` makes the work's span, and is told the trace's id.
pub fn begin(named: Option<TraceContext>, span: impl FnOnce(Option<Hex<'_>>) -> Span) -> Traced {
    let span = span(named.as_ref().map(TraceContext::trace_id));
    let context = asked_by(&span, named);
    Traced { context, span }
}

/// Who asks for what is asked of others in the course of the work.
fn asked_by(span: &Span, named: Option<TraceContext>) -> Option<TraceContext> {
    #[cfg(feature = "otlp")]
    if let Some(own) = super::otlp::link(span, named) {
        return Some(own);
    }
    let _ = span;
    named.map(|named| named.child().unwrap_or(named))
}

impl Traced {
    /// The work's span.
    #[must_use]
    pub const fn span(&self) -> &Span {
        &self.span
    }

    /// Does the work.
    pub async fn run<F: Future>(self, work: F) -> F::Output {
        CURRENT.scope(self.context, work).instrument(self.span).await
    }
}

/// What the current task works for.
#[must_use]
pub fn current() -> Option<TraceContext> {
    CURRENT.try_with(|current| *current).ok().flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn reads_what_it_writes_and_nothing_else() {
        let context = TraceContext::parse(GOOD).unwrap();
        assert_eq!(context.to_string(), GOOD);
        assert_eq!(context.trace_id().to_string(), GOOD[3..35]);
        let child = context.child().unwrap();
        assert_eq!(child.to_string()[..36], GOOD[..36]);
        assert_ne!(child, context);
        let random = TraceContext::random().unwrap();
        assert_eq!(TraceContext::parse(&random.to_string()), Some(random));
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "01", 1),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen('-', "_", 1),
            GOOD.replacen("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32), 1),
            GOOD.replacen("b7ad6b7169203331", &"0".repeat(16), 1),
            GOOD.replacen("b7ad6b71", "b7ad6b7g", 1),
            GOOD.replacen("-b7", "b7-", 1),
            format!("{GOOD}-"),
            format!("{GOOD}-00"),
            format!(" {GOOD}"),
            format!("{GOOD}\n"),
            "é".repeat(28),
            "-".repeat(55),
        ] {
            assert_eq!(TraceContext::parse(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_message_names_one_trace_or_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(TraceContext::from_headers(None), None);
        assert_eq!(TraceContext::from_headers(Some(&headers)), None);
        let context = TraceContext::parse(GOOD).unwrap();
        context.write(&mut headers);
        assert_eq!(TraceContext::from_headers(Some(&headers)), Some(context));
        headers.append(HEADER, GOOD);
        assert_eq!(TraceContext::from_headers(Some(&headers)), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}|[0-9a-f-]{55}|00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}") {
            if let Some(context) = TraceContext::parse(&text) {
                prop_assert_eq!(context.to_string(), text);
            }
        }
    }
}
