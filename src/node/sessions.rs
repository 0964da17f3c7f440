//! Sessions in memory: named, bound to their channel, ended by time, and one signing session per key.
//!
//! A session is *busy* while a request works on it; then nothing takes it and nothing preempts it. So at most one check that can
//! lock a key runs at a time, and the lock is durable before the next session of the key can begin.

use super::Refusal;
use crate::wire::node::SessionId;
use crate::wire::{ErrorCode, KeyId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a session is about, fixed when it is opened.
#[derive(Debug, Clone)]
pub struct About {
    /// Handshake hash of the channel on which it was opened; it continues on that one only.
    pub channel: [u8; 32],
    /// The key.
    pub key_id: KeyId,
    /// SHA-256 of the job's body.
    pub job_digest: [u8; 32],
    /// The job's expiry, unix milliseconds.
    pub expires_at: u64,
    /// For the audit log.
    pub initiator: String,
    /// For the audit log.
    pub job_id: String,
}

struct Entry<S> {
    about: Arc<About>,
    /// `None` while busy.
    state: Option<S>,
    until: Instant,
}

/// The one signing slot of a key.
struct Slot {
    session: SessionId,
    job_digest: [u8; 32],
    token: u64,
}

struct Tables<S> {
    sessions: HashMap<SessionId, Entry<S>>,
    slots: HashMap<KeyId, Slot>,
    /// Keys whose lock was begun: they stay shut even if the disk refuses to record it.
    blocked: HashSet<KeyId>,
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
    parked: bool,
}

fn lock<S>(tables: &Mutex<Tables<S>>) -> MutexGuard<'_, Tables<S>> {
    tables.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a worker hears whose session is not there: a new attempt may succeed.
fn gone() -> Refusal {
    Refusal::new(ErrorCode::NodeUnavailable, "the session does not exist, or not on this channel, or has ended")
}

impl<S> Tables<S> {
    fn remove(&mut self, id: &SessionId) {
        if let Some(entry) = self.sessions.remove(id) {
            self.free(&entry.about.key_id, id);
        }
    }

    fn free(&mut self, key: &KeyId, id: &SessionId) {
        if self.slots.get(key).is_some_and(|slot| slot.session == *id) {
            self.slots.remove(key);
        }
    }
}

impl<S> Sessions<S> {
    /// At most `max` sessions, each ended after `ttl` without a request.
    #[must_use]
    pub fn new(max: usize, ttl: Duration) -> Self {
        let tables = Tables { sessions: HashMap::new(), slots: HashMap::new(), blocked: HashSet::new() };
        Self { tables: Arc::new(Mutex::new(tables)), max, ttl }
    }

    /// A new, busy session, holding the key's signing slot where `token` is given: the same job or a higher token takes it from
    /// an idle session, which ends. The token is remembered no longer than the session.
    ///
    /// # Errors
    /// `KEY_BUSY`; `KEY_LOCKED`; `OVERLOADED`.
    pub fn begin(&self, id: SessionId, about: About, token: Option<u64>) -> Result<Busy<S>, Refusal> {
        let mut tables = lock(&self.tables);
        if tables.blocked.contains(&about.key_id) {
            return Err(ErrorCode::KeyLocked.into());
        }
        if let Some(token) = token
            && let Some(slot) = tables.slots.get(&about.key_id)
        {
            let holder = tables.sessions.get(&slot.session);
            let idle = holder.is_none_or(|entry| entry.state.is_some());
            let over = holder.is_none_or(|entry| entry.until < Instant::now());
            if !idle || !(over || slot.job_digest == about.job_digest || token > slot.token) {
                return Err(Refusal::new(ErrorCode::KeyBusy, "another job of this key is under way"));
            }
            let preempted = slot.session;
            tables.remove(&preempted);
        }
        if tables.sessions.len() >= self.max {
            return Err(Refusal::new(ErrorCode::Overloaded, "too many sessions"));
        }
        if let Some(token) = token {
            tables.slots.insert(about.key_id, Slot { session: id, job_digest: about.job_digest, token });
        }
        let about = Arc::new(about);
        let entry = Entry { about: Arc::clone(&about), state: None, until: Instant::now() + self.ttl };
        tables.sessions.insert(id, entry);
        Ok(Busy { tables: Arc::clone(&self.tables), ttl: self.ttl, id, about, parked: false })
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
        Ok((Busy { tables: Arc::clone(&self.tables), ttl: self.ttl, id, about, parked: false }, state))
    }

    /// Ends every idle session of a key and lets none begin any more.
    pub fn block(&self, key: KeyId) {
        lock(&self.tables).blocked.insert(key);
        self.end(key);
    }

    /// Ends every idle session of a key. What a busy one does is for the store to decide.
    pub fn end(&self, key: KeyId) {
        let mut tables = lock(&self.tables);
        let ids: Vec<_> = tables
            .sessions
            .iter()
            .filter(|(_, entry)| entry.about.key_id == key && entry.state.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            tables.remove(&id);
        }
    }

    /// Ends every idle session whose time is over.
    pub fn sweep(&self) {
        let mut tables = lock(&self.tables);
        let now = Instant::now();
        let ids: Vec<_> = tables
            .sessions
            .iter()
            .filter(|(_, entry)| entry.until < now && entry.state.is_some())
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            tables.remove(&id);
        }
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

    /// Lets the key's next signing session begin, while this one goes on.
    pub fn free_slot(&self) {
        lock(&self.tables).free(&self.about.key_id, &self.id);
    }

    /// Leaves the session idle in this state; its time starts anew.
    pub fn park(mut self, state: S) {
        self.parked = true;
        if let Some(entry) = lock(&self.tables).sessions.get_mut(&self.id) {
            entry.state = Some(state);
            entry.until = Instant::now() + self.ttl;
        }
    }
}

impl<S> Drop for Busy<S> {
    fn drop(&mut self) {
        if !self.parked {
            lock(&self.tables).remove(&self.id);
        }
    }
}
