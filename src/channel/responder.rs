//! The node's end of its channels. Knows no network: bytes in, bytes out.

use super::record::Plain;
use super::replay::Replay;
use super::{ChannelError, ChannelId, NOISE, STATUS_OK, STATUS_REFUSED, STATUS_UNKNOWN, VERSION, prologue, record};
use dashmap::DashMap;
use serde::Serialize;
use snow::StatelessTransportState;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use trefoil_protocol::{Party, Secret};
use zeroize::Zeroizing;

/// How far apart the clocks may be at a handshake. Bounds how long a recorded handshake can be replayed, which gains nothing
/// but makes the node keep a channel that nobody can use.
const MAX_SKEW_MS: u64 = 60_000;
/// A channel that was never used is dropped after this.
const UNCONFIRMED: Duration = Duration::from_secs(60);
/// A channel is dropped after this; workers renew theirs every hour.
const MAX_AGE: Duration = Duration::from_secs(2 * 3600);

struct Channel {
    state: StatelessTransportState,
    hash: [u8; 32],
    worker: [u8; 32],
    since: Instant,
    /// Did the worker prove, by a first authentic record, that the handshake was not a replay?
    confirmed: AtomicBool,
    replay: Mutex<Replay>,
}

/// All channels of one node instance.
pub struct Responder {
    private: Secret<[u8; 32]>,
    prologue: Vec<u8>,
    workers: HashSet<[u8; 32]>,
    instance: String,
    max_channels: usize,
    channels: DashMap<ChannelId, Arc<Channel>>,
}

/// An authentic request.
pub struct Incoming {
    /// The handshake hash of the channel it came on, 32 bytes.
    pub channel_hash: [u8; 32],
    /// The static key of the worker that sent it.
    pub worker: [u8; 32],
    /// The request.
    pub payload: Zeroizing<Vec<u8>>,
    /// Seals the one reply to it.
    pub reply: ReplySealer,
}

/// Seals one reply; consumed by it, because it uses up its nonces.
pub struct ReplySealer {
    channel: Arc<Channel>,
    sequence: u64,
}

/// A request that is not answered inside the channel: why, and the bytes to send back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// No such channel here.
    UnknownChannel,
    /// Too short, too long, or of another version.
    Malformed,
    /// Not authentic.
    Forged,
    /// Its sequence number was seen before, or is too old.
    Replayed,
    /// A handshake by a key that is not in the list of workers.
    UnknownWorker,
    /// A handshake made more than a minute ago, or by a clock that is wrong.
    Stale,
}

impl Reject {
    /// Every name that [`Reject::as_str`] gives.
    pub const NAMES: [&str; 6] = ["unknown_channel", "malformed", "forged", "replayed", "unknown_worker", "stale"];

    /// For metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownChannel => "unknown_channel",
            Self::Malformed => "malformed",
            Self::Forged => "forged",
            Self::Replayed => "replayed",
            Self::UnknownWorker => "unknown_worker",
            Self::Stale => "stale",
        }
    }

    /// What goes back to the sender: it says nothing but "unknown channel" or "refused".
    #[must_use]
    pub fn reply(self) -> Vec<u8> {
        vec![VERSION, if self == Self::UnknownChannel { STATUS_UNKNOWN } else { STATUS_REFUSED }]
    }
}

impl Responder {
    /// The channels of `node`, for these workers only. `instance` names this process in subjects.
    #[must_use]
    pub fn new(
        node: Party,
        private: Secret<[u8; 32]>,
        workers: &[[u8; 32]],
        instance: String,
        max_channels: usize,
    ) -> Self {
        Self {
            private,
            prologue: prologue(node),
            workers: workers.iter().copied().collect(),
            instance,
            max_channels,
            channels: DashMap::new(),
        }
    }

    /// Answers a handshake. `now` is in unix milliseconds.
    ///
    /// # Errors
    /// Why it was refused; nothing changed.
    pub fn handshake(&self, request: &[u8], now: u64) -> Result<Vec<u8>, Reject> {
        let Some((&VERSION, first)) = request.split_first() else { return Err(Reject::Malformed) };
        let mut noise = NOISE
            .parse()
            .map(snow::Builder::new)
            .and_then(|builder| builder.prologue(&self.prologue))
            .and_then(|builder| builder.local_private_key(self.private.expose()))
            .and_then(snow::Builder::build_responder)
            .map_err(|_| Reject::Malformed)?;
        let mut buffer = [0u8; 512];
        let read = noise.read_message(first, &mut buffer).map_err(|_| Reject::Forged)?;
        let worker: [u8; 32] = noise.get_remote_static().and_then(|key| key.try_into().ok()).ok_or(Reject::Forged)?;
        if !self.workers.contains(&worker) {
            return Err(Reject::UnknownWorker);
        }
        let made: [u8; 8] = buffer.get(..read).and_then(|bytes| bytes.try_into().ok()).ok_or(Reject::Malformed)?;
        if u64::from_be_bytes(made).abs_diff(now) > MAX_SKEW_MS {
            return Err(Reject::Stale);
        }
        let mut answer = vec![0u8; 512];
        let payload = [now.to_be_bytes().as_slice(), self.instance.as_bytes()].concat();
        let written = noise.write_message(&payload, &mut answer).map_err(|_| Reject::Malformed)?;
        answer.truncate(written);
        let (hash, id) = super::identify(&noise).ok_or(Reject::Malformed)?;
        let state = noise.into_stateless_transport_mode().map_err(|_| Reject::Malformed)?;
        self.make_room();
        let channel = Channel {
            state,
            hash,
            worker,
            since: Instant::now(),
            confirmed: AtomicBool::new(false),
            replay: Mutex::default(),
        };
        self.channels.insert(id, Arc::new(channel));
        Ok([&[VERSION, STATUS_OK], answer.as_slice()].concat())
    }

    /// Opens a request: parse, find the channel, authenticate, and only then use up its sequence number.
    ///
    /// # Errors
    /// Why it was refused; nothing changed.
    pub fn open(&self, message: &[u8]) -> Result<Incoming, Reject> {
        let (&VERSION, rest) = message.split_first().ok_or(Reject::Malformed)? else {
            return Err(Reject::Malformed);
        };
        let (id, rest) = rest.split_first_chunk::<16>().ok_or(Reject::Malformed)?;
        let (sequence, records) = rest.split_first_chunk::<8>().ok_or(Reject::Malformed)?;
        let sequence = u64::from_be_bytes(*sequence);
        let channel = self.channels.get(id).map(|entry| Arc::clone(&entry)).ok_or(Reject::UnknownChannel)?;
        if channel.since.elapsed() > MAX_AGE {
            self.channels.remove(id);
            return Err(Reject::UnknownChannel);
        }
        let window = || channel.replay.lock().unwrap_or_else(PoisonError::into_inner);
        if !window().is_fresh(sequence) {
            return Err(Reject::Replayed);
        }
        let payload = record::open(&channel.state, sequence, records).map_err(|error| match error {
            ChannelError::TooLarge => Reject::Malformed,
            _ => Reject::Forged,
        })?;
        if !window().accept(sequence) {
            return Err(Reject::Replayed);
        }
        channel.confirmed.store(true, Ordering::Relaxed);
        Ok(Incoming {
            channel_hash: channel.hash,
            worker: channel.worker,
            payload,
            reply: ReplySealer { channel, sequence },
        })
    }

    /// Channels held now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels.len()
    }

    /// No channel held?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.channels.is_empty()
    }

    /// Drops what is too old, and where that is not enough the oldest, unconfirmed channels first.
    fn make_room(&self) {
        self.channels.retain(|_, channel| {
            let limit = if channel.confirmed.load(Ordering::Relaxed) { MAX_AGE } else { UNCONFIRMED };
            channel.since.elapsed() <= limit
        });
        while self.channels.len() >= self.max_channels {
            let oldest = self
                .channels
                .iter()
                .min_by_key(|entry| (entry.confirmed.load(Ordering::Relaxed), entry.since))
                .map(|entry| *entry.key());
            match oldest {
                Some(id) => self.channels.remove(&id),
                None => return,
            };
        }
    }
}

impl ReplySealer {
    /// The message to send back.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn seal(self, payload: &[u8]) -> Result<Vec<u8>, ChannelError> {
        self.seal_plain(Plain::of(payload))
    }

    /// The message to send back: a version byte, then `reply` in postcard.
    ///
    /// # Errors
    /// `TooLarge`.
    pub fn seal_reply(self, version: u8, reply: &impl Serialize) -> Result<Vec<u8>, ChannelError> {
        self.seal_plain(Plain::encode(&[version], reply)?)
    }

    fn seal_plain(self, payload: Plain) -> Result<Vec<u8>, ChannelError> {
        let mut message = Vec::with_capacity(payload.len() + 256);
        message.extend_from_slice(&[VERSION, STATUS_OK]);
        record::seal(&self.channel.state, self.sequence, payload, &mut message)?;
        Ok(message)
    }
}
