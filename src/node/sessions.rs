//! Sessions in memory: named, bound to their channel, ended by time; one signing session per key, and one that makes new shares of it.
//!
//! A session is *busy* while a request works on it; then nothing takes it and nothing preempts it. So at most one check that can
//! lock a key runs at a time, and the lock is durable before the next session of the key can begin.

use super::Refusal;
use super::measure::{Ending, Progress};
use crate::fault;
use crate::telemetry::metrics::NodeMetrics;
use crate::telemetry::trace::Hex;
use crate::wire::node::SessionId;
use crate::wire::{Curve, ErrorCode, InitiatorId, KeyId, Op};
use data_encoding::HEXLOWER;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a session is about, fixed when it is opened; and how far it came.
#[derive(Debug)]
pub struct About {
    /// Handshake hash of the channel on which it was opened; it continues on that one only.
    pub channel: [u8; 32],
    /// The key that the job names.
    pub key_id: KeyId,
    /// Transcript hash of that key's share, where the session uses it: it ends with the share.
    pub share: Option<[u8; 32]>,
    /// Whether a failed check does not keep it from beginning, because it mends that.
    pub despite_lock: bool,
    /// SHA-256 of the job's body.
    pub job_digest: [u8; 32],
    /// The job's expiry, unix milliseconds.
    pub expires_at: u64,
    /// Who signed the job. It has to be in the policy until the end.
    pub initiator: InitiatorId,
    /// For the audit log.
    pub job_id: String,
    /// What the job asks for.
    pub op: Op,
    /// The curve that the job names.
    pub job_curve: Option<Curve>,
    /// The key's curve.
    pub curve: Option<Curve>,
    /// For the metrics.
    pub progress: Progress,
}

struct Entry<S> {
    about: Arc<About>,
    /// `None` while busy.
    state: Option<S>,
    until: Instant,
}

/// What a session claims of its key.
#[derive(Debug, Clone, Copy)]
pub enum Claim {
    /// Nothing: there may be others beside it.
    Nothing,
    /// The signing slot. The lease token is the worker's word.
    Signing {
        /// Stream sequence of the lease.
        token: u64,
    },
    /// The slot for making new shares: of two such jobs, one would work in vain.
    Resharing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Signing,
    Resharing,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Signing => "signing",
            Self::Resharing => "resharing",
        }
    }
}

impl Claim {
    const fn slot(self) -> Option<(Kind, u64)> {
        match self {
            Self::Nothing => None,
            Self::Signing { token } => Some((Kind::Signing, token)),
            Self::Resharing => Some((Kind::Resharing, 0)),
        }
    }
}

/// A slot that is taken.
struct Slot {
    session: SessionId,
    job_digest: [u8; 32],
    token: u64,
}

struct Tables<S> {
    sessions: HashMap<SessionId, Entry<S>>,
    slots: HashMap<(KeyId, Kind), Slot>,
    /// Keys whose lock was begun, and which shares it shuts: they stay shut even if the disk refuses to record it.
    blocked: HashSet<(KeyId, [u8; 32])>,
    metrics: Arc<NodeMetrics>,
}

/// All sessions of a node. `S` is what a session has reached.
pub struct Sessions<S> {
    tables: Arc<Mutex<Tables<S>>>,
    max: usize,
    ttl: Duration,
}

/// A busy session: goes on with [`Busy::park`], ends when dropped.
pub struct Busy<S> {
    tables: Arc<Mutex<Tables<S>>>,
    ttl: Duration,
    id: SessionId,
    about: Arc<About>,
    /// The session that this one took its slot from.
    preempted: Option<Arc<About>>,
    parked: bool,
}

fn lock<S>(tables: &Mutex<Tables<S>>) -> MutexGuard<'_, Tables<S>> {
    tables.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what a session does, to a test that listens.
pub fn seen(what: &str, id: &SessionId) {
    fault::seen(format_args!("{what} {}", HEXLOWER.encode(id)));
}

/// Names a session in the span of the present call.
fn traced(id: &SessionId) {
    tracing::Span::current().record("session", tracing::field::display(Hex(id)));
}

/// What a worker hears whose session is not there: a new attempt may succeed.
fn gone() -> Refusal {
    Refusal::new(ErrorCode::NodeUnavailable, "the session does not exist, or not on this channel, or has ended")
}

impl<S> Tables<S> {
    fn remove(&mut self, id: &SessionId, ending: Ending) {
        if let Some(entry) = self.sessions.remove(id) {
            seen("gone", id);
            self.metrics.session_ended(&entry.about, ending);
            self.free(&entry.about.key_id, id);
        }
    }

    fn free(&mut self, key: &KeyId, id: &SessionId) {
        for kind in [Kind::Signing, Kind::Resharing] {
            if self.slots.get(&(*key, kind)).is_some_and(|slot| slot.session == *id) {
                self.slots.remove(&(*key, kind));
            }
        }
    }

    fn end_where(&mut self, is_over: impl Fn(&Entry<S>, &S) -> bool) {
        let over = |entry: &Entry<S>| entry.state.as_ref().is_some_and(|state| is_over(entry, state));
        let ids: Vec<_> = self.sessions.iter().filter(|(_, entry)| over(entry)).map(|(id, _)| *id).collect();
        for id in ids {
            self.remove(&id, Ending::Forgotten);
        }
    }
}

impl<S> Sessions<S> {
    /// At most `max` sessions, each ended after `ttl` without a request.
    #[must_use]
    pub fn new(max: usize, ttl: Duration, metrics: Arc<NodeMetrics>) -> Self {
        let tables = Tables { sessions: HashMap::new(), slots: HashMap::new(), blocked: HashSet::new(), metrics };
        Self { tables: Arc::new(Mutex::new(tables)), max, ttl }
    }

    /// A new, busy session, holding the slot that it claims: the same job, or for signing a higher token, takes it from an
    /// idle session, which ends. The token is remembered no longer than the session.
    ///
    /// # Errors
    /// `KEY_BUSY`; `KEY_LOCKED`; `OVERLOADED`.
    pub fn begin(&self, id: SessionId, about: About, claim: Claim) -> Result<Busy<S>, Refusal> {
        let mut tables = lock(&self.tables);
        let shut = about.share.is_some_and(|share| tables.blocked.contains(&(about.key_id, share)));
        if shut && !about.despite_lock {
            return Err(ErrorCode::KeyLocked.into());
        }
        let mut preempted = None;
        let claimed = claim.slot().map(|(kind, token)| ((about.key_id, kind), token));
        if let Some((name, token)) = claimed
            && let Some(slot) = tables.slots.get(&name)
        {
            let holder = tables.sessions.get(&slot.session);
            let idle = holder.is_none_or(|entry| entry.state.is_some());
            let over = holder.is_none_or(|entry| entry.until < Instant::now());
            if !idle || !(over || slot.job_digest == about.job_digest || token > slot.token) {
                return Err(Refusal::new(ErrorCode::KeyBusy, "another job of this key is under way"));
            }
            let ended = slot.session;
            preempted = holder.map(|entry| Arc::clone(&entry.about));
            tables.remove(&ended, Ending::Forgotten);
        }
        if tables.sessions.len() >= self.max {
            return Err(Refusal::new(ErrorCode::Overloaded, "too many sessions"));
        }
        if let Some((name, token)) = claimed {
            tables.slots.insert(name, Slot { session: id, job_digest: about.job_digest, token });
        }
        if let Some(((key, kind), _)) = claimed {
            let (session, job) = (HEXLOWER.encode(&id), HEXLOWER.encode(&about.job_digest));
            fault::seen(format_args!("begin {session} {} {key} {job}", kind.name()));
        }
        let about = Arc::new(about);
        let entry = Entry { about: Arc::clone(&about), state: None, until: Instant::now() + self.ttl };
        tables.sessions.insert(id, entry);
        drop(tables);
        traced(&id);
        Ok(Busy { tables: Arc::clone(&self.tables), ttl: self.ttl, id, about, preempted, parked: false })
    }

    /// Takes an idle session that `wanted` accepts. One that is not wanted stays as it is.
    ///
    /// # Errors
    /// `NODE_UNAVAILABLE` for a session that is not there, busy, over, or of another channel; what `wanted` says.
    pub fn take(
        &self,
        id: SessionId,
        channel: &[u8; 32],
        wanted: impl FnOnce(&S) -> Result<(), Refusal>,
    ) -> Result<(Busy<S>, S), Refusal> {
        let mut tables = lock(&self.tables);
        let entry = tables.sessions.get_mut(&id).ok_or_else(gone)?;
        if entry.about.channel != *channel || entry.until < Instant::now() {
            return Err(gone());
        }
        wanted(entry.state.as_ref().ok_or_else(gone)?)?;
        let state = entry.state.take().ok_or_else(gone)?;
        let about = Arc::clone(&entry.about);
        drop(tables);
        traced(&id);
        super::traced(&about.job_id, about.key_id);
        Ok((Busy { tables: Arc::clone(&self.tables), ttl: self.ttl, id, about, preempted: None, parked: false }, state))
    }

    /// Ends every idle session of a key, and lets none begin any more that uses this share of it.
    pub fn block(&self, key: KeyId, share: [u8; 32]) {
        {
            let mut tables = lock(&self.tables);
            if tables.blocked.insert((key, share)) {
                tables.metrics.key_locks.inc();
            }
        }
        self.end(key);
    }

    /// Ends every idle session of a key. What a busy one does is for the store to decide.
    pub fn end(&self, key: KeyId) {
        lock(&self.tables).end_where(|entry, _| entry.about.key_id == key);
    }

    /// Ends every idle session that uses this share of a key.
    pub fn end_share(&self, key: KeyId, share: [u8; 32]) {
        lock(&self.tables).end_where(|entry, _| entry.about.key_id == key && entry.about.share == Some(share));
    }

    /// Ends every idle session in such a state.
    pub fn end_state(&self, is_over: impl Fn(&S) -> bool) {
        self.end_if(|_, state| is_over(state));
    }

    /// Ends every idle session of which this holds.
    pub fn end_if(&self, is_over: impl Fn(&About, &S) -> bool) {
        lock(&self.tables).end_where(|entry, state| is_over(&entry.about, state));
    }

    /// Ends every idle session whose time is over.
    pub fn sweep(&self) {
        let now = Instant::now();
        lock(&self.tables).end_where(|entry, _| entry.until < now);
    }

    /// Sessions that are busy, or idle in a state that `counts`.
    pub fn count(&self, counts: impl Fn(&S) -> bool) -> usize {
        lock(&self.tables).sessions.values().filter(|entry| entry.state.as_ref().is_none_or(&counts)).count()
    }
}

impl<S> Busy<S> {
    /// The session's name.
    #[must_use]
    pub const fn id(&self) -> SessionId {
        self.id
    }

    /// What it is about.
    #[must_use]
    pub fn about(&self) -> &Arc<About> {
        &self.about
    }

    /// The session that this one took its slot from, and thereby ended.
    #[must_use]
    pub fn preempted(&self) -> Option<&Arc<About>> {
        self.preempted.as_ref()
    }

    /// Lets the key's next session of this kind begin, while this one goes on.
    pub fn free_slot(&self) {
        let mut tables = lock(&self.tables);
        seen("free", &self.id);
        tables.free(&self.about.key_id, &self.id);
    }

    /// Leaves the session idle in this state; its time starts anew.
    pub fn park(self, state: S) {
        let until = Instant::now() + self.ttl;
        self.leave(state, Some(until));
    }

    /// Leaves the session idle in this state; its time goes on, because nothing in it has.
    pub fn put_back(self, state: S) {
        self.leave(state, None);
    }

    fn leave(mut self, state: S, until: Option<Instant>) {
        self.parked = true;
        if let Some(entry) = lock(&self.tables).sessions.get_mut(&self.id) {
            entry.state = Some(state);
            entry.until = until.unwrap_or(entry.until);
        }
    }
}

impl<S> Drop for Busy<S> {
    fn drop(&mut self) {
        if !self.parked {
            lock(&self.tables).remove(&self.id, Ending::Failed);
        }
    }
}
