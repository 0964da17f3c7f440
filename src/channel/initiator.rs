//! The worker's end: one [`NodeChannel`] per node, shared by all jobs.

use super::record::Plain;
use super::{ChannelError, ChannelId, NOISE, STATUS_OK, STATUS_UNKNOWN, VERSION, prologue, record};
use crate::clock::now_ms;
use crate::connections::Connections;
use crate::telemetry::calls::Calls;
use crate::telemetry::{self, trace};
use crate::wire::node::{Call, NODE_VERSION, NodeReply};
use crate::wire::subject;
use async_nats::HeaderMap;
use async_nats::client::RequestErrorKind;
use bytes::Bytes;
use snow::StatelessTransportState;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tracing::Instrument as _;
use trefoil_protocol::{Party, Secret};
use zeroize::Zeroizing;

/// A link older than this is replaced in the background while it still serves.
const RENEW_AFTER: Duration = Duration::from_secs(3600);
/// A link older than this is not used for anything new; the node forgets it after two hours.
const EXPIRE_AFTER: Duration = Duration::from_secs(6600);
/// A link that was reported lost is replaced at most this often: the report is not authenticated.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// A failed handshake answers everyone who asks within this time, so that a missing node costs one probe, not one per job.
const FAILURE_MEMORY: Duration = Duration::from_millis(100);
/// Clocks further apart than this are worth a warning, milliseconds.
const CLOCKS_APART_MS: u64 = 1_000;
/// Longest wait for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to one node. Cheap to clone; usable by any number of tasks at once.
#[derive(Clone)]
pub struct NodeChannel(Arc<Inner>);

struct Inner {
    connections: Connections,
    node: Party,
    private: Arc<Secret<[u8; 32]>>,
    /// The node's keys: one, and while it changes it the other.
    remotes: Vec<[u8; 32]>,
    /// Which of them it had last: that is tried first, since each one that it does not have looks like an attack to the node.
    had: AtomicUsize,
    current: RwLock<Option<Arc<Link>>>,
    /// Held during a handshake, so that there is one at a time.
    handshake: Mutex<LastFailure>,
    renewing: AtomicBool,
    calls: Option<Arc<Calls>>,
}

#[derive(Default)]
struct LastFailure(Option<(Instant, ChannelError)>);

/// One handshake's worth of channel, with one instance of a node. A signing session begins and ends on one link, because
/// [`Link::hash`] is part of its id.
pub struct Link {
    connections: Connections,
    node: Party,
    subject: String,
    /// Where calls go that are large.
    subject_large: String,
    id: ChannelId,
    hash: [u8; 32],
    state: StatelessTransportState,
    sequence: AtomicU64,
    since: Instant,
    lost: AtomicBool,
    clock: ClockOffset,
    calls: Option<Arc<Calls>>,
}

/// The node's clock minus ours at the handshake, milliseconds; off by at most the answer's way.
#[derive(Clone, Copy)]
struct ClockOffset(i64);

impl ClockOffset {
    fn between(ours: u64, theirs: u64) -> Self {
        Self(i64::try_from(theirs).unwrap_or(i64::MAX).saturating_sub(i64::try_from(ours).unwrap_or(i64::MAX)))
    }

    fn at_node(self, ours: u64) -> u64 {
        ours.saturating_add_signed(self.0)
    }
}

impl NodeChannel {
    /// A channel to `node`, whose X25519 key is one of `remotes`, from the worker whose private key is `private`. Nothing is sent
    /// before the first call.
    #[must_use]
    pub fn new(
        connections: impl Into<Connections>,
        node: Party,
        private: Arc<Secret<[u8; 32]>>,
        remotes: Vec<[u8; 32]>,
    ) -> Self {
        Self::measured(connections.into(), node, private, remotes, None)
    }

    /// The same, with its calls measured.
    #[must_use]
    pub fn measured(
        connections: Connections,
        node: Party,
        private: Arc<Secret<[u8; 32]>>,
        remotes: Vec<[u8; 32]>,
        calls: Option<Arc<Calls>>,
    ) -> Self {
        Self(Arc::new(Inner {
            connections,
            node,
            private,
            remotes,
            had: AtomicUsize::default(),
            current: RwLock::new(None),
            handshake: Mutex::default(),
            renewing: AtomicBool::new(false),
            calls,
        }))
    }

    /// Which node it leads to.
    #[must_use]
    pub fn node(&self) -> Party {
        self.0.node
    }

    /// For how long nothing was found out about whether the node is there. `None` where that is not measured.
    #[must_use]
    pub fn quiet(&self) -> Option<Duration> {
        self.0.calls.as_ref().map(|calls| calls.quiet())
    }

    /// One call that belongs to no session: on the current link, and once more on a new one where the node does not know the
    /// current one any more. So the node may see it twice.
    ///
    /// # Errors
    /// `Unavailable` at once when nobody serves the node; otherwise by the call's deadline.
    pub async fn call(&self, call: &Call) -> Result<NodeReply, ChannelError> {
        let link = self.link(call.deadline).await?;
        match link.call(call).await {
            Err(ChannelError::Lost) => self.link(call.deadline).await?.call(call).await,
            answer => answer,
        }
    }

    /// The current link, after a handshake where there is none. Open a session with this and keep the link to its end.
    ///
    /// # Errors
    /// `Unavailable`, `HandshakeRefused`, `Tampered`, or `Timeout` at `deadline` (unix milliseconds).
    pub async fn link(&self, deadline: u64) -> Result<Arc<Link>, ChannelError> {
        if let Some(link) = self.usable() {
            if link.since.elapsed() > RENEW_AFTER && !self.0.renewing.swap(true, Ordering::AcqRel) {
                let channel = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = channel.renew().await {
                        tracing::warn!(node = %channel.0.node, %error, "channel not renewed");
                    }
                    channel.0.renewing.store(false, Ordering::Release);
                });
            }
            return Ok(link);
        }
        let replace = async {
            let mut last = self.0.handshake.lock().await;
            if let Some(link) = self.usable() {
                return Ok(link);
            }
            if let Some((when, error)) = last.0
                && when.elapsed() < FAILURE_MEMORY
            {
                return Err(error);
            }
            if let Some(age) = self.current().map(|link| link.since.elapsed()) {
                tokio::time::sleep(MIN_INTERVAL.saturating_sub(age)).await;
            }
            self.connect(&mut last).await
        };
        tokio::time::timeout(remaining(deadline)?, replace).await.map_err(|_| ChannelError::Timeout)?
    }

    /// Shakes hands now, whatever the state of the current link; that link goes on to serve those who hold it.
    ///
    /// # Errors
    /// As [`NodeChannel::link`].
    pub async fn renew(&self) -> Result<Arc<Link>, ChannelError> {
        let mut last = self.0.handshake.lock().await;
        self.connect(&mut last).await
    }

    fn current(&self) -> Option<Arc<Link>> {
        self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn usable(&self) -> Option<Arc<Link>> {
        self.current().filter(|link| !link.lost.load(Ordering::Acquire) && link.since.elapsed() < EXPIRE_AFTER)
    }

    async fn connect(&self, last: &mut LastFailure) -> Result<Arc<Link>, ChannelError> {
        let began = Instant::now();
        match self.handshake().await {
            Ok(link) => {
                if let Some(calls) = &self.0.calls {
                    calls.linked(link.clock.0);
                }
                let link = Arc::new(link);
                *self.0.current.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
                last.0 = None;
                tracing::info!(node = %self.0.node, subject = %link.subject, "channel established");
                Ok(link)
            }
            Err(error) => {
                if let Some(calls) = &self.0.calls {
                    calls.failed(began.elapsed(), error);
                }
                last.0 = Some((Instant::now(), error));
                Err(error)
            }
        }
    }

    /// With the first of the node's keys that it has. That it refused one is not authenticated, but all of them are pinned.
    async fn handshake(&self) -> Result<Link, ChannelError> {
        let Inner { remotes, had, .. } = &*self.0;
        let mut refused = ChannelError::HandshakeRefused;
        for (at, remote) in remotes.iter().enumerate().cycle().skip(had.load(Ordering::Relaxed)).take(remotes.len()) {
            match self.handshake_with(remote).await {
                Ok(link) => {
                    had.store(at, Ordering::Relaxed);
                    return Ok(link);
                }
                Err(error @ (ChannelError::HandshakeRefused | ChannelError::Tampered)) => refused = error,
                Err(error) => return Err(error),
            }
        }
        Err(refused)
    }

    async fn handshake_with(&self, remote: &[u8; 32]) -> Result<Link, ChannelError> {
        let inner = &self.0;
        let prologue = prologue(inner.node);
        let mut noise = NOISE
            .parse()
            .map(snow::Builder::new)
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(|builder| builder.local_private_key(inner.private.expose()))
            .and_then(|builder| builder.remote_public_key(remote))
            .and_then(snow::Builder::build_initiator)
            .map_err(|_| ChannelError::HandshakeRefused)?;
        let mut buffer = [0u8; 512];
        let written =
            noise.write_message(&now_ms().to_be_bytes(), &mut buffer).map_err(|_| ChannelError::HandshakeRefused)?;
        let message = buffer.get(..written).ok_or(ChannelError::HandshakeRefused)?;
        let request = [&[VERSION], message].concat();
        let name = inner.node.to_string();
        let answer =
            exchange(&inner.connections.main, subject::node_handshake(&name), request.into(), HANDSHAKE_TIMEOUT)
                .await
                .map_err(
                    // Here "lost" means that nobody listens.
                    |error| if error == ChannelError::Lost { ChannelError::Unavailable } else { error },
                )?;
        let second = match answer.split_first_chunk::<2>() {
            Some(([VERSION, STATUS_OK], second)) => second,
            _ => return Err(ChannelError::HandshakeRefused),
        };
        let read = noise.read_message(second, &mut buffer).map_err(|_| ChannelError::Tampered)?;
        let (time, instance) = buffer.get(..read).and_then(<[u8]>::split_first_chunk).ok_or(ChannelError::Tampered)?;
        let clock = ClockOffset::between(now_ms(), u64::from_be_bytes(*time));
        if clock.0.unsigned_abs() > CLOCKS_APART_MS {
            tracing::warn!(node = %inner.node, milliseconds = clock.0, "the node's clock and ours are apart");
        }
        let instance = std::str::from_utf8(instance).ok();
        let instance = instance.filter(|text| text.bytes().all(|b| b.is_ascii_alphanumeric()) && !text.is_empty());
        let instance = instance.ok_or(ChannelError::Tampered)?;
        let (hash, id) = super::identify(&noise).ok_or(ChannelError::Tampered)?;
        let state = noise.into_stateless_transport_mode().map_err(|_| ChannelError::Tampered)?;
        Ok(Link {
            connections: inner.connections.clone(),
            node: inner.node,
            subject: subject::node_instance(&name, instance),
            subject_large: subject::node_instance_large(&name, instance),
            id,
            hash,
            state,
            sequence: AtomicU64::new(0),
            since: Instant::now(),
            lost: AtomicBool::new(false),
            clock,
            calls: inner.calls.clone(),
        })
    }
}

impl Link {
    /// The handshake hash, 32 bytes, the same at both ends: goes into the id of every session on this link.
    #[must_use]
    pub const fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// One call.
    ///
    /// # Errors
    /// `Lost` if the node does not know the link any more (sessions on it are gone); `Timeout` at the call's deadline;
    /// `TooLarge`; `Tampered`.
    pub async fn call(&self, call: &Call) -> Result<NodeReply, ChannelError> {
        let began = Instant::now();
        let span = tracing::debug_span!("node", node = telemetry::party(self.node), round = call.request.name());
        let answer = self.ask(call).instrument(span).await;
        if let Some(calls) = &self.calls {
            calls.ended(call.request.name(), began.elapsed(), answer.as_ref().err().copied());
        }
        answer
    }

    async fn ask(&self, call: &Call) -> Result<NodeReply, ChannelError> {
        // As `Call` itself is encoded, field by field, with the deadline in the node's time.
        let Call { version, deadline, request } = call;
        let at_node = (version, self.clock.at_node(*deadline), request);
        let reply = self.exchange(Plain::encode(&[], &at_node)?, remaining(call.deadline)?).await?;
        match reply.split_first() {
            Some((&NODE_VERSION, body)) => postcard::from_bytes(body).map_err(|_| ChannelError::Tampered),
            _ => Err(ChannelError::Tampered),
        }
    }

    async fn exchange(&self, payload: Plain, timeout: Duration) -> Result<Zeroizing<Vec<u8>>, ChannelError> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
        let mut message = Vec::with_capacity(payload.len() + 256);
        message.push(VERSION);
        message.extend_from_slice(&self.id);
        message.extend_from_slice(&sequence.to_be_bytes());
        record::seal(&self.state, sequence, payload, &mut message)?;
        let message = Bytes::from(message);
        let by_main = || exchange(&self.connections.main, self.subject.clone(), message.clone(), timeout);
        let answer = match self.connections.for_large(message.len()) {
            Some(large) => match exchange(large, self.subject_large.clone(), message.clone(), timeout).await {
                // The same bytes: should the node have had them after all, it drops them as a replay.
                Err(ChannelError::Lost) => by_main().await,
                answer => answer,
            },
            None => by_main().await,
        };
        let lost = || {
            self.lost.store(true, Ordering::Release);
            ChannelError::Lost
        };
        let answer = answer.map_err(|error| if error == ChannelError::Lost { lost() } else { error })?;
        match answer.split_first_chunk::<2>() {
            Some(([VERSION, STATUS_OK], records)) => record::open(&self.state, sequence, records),
            Some(([VERSION, STATUS_UNKNOWN], [])) => Err(lost()),
            _ => Err(ChannelError::Tampered),
        }
    }
}

/// One NATS request. `Lost` means that nobody listens on the subject.
async fn exchange(
    client: &async_nats::Client,
    subject: String,
    message: Bytes,
    timeout: Duration,
) -> Result<Bytes, ChannelError> {
    let mut request = async_nats::Request::new().payload(message).timeout(Some(timeout));
    if let Some(trace) = trace::current() {
        // For the node's log only, so it may stand outside of what is encrypted.
        let mut headers = HeaderMap::new();
        trace.write(&mut headers);
        request = request.headers(headers);
    }
    // The client's own timeout does not cover the wait for a place in its queue.
    let answer = tokio::time::timeout(timeout, client.send_request(subject, request));
    match answer.await.map_err(|_| ChannelError::Timeout)? {
        Ok(answer) => Ok(answer.payload),
        Err(error) => Err(match error.kind() {
            RequestErrorKind::NoResponders => ChannelError::Lost,
            RequestErrorKind::TimedOut => ChannelError::Timeout,
            RequestErrorKind::MaxPayloadExceeded => ChannelError::TooLarge,
            RequestErrorKind::InvalidSubject | RequestErrorKind::Other => ChannelError::Unavailable,
        }),
    }
}

/// Time until a deadline in unix milliseconds.
fn remaining(deadline: u64) -> Result<Duration, ChannelError> {
    match deadline.saturating_sub(now_ms()) {
        0 => Err(ChannelError::Timeout),
        left => Ok(Duration::from_millis(left)),
    }
}
