//! `trefoil top`: the workers, as they tell of themselves, live.

use super::board::Board;
use super::output::{Failure, Output};
use super::{Given, environment};
use crate::client::ClientError;
use crate::config::{NatsConfig, Settings};
use crate::wire::{Event, Snapshot, subject};
use async_nats::Subscriber;
use async_nats::connection::State;
use clap::Args;
use futures::StreamExt;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, timeout};

pub const HELP: &str = "\
JOBS/S and ERR/S are of the last interval, P50 and P99 of the jobs in it (from taken to result stored); RETRIES are since the worker's start. NODES: \
1 and 2 answered last, ! did not, ? was not asked. On a terminal the table is drawn anew each second, elsewhere every ten. Needs the \
connection's settings only (nats_...), and the right to subscribe mpc.metrics.* (and mpc.event.>, for the jobs that failed): the monitor of \
deploy/nats has both.
Exit codes: 0 done, 2 usage or configuration, 3 no worker was heard.";

#[derive(Args)]
pub struct Arguments {
    /// Show one picture and end, after two intervals of the workers
    #[arg(long)]
    once: bool,
    /// How long to wait for the first worker, and with --once for the last
    #[arg(long, value_name = "S", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
}

pub async fn run(config: Given<'_>, arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let mut settings = Settings::from_env(environment(config));
    settings.keep("nats_");
    let nats = NatsConfig::read(&mut settings);
    let nats = settings.finish(nats).map_err(|error| Failure::usage(error.to_string()))?;
    let patience = Duration::from_secs(arguments.seconds);
    let unavailable = |why: String| Failure::Client(ClientError::Unavailable(why));
    let client = timeout(patience, nats.connect("trefoil-top")).await;
    let client = client.map_err(|_| unavailable("NATS does not answer".to_owned()))?;
    let client = client.map_err(|error| Failure::usage(format!("{error:#}")))?;
    let listen = async |subject: &str| client.subscribe(subject.to_owned()).await;
    let (Ok(snapshots), Ok(events)) = (listen(subject::ALL_METRICS).await, listen(subject::ALL_EVENTS).await) else {
        return Err(unavailable("the connection to NATS is closed".to_owned()));
    };
    let mut top = Top { snapshots, events, board: Board::default(), first: None, drawn: false };
    let Some(()) = top.first(patience, output).await else {
        return Err(unavailable(match client.connection_state() {
            State::Connected => format!(
                "no worker was heard in {} s. Are workers running, with metrics_seconds not 0, and may this identity subscribe {}?",
                arguments.seconds,
                subject::ALL_METRICS
            ),
            _ => format!("no connection to NATS in {} s", arguments.seconds),
        }));
    };
    top.follow(arguments, patience, output).await;
    Ok(())
}

struct Top {
    snapshots: Subscriber,
    events: Subscriber,
    board: Board,
    /// When the first worker was heard.
    first: Option<Instant>,
    drawn: bool,
}

impl Top {
    /// Waits for the first worker.
    async fn first(&mut self, patience: Duration, output: &Output) -> Option<()> {
        let heard = async {
            while self.board.is_empty() {
                let message = self.snapshots.next().await?;
                self.snapshot(&message.payload, output);
            }
            Some(())
        };
        timeout(patience, heard).await.ok().flatten()
    }

    /// Shows what comes: once, or until whoever reads has enough.
    async fn follow(&mut self, arguments: &Arguments, patience: Duration, output: &Output) {
        let terminal = std::io::stdout().is_terminal();
        let step =
            if arguments.once { Duration::from_millis(50) } else { Duration::from_secs(if terminal { 1 } else { 10 }) };
        let mut tick = interval(step);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut goes_on = true;
        while goes_on {
            tokio::select! {
                Some(message) = self.snapshots.next() => goes_on = self.snapshot(&message.payload, output),
                Some(message) = self.events.next() => {
                    if let Ok(event) = serde_json::from_slice::<Event>(&message.payload) {
                        self.board.event(event);
                    }
                }
                _ = tick.tick() => {
                    self.board.tidy(Instant::now());
                    let done = arguments.once && self.is_done(output.is_json(), patience);
                    if !output.is_json() && (done || !arguments.once) {
                        goes_on = self.draw(terminal && !arguments.once);
                    }
                    goes_on &= !done;
                }
                else => return,
            }
        }
    }

    /// Takes a snapshot. False if nobody reads on.
    fn snapshot(&mut self, payload: &[u8], output: &Output) -> bool {
        let Ok(snapshot) = serde_json::from_slice::<Snapshot>(payload) else { return true };
        let goes_on = !output.is_json() || output.entry("", &serde_json::json!(snapshot));
        self.first.get_or_insert_with(Instant::now);
        self.board.snapshot(snapshot, Instant::now());
        goes_on
    }

    /// Whether one picture has everybody: two intervals are over, and for a table each was heard twice.
    fn is_done(&self, json: bool, patience: Duration) -> bool {
        let since = self.first.map_or(Duration::ZERO, |first| first.elapsed());
        since >= patience || (since >= self.board.interval() * 2 && (json || self.board.is_complete()))
    }

    /// Draws the table: over the one before, or below it. False if nobody reads on.
    fn draw(&mut self, over: bool) -> bool {
        let lines = self.board.lines(Instant::now());
        let mut out = std::io::stdout().lock();
        let text = if over {
            let clear = if self.drawn { "\x1b[H" } else { "\x1b[2J\x1b[H" };
            format!("{clear}{}\x1b[K\n\x1b[J", lines.join("\x1b[K\n"))
        } else {
            let gap = if self.drawn { "\n" } else { "" };
            format!("{gap}{}\n", lines.join("\n"))
        };
        self.drawn = true;
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
    }
}
