//! What a node keeps: keys and prepared attempts, the job ledger, password attempts, burned sessions.
//!
//! Shares are encrypted under data keys of their own, which live in a slot file outside the database (`slots`), so that
//! overwriting one slot destroys a share for good: a copy-on-write database cannot overwrite. All writes go through one
//! thread, which commits many of them at once (`writer`); each caller waits for its own to be durable.

mod attempts;
mod cancel;
mod dump;
mod guesses;
mod ledger;
mod live;
mod open;
mod quarantine;
mod recoveries;
mod redb_store;
mod registry;
mod rekey;
mod restore;
mod rows;
mod seal;
mod slots;
mod staging;
mod stopped;
mod types;
mod undecided;
mod writer;

pub use dump::{Snapshot, skim};
pub use open::{DATABASE, SLOTS};
pub use quarantine::{Doubt, Quarantine, Verdict};
pub use recoveries::Request;
pub use redb_store::RedbStore;
pub use rekey::rekey;
pub use restore::{Draft, Restored};
pub use stopped::{Shares, StoppedStore, Stored};
pub use types::{
    Asked, Attempt, BurnedSession, Fate, GuessLimits, GuessOutcome, KeyRecord, KeyState, LedgerEntry, Order, Quota,
    RecoveryRules, Registered, StoreError,
};
pub use undecided::Standing;

use super::audit::Head;
use crate::wire::{EpochStatement, InitiatorId, JobId, JobState, KeyId};
use futures::future::BoxFuture;
use std::ops::Bound;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// The outcome of a write, once it is durable.
pub type Written<T> = BoxFuture<'static, Result<T, StoreError>>;

/// A node's durable state. Reads see what is committed; writes complete when they are durable.
pub trait Store: Send + Sync + 'static {
    /// A committed key.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;

    /// The attempts of a key that are prepared, and neither committed nor superseded.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn prepared(&self, id: KeyId) -> Result<Vec<Attempt>, StoreError>;

    /// The attempts that are prepared from a key's shares, to take their place: under the key's id or under others.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn replacements(&self, source: KeyId) -> Result<Vec<Attempt>, StoreError>;

    /// An attempt, whatever became of it; `None` if it was never here, or was dropped.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn attempt(&self, id: KeyId, transcript: [u8; 32]) -> Result<Option<Attempt>, StoreError>;

    /// The secret bytes of an attempt, decrypted.
    ///
    /// # Errors
    /// `Corrupt` if they were altered or their data key is gone; `Failed`.
    fn material(&self, id: KeyId, transcript: [u8; 32]) -> Result<Zeroizing<Vec<u8>>, StoreError>;

    /// Enters a job into the ledger; the same job again is fine.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`.
    fn admit(&self, job: LedgerEntry) -> Written<()>;

    /// Does the ledger hold this job id with another body?
    ///
    /// # Errors
    /// `JOB_ID_REUSED`; `Failed`.
    fn check_ledger(&self, job: &LedgerEntry) -> Result<bool, StoreError>;

    /// Enters a job into the ledger and charges a password attempt at a `key`'s id and share, named by its transcript hash, at
    /// `now` (unix milliseconds), in one commit. The same job with the same `blinded` password is charged once: its answer tells
    /// nothing new, so whoever asks again guesses nothing. A refresh may be charged for at a locked key.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`, the code of the key's state, `STALE_SHARE`, `LockedOut`.
    fn charge(
        &self,
        job: LedgerEntry,
        key: (KeyId, [u8; 32]),
        blinded: [u8; 32],
        limits: GuessLimits,
        now: u64,
    ) -> Written<()>;

    /// Ends an attempt that was charged at a `key`'s id and share. Where the key has other shares by now it changes nothing: their count
    /// is of another password.
    fn settle(&self, key: (KeyId, [u8; 32]), outcome: GuessOutcome, now: u64) -> Written<()>;

    /// Burns a session, and settles its password attempt as right.
    ///
    /// # Errors
    /// The code of the key's state, or `STALE_SHARE`, where that changed since the session was opened.
    fn burn(&self, session: BurnedSession) -> Written<()>;

    /// The same for items of a batch, under a name each, in one commit; the session goes on.
    ///
    /// # Errors
    /// As [`Store::burn`]; then none is burned.
    fn burn_items(&self, session: BurnedSession, items: Vec<[u8; 16]>) -> Written<()>;

    /// Whether an owner may have this key: has it already, or has fewer than so many. Keys that are only prepared count, keys
    /// that have ended do not.
    ///
    /// # Errors
    /// `Failed`.
    fn has_room(&self, quota: &Quota, id: KeyId) -> Result<bool, StoreError>;

    /// Stages an attempt with its secret bytes: a new key, if its owner then has no more than the quota, or new shares for a key
    /// that is committed with the shares that the attempt was made from.
    ///
    /// # Errors
    /// `JOB_ID_REUSED` if an attempt of this job is committed, or one of another job under a new key's id, or this one was discarded;
    /// `OVERLOADED` with 64 attempts of the job prepared; `NOT_PERMITTED` for a key too many; the code of the source's state;
    /// `JOB_SUPERSEDED` if the source has other shares now.
    fn stage(&self, attempt: Attempt, material: Zeroizing<Vec<u8>>, quota: Option<Quota>) -> Written<()>;

    /// Makes a prepared attempt the key. Of what it replaces, and of all other attempts to replace that or to be this key, the
    /// data keys are destroyed; a recovery retires its source; a locked key signs again, a frozen one stays frozen. All of it
    /// is one commit. Again for what was committed once is fine, whatever took its place since.
    ///
    /// # Errors
    /// `UNKNOWN_KEY` if there is no such attempt; `JOB_SUPERSEDED` if the shares that it was made from were replaced by others, or
    /// destroyed.
    fn commit(&self, id: KeyId, transcript: [u8; 32]) -> Written<Attempt>;

    /// Destroys a prepared attempt, or keeps one that is not there from being prepared later.
    ///
    /// # Errors
    /// `JOB_ID_REUSED` if it is or was committed.
    fn discard(&self, id: KeyId, transcript: [u8; 32]) -> Written<()>;

    /// Locks a key for good. `kept` replaces the secret bytes of the share that is named by its transcript (the share without OT
    /// state) under a new data key, and the old data key is destroyed.
    ///
    /// # Errors
    /// The code of a state that cannot be locked; a key that is locked already is fine. `STALE_SHARE` if the share is not the key's
    /// any more: its OT state is gone already.
    fn lock(&self, id: KeyId, transcript: [u8; 32], kept: Zeroizing<Vec<u8>>) -> Written<()>;

    /// Enters the job into the ledger and carries out its order, in one commit; the key's last order again is fine, and changes
    /// nothing. Where the share ends, its data key is destroyed, and those of all attempts to replace it.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`; `JOB_SUPERSEDED` unless it was issued after the key's last order; `UNKNOWN_KEY`; the code of a state that
    /// may not become `to`.
    fn order(&self, order: Order) -> Written<()>;

    /// The registered keys of an owner, those that have ended too, in the order of their ids: at most `limit` from `from` on, and
    /// whether there are more.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn registered(
        &self,
        owner: &InitiatorId,
        from: Bound<KeyId>,
        limit: u32,
    ) -> Result<(Vec<Registered>, bool), StoreError>;

    /// Enters the job into the ledger and labels a key, in one commit: an empty label takes it away, `None` leaves it. The same job
    /// again changes nothing.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`, `JOB_CANCELLED`; `JOB_SUPERSEDED` unless the job was issued after the one that gave the label; `UNKNOWN_KEY`;
    /// the code of a state in which a key has ended.
    fn label(&self, job: LedgerEntry, key: KeyId, label: Option<String>, issued_at: u64) -> Written<()>;

    /// Enters the job into the ledger, and keeps the other job of the same initiator from ever being entered, in one commit.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`, `JOB_CANCELLED`; `JOB_STARTED` if the other job was entered before.
    fn cancel(&self, job: LedgerEntry, other: JobId, now: u64) -> Written<()>;

    /// How far the ledger has a job: `Cancelled`, `Started` or `Unknown`.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn job_state(&self, initiator: &InitiatorId, job: &JobId) -> Result<JobState, StoreError>;

    /// Asks whether a recover job for this key, issued at `issued_at`, may go on at `now` (both unix milliseconds). The first one to
    /// ask makes the request. `opens`: it begins now; what it makes may be staged and committed, unless the request is
    /// cancelled before node 1 commits it.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`, `JOB_CANCELLED`; `JOB_SUPERSEDED` unless it was issued after the last request or cancellation.
    fn ask_recovery(
        &self,
        job: LedgerEntry,
        key: KeyId,
        issued_at: u64,
        opens: bool,
        rules: RecoveryRules,
        now: u64,
    ) -> Written<Asked>;

    /// Enters the job into the ledger and ends the key's request, in one commit; says whether there was one. Recover jobs that were
    /// issued before ask in vain. The same job again changes nothing.
    ///
    /// # Errors
    /// `JOB_ID_REUSED`, `JOB_CANCELLED`; `JOB_SUPERSEDED` unless it was issued after the last request or cancellation; `UNKNOWN_KEY`;
    /// the code of a state in which a key has ended.
    fn cancel_recovery(&self, job: LedgerEntry, key: KeyId, issued_at: u64) -> Written<bool>;

    /// Forgets jobs and sessions whose time is over, at most 10,000 of each.
    fn prune(&self, now: u64) -> Written<()>;

    /// Can it still be written? Looks only after a write has failed.
    ///
    /// # Errors
    /// `Failed` if it cannot, until it is opened anew.
    fn check(&self) -> Written<()>;

    /// Tells the store the end of the audit log, to be anchored with its next commit.
    fn anchor(&self, head: Head);

    /// The anchored end of the audit log.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn anchored(&self) -> Result<Option<Head>, StoreError>;

    /// The whole store as of now, for a backup.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn snapshot(&self) -> Result<Snapshot, StoreError>;

    /// Brings the copy of the slot file up to date, in place, between two commits.
    ///
    /// # Errors
    /// `Mismatch` if what is there is no copy of this store's, or a newer one; `Failed`.
    fn copy_slots(&self, to: PathBuf) -> Written<()>;

    /// Some of the attempts that were prepared before this time, unix milliseconds, and are not decided.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn undecided(&self, before: u64, limit: usize) -> Result<Vec<Attempt>, StoreError>;

    /// How an attempt stands, after all writes that were asked for before. `generated`: it was not made from another key's shares.
    fn standing(&self, id: KeyId, transcript: [u8; 32], generated: bool) -> Written<Standing>;

    /// Whether the store was restored from a backup, and when.
    fn quarantine(&self) -> Option<Quarantine>;

    /// What is open about a key of a restored store.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn doubt(&self, id: KeyId) -> Result<Option<Doubt>, StoreError>;

    /// How many keys of a restored store are unconfirmed, and how many outdated.
    ///
    /// # Errors
    /// `Failed`, `Corrupt`.
    fn doubts(&self) -> Result<(u64, u64), StoreError>;

    /// Takes the other node's word about a key of a restored store. `wipe`: what has ended is destroyed here, too.
    ///
    /// # Errors
    /// `KEY_UNCONFIRMED` if the other node is behind this one.
    fn confirm(&self, said: EpochStatement, wipe: bool) -> Written<Verdict>;
}
