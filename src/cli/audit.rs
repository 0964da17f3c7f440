//! `trefoil audit`: what a node decided, and whether its log is whole.

use super::output::{Failure, Output, merged, shown_time};
use crate::node::audit::{Entries, Event, Head};
use crate::node::store::StoppedStore;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::PathBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const ANCHORS: &str = "\
The log's hash chain shows every edit, removal, insertion and swap, with the entry's number. What was cut off at the end, or \
a log that was written anew as a whole, shows only against an end that the log once had: --anchor, from an earlier run, which \
works while the node serves; or --data-dir, the node's own record, which is in its store, so the node must be stopped.
Exit codes: 0 whole, 2 not readable, 4 broken.";

#[derive(Subcommand)]
pub enum Command {
    /// Check that a log is whole, and print its end
    #[command(after_help = ANCHORS)]
    Verify(Log),
    /// Print entries; with --json one object a line. The log is checked on the way, and nothing behind a break is printed
    #[command(after_help = ANCHORS)]
    Show(Show),
}

#[derive(Args)]
pub struct Log {
    /// The log: audit.log in a node's data directory
    file: PathBuf,
    /// The node's data directory, for the end that its store has seen; the node must not be running
    #[arg(long, value_name = "DIR", conflicts_with = "anchor")]
    data_dir: Option<PathBuf>,
    /// An end that the log once had, as `verify` prints it
    #[arg(long, value_name = "ENTRIES:HASH")]
    anchor: Option<Head>,
}

#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    log: Log,
    /// Only this key
    #[arg(long, value_name = "KEY-ID")]
    key: Option<String>,
    /// Only this initiator's jobs and keys
    #[arg(long, value_name = "U...")]
    initiator: Option<String>,
    /// Only this job
    #[arg(long, value_name = "JOB-ID")]
    job: Option<String>,
    /// Only this operation; may be repeated
    #[arg(long)]
    op: Vec<String>,
    /// Only this decision, such as released, refused or locked; may be repeated
    #[arg(long)]
    decision: Vec<String>,
    /// From this time on: RFC 3339, or unix milliseconds
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    since: Option<u64>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    until: Option<u64>,
}

fn milliseconds(text: &str) -> Result<u64, &'static str> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let parsed = OffsetDateTime::parse(text, &Rfc3339).ok();
    let parsed = parsed.and_then(|time| u64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok());
    parsed.ok_or("must be a time such as 2026-01-31T12:00:00Z, or unix milliseconds")
}

pub fn run(command: &Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Verify(log) => verify(log, output),
        Command::Show(show) => show.run(output),
    }
}

impl Log {
    fn anchor(&self) -> Result<Option<Head>, Failure> {
        let Some(directory) = &self.data_dir else { return Ok(self.anchor) };
        let wrong = |what: &dyn std::fmt::Display| Failure::usage(format!("{}: {what}", directory.display()));
        StoppedStore::open(directory)
            .and_then(|store| store.anchored())
            .map_err(|error| wrong(&error))?
            .map_or_else(|| Err(wrong(&"its store has not seen an entry of the log yet")), |head| Ok(Some(head)))
    }

    fn entries(&self, anchor: Option<Head>) -> Result<Entries, Failure> {
        Entries::open(&self.file, anchor).map_err(|error| Failure::usage(format!("{}: {error}", self.file.display())))
    }
}

fn verify(log: &Log, output: &Output) -> Result<(), Failure> {
    let anchor = log.anchor()?;
    let mut entries = log.entries(anchor)?;
    let (mut first, mut last) = (None, None);
    for entry in entries.by_ref() {
        let time = entry?.1.time;
        first = first.or(Some(time));
        last = Some(time);
    }
    let head = entries.head();
    let against = match anchor {
        Some(anchor) => format!("entry {} is the one seen before", anchor.entries.saturating_sub(1)),
        None => "nothing (see --help)".to_owned(),
    };
    let mut lines = vec![("log", "whole".to_owned()), ("entries", head.entries.to_string())];
    lines.extend(first.map(|time| ("first", shown_time(time))));
    lines.extend(last.map(|time| ("last", shown_time(time))));
    lines.extend([("compared with", against), ("end", head.to_string())]);
    let object = json!({
        "entries": head.entries,
        "first": first,
        "last": last,
        "anchor": anchor.map(|anchor| anchor.to_string()),
        "end": head.to_string(),
    });
    output.answer(&lines, &object);
    Ok(())
}

impl Show {
    fn run(&self, output: &Output) -> Result<(), Failure> {
        for entry in self.log.entries(self.log.anchor()?)? {
            let (number, event) = entry?;
            if self.wants(&event) && !output.entry(&line(number, &event), &object(number, &event)?) {
                break;
            }
        }
        Ok(())
    }

    fn wants(&self, event: &Event) -> bool {
        let same = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let among = |wanted: &[String], found: &String| wanted.is_empty() || wanted.contains(found);
        same(&self.key, &event.key_id)
            && same(&self.initiator, &event.initiator)
            && same(&self.job, &event.job_id)
            && among(&self.op, &event.op)
            && among(&self.decision, &event.decision)
            && self.since.is_none_or(|since| event.time >= since)
            && self.until.is_none_or(|until| event.time < until)
    }
}

/// An entry for people. Escaped: whoever forged a log must not write to a terminal.
fn line(number: u64, event: &Event) -> String {
    let mut text = format!(
        "{number:>6}  {}  {:<10}  {:<10}",
        shown_time(event.time),
        event.op.escape_debug(),
        event.decision.escape_debug()
    );
    let fields = [
        ("reason", &event.reason),
        ("key", &event.key_id),
        ("job", &event.job_id),
        ("digest", &event.digest),
        ("initiator", &event.initiator),
    ];
    if !event.signed.is_empty() {
        let signed: Vec<_> = event.signed.iter().map(|signed| signed.escape_debug().to_string()).collect();
        let _ = write!(text, "  signed={}", signed.join(", "));
    }
    for (name, value) in fields {
        if let Some(value) = value {
            // Writing to a String cannot fail.
            let _ = write!(text, "  {name}={}", value.escape_debug());
        }
    }
    text
}

fn object(number: u64, event: &Event) -> Result<Value, Failure> {
    let fields = serde_json::to_value(event).map_err(|error| Failure::usage(error.to_string()))?;
    Ok(merged(json!({ "entry": number }), fields))
}
