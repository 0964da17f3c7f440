//! Keys locked for ever after a failed check: the client party's side of the lock (node 1 keeps its own).
//!
//! A lock cannot be undone, so only a worker can make one, and only on a job of the key's owner: a record counts if it carries a
//! job that the owner signed for this key, and a code that needs one of the workers' sealing seeds. Anything else that somebody
//! put on the subject is reported, and ignored wherever it stands, before or after a record that counts.

use super::once::{self, Unavailable};
use super::owners::Owners;
use crate::clock::now_ms;
use crate::wire::subject::{self, ALL_BANS, BANS_STREAM};
use crate::wire::{Base64, Fixed, InitiatorId, Job, KeyId, SignedJob, VERSION};
use async_nats::jetstream::Context;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use hkdf::Hkdf;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use subtle::ConstantTimeEq;
use trefoil_protocol::Party;
use trefoil_protocol::transcript::{Tag, hash};
use zeroize::Zeroizing;

/// Pause between two attempts to store a ban, or to read the stored ones.
const PAUSE: Duration = Duration::from_millis(200);

/// Why one epoch of a key is locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ban {
    /// Always 1.
    pub version: u32,
    /// The key.
    pub key_id: KeyId,
    /// The epoch of its shares; refresh and recovery make new ones.
    pub epoch: u32,
    /// Transcript hash T of its shares. Nobody knows that of later ones, so nobody can lock them in advance.
    pub transcript: Fixed<32>,
    /// The check that failed, named as in docs/protocol.md.
    pub check: String,
    /// Whose message failed it, such as `node1`.
    pub culprit: String,
    /// Body of the job that ran, as it was signed. Its passwords stay sealed to the workers.
    pub job: Base64,
    /// The initiator's signature of it, 64 bytes.
    pub job_signature: Fixed<64>,
    /// Unix milliseconds.
    pub at: u64,
}

/// A ban as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Record {
    ban: Ban,
    /// `HKDF-SHA-256(ikm = a sealing seed, info = H("trefoil/v1/ban"; the ban as JSON))`, 32 bytes.
    mac: Fixed<32>,
}

impl Ban {
    /// The lock of these shares of this job's key, because a check of `culprit`'s message failed in it.
    #[must_use]
    pub fn new(job: &Job, epoch: u32, transcript: [u8; 32], check: &str, culprit: Party) -> Self {
        Self {
            version: VERSION,
            key_id: job.key_id,
            epoch,
            transcript: Fixed(transcript),
            check: check.to_owned(),
            culprit: culprit.to_string(),
            job: Base64(job.signed.body.clone()),
            job_signature: job.signed.signature,
            at: now_ms(),
        }
    }

    /// The initiator whose job it carries, if that is signed and of this key.
    fn initiator(&self) -> Option<InitiatorId> {
        let signed = SignedJob { body: self.job.0.clone(), signature: self.job_signature, authorisation: None };
        let job = Job::from_signed(&signed).ok()?;
        (self.version == VERSION && job.key_id == self.key_id).then_some(job.initiator)
    }

    /// What it locks, if it carries a job that is signed and of this key.
    fn locked(&self, owners: &Owners) -> Option<Locked> {
        let Self { key_id, epoch, transcript, .. } = *self;
        Some(Locked { key_id, epoch, transcript: transcript.0, owner: owners.of(self.initiator()?) })
    }
}

/// The shares of one epoch of a key, and on whose job they were locked.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Locked {
    key_id: KeyId,
    epoch: u32,
    transcript: [u8; 32],
    /// The name of the backend that owns the key.
    owner: InitiatorId,
}

/// The bans: makes and checks the stored ones, and remembers what it has seen. Cheap to clone.
#[derive(Clone)]
pub struct Bans(Arc<Inner>);

/// The sealing seeds, 32 bytes each, the newest first. A record counts under any of them.
type Seeds = Arc<[Zeroizing<[u8; 32]>]>;

fn decode<'a>(seeds: impl IntoIterator<Item = &'a str>) -> Option<Seeds> {
    let seeds: Option<Seeds> =
        seeds.into_iter().map(|seed| Some(Zeroizing::new(nkeys::decode_seed(seed).ok()?.1))).collect();
    seeds.filter(|seeds| !seeds.is_empty())
}

struct Inner {
    owners: Owners,
    seeds: RwLock<Seeds>,
    /// How often they were replaced.
    replaced: AtomicU64,
    /// Bans are for ever, so what was once found need not be asked for again.
    known: Mutex<HashSet<Locked>>,
    /// How many have asked what is new.
    asked: AtomicU64,
    /// Whether the last read that ended succeeded.
    readable: AtomicBool,
    /// Held by whoever reads for all who asked before.
    reading: tokio::sync::Mutex<Reading>,
}

/// A record's sequence, and its SHA-256, by which a stream that was made anew is noticed.
type Seen = (u64, [u8; 32]);

/// How far the stream was read.
#[derive(Default)]
struct Reading {
    /// The last record that was read.
    last: Option<Seen>,
    /// How often the seeds had been replaced when the reading began.
    replaced: u64,
    /// Those who asked so far have this answer.
    served: u64,
    outcome: Option<Unavailable>,
}

impl Bans {
    /// With the workers' sealing seeds `SX…`, the newest first. `None` if there are none or one is invalid.
    #[must_use]
    pub fn new<'a>(seeds: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        Self::serving(seeds, Owners::default())
    }

    /// The same for a worker that serves these initiators: a lock that was made on a job of one key of a backend counts for all of them.
    #[must_use]
    pub fn serving<'a>(seeds: impl IntoIterator<Item = &'a str>, owners: Owners) -> Option<Self> {
        Some(Self(Arc::new(Inner {
            seeds: RwLock::new(decode(seeds)?),
            owners,
            replaced: AtomicU64::new(0),
            known: Mutex::default(),
            asked: AtomicU64::new(0),
            readable: AtomicBool::new(false),
            reading: tokio::sync::Mutex::default(),
        })))
    }

    /// Goes on with these seeds, the newest first. False, and nothing changed, if there are none or one is invalid.
    pub fn replace_seeds<'a>(&self, seeds: impl IntoIterator<Item = &'a str>) -> bool {
        let Some(seeds) = decode(seeds) else { return false };
        *self.0.seeds.write().unwrap_or_else(PoisonError::into_inner) = seeds;
        self.0.replaced.fetch_add(1, Ordering::AcqRel);
        true
    }

    fn seeds(&self) -> Seeds {
        self.0.seeds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether these shares of the job's key are locked, by a record that was stored before this is asked. The key's owner is whoever
    /// signed the job: what others' jobs led to does not count, and if it is the job that is not the owner's, the nodes refuse it.
    ///
    /// # Errors
    /// [`Unavailable`]; the key must then not be used.
    pub async fn is_banned(
        &self,
        jetstream: &Context,
        job: &Job,
        epoch: u32,
        transcript: [u8; 32],
    ) -> Result<bool, Unavailable> {
        if self.knows(job, epoch, transcript) {
            return Ok(true);
        }
        self.catch_up(jetstream).await?;
        Ok(self.knows(job, epoch, transcript))
    }

    /// Whether the last read succeeded. Where it did not, ask before anything that another answer would undo.
    #[must_use]
    pub fn are_readable(&self) -> bool {
        self.0.readable.load(Ordering::Acquire)
    }

    /// Whether that was found before: what there is to know without asking.
    #[must_use]
    pub fn knows(&self, job: &Job, epoch: u32, transcript: [u8; 32]) -> bool {
        let owner = self.0.owners.of(job.initiator.clone());
        let locked = Locked { key_id: job.key_id, epoch, transcript, owner };
        self.known().contains(&locked)
    }

    /// Knows every ban that was stored before this was asked. One reads for all who wait: a read that began after they asked is as good as
    /// one of their own, so under load there are fewer reads than jobs.
    async fn catch_up(&self, jetstream: &Context) -> Result<(), Unavailable> {
        let place = self.0.asked.fetch_add(1, Ordering::AcqRel);
        let mut reading = self.0.reading.lock().await;
        if reading.served <= place {
            let served = self.0.asked.load(Ordering::Acquire);
            // What did not count under the seeds of then may count now.
            let replaced = self.0.replaced.load(Ordering::Acquire);
            if std::mem::replace(&mut reading.replaced, replaced) != replaced {
                reading.last = None;
            }
            reading.outcome = self.read_new(jetstream, &mut reading.last).await.err();
            self.0.readable.store(reading.outcome.is_none(), Ordering::Release);
            reading.served = served;
        }
        reading.outcome.clone().map_or(Ok(()), Err)
    }

    /// Reads what follows `seen`, or all of it where that is not there any more: the stream was made anew.
    async fn read_new(&self, jetstream: &Context, seen: &mut Option<Seen>) -> Result<(), Unavailable> {
        let seen_in = |(sequence, bytes): (u64, Bytes)| (sequence, Sha256::digest(&bytes).into());
        let last = once::last(jetstream, BANS_STREAM, ALL_BANS).await?;
        let last = last.map(|message| (message.sequence, message.payload));
        // What is stored while this reads is for those who ask then.
        let end = last.as_ref().map_or(0, |(sequence, _)| *sequence);
        if *seen == last.map(seen_in) {
            return Ok(());
        }
        let mut from = 1;
        if let Some(before) = seen.take() {
            let there = once::next(jetstream, BANS_STREAM, ALL_BANS, before.0).await?;
            if there.map(seen_in) == Some(before) {
                (from, *seen) = (before.0.saturating_add(1), Some(before));
            }
        }
        while from <= end
            && let Some((sequence, bytes)) = once::next(jetstream, BANS_STREAM, ALL_BANS, from).await?
        {
            match self.read(&bytes) {
                Some((_, locked, _)) => _ = self.known().insert(locked),
                None => tracing::error!(sequence, "a ban that is not authentic is ignored"),
            }
            *seen = Some(seen_in((sequence, bytes)));
            from = sequence.saturating_add(1);
        }
        Ok(())
    }

    /// Under which of the seeds there is a record of this.
    async fn stored(&self, jetstream: &Context, locked: &Locked) -> Result<HashSet<usize>, Unavailable> {
        let mut stored = HashSet::new();
        let subject = subject::ban(&locked.key_id, locked.epoch);
        let mut from = 1;
        while let Some((sequence, bytes)) = once::next(jetstream, BANS_STREAM, &subject, from).await? {
            match self.read(&bytes) {
                Some((_, found, seed)) if found == *locked => _ = stored.insert(seed),
                Some(_) => tracing::warn!(%subject, sequence, "a ban of other shares, or on another's job, is ignored"),
                None => tracing::error!(%subject, sequence, "a ban that is not authentic is ignored"),
            }
            from = sequence.saturating_add(1);
        }
        Ok(stored)
    }

    /// Locks the key's epoch, at once for those who hold this value, and for all others when it is stored. A second ban of the
    /// same epoch changes nothing.
    ///
    /// # Errors
    /// [`Unavailable`]; banning again is safe.
    pub async fn record(&self, jetstream: &Context, ban: &Ban) -> Result<(), Unavailable> {
        let unavailable = |reason: String| Unavailable { stream: BANS_STREAM, reason };
        let locked = ban.locked(&self.0.owners).ok_or_else(|| unavailable("a ban without a job of its key".into()))?;
        self.known().insert(locked.clone());
        let stored = self.stored(jetstream, &locked).await?;
        // Under every seed: while they are rotated, some workers lack the newest, and others soon the oldest.
        for (number, seed) in self.seeds().iter().enumerate() {
            if !stored.contains(&number) {
                self.store(jetstream, ban, seed).await?;
            }
        }
        Ok(())
    }

    /// As [`Bans::record`], tried until it is stored. Once begun it goes on by itself, also where the caller stops waiting.
    pub async fn record_until_stored(&self, jetstream: Context, ban: Ban) {
        let bans = self.clone();
        let recording = tokio::spawn(async move {
            while let Err(error) = bans.record(&jetstream, &ban).await {
                tracing::error!(key = %ban.key_id, %error, "a ban is not stored yet");
                tokio::time::sleep(PAUSE).await;
            }
        });
        if let Err(error) = recording.await {
            tracing::error!(%error, "a ban was not recorded");
        }
    }

    /// Stores each ban that counts under an older sealing seed once more under the newest, so that the older seed may go.
    ///
    /// # Errors
    /// [`Unavailable`]; doing it again is safe.
    pub async fn renew(&self, jetstream: &Context) -> Result<(), Unavailable> {
        let mut old = BTreeMap::new();
        let mut current = HashSet::new();
        let mut from = 1;
        while let Some((sequence, bytes)) = once::next(jetstream, BANS_STREAM, ALL_BANS, from).await? {
            match self.read(&bytes) {
                Some((_, locked, 0)) => {
                    current.insert(locked);
                }
                Some((ban, locked, _)) => {
                    old.insert(sequence, (ban, locked));
                }
                None => tracing::error!(sequence, "a ban that is not authentic is ignored"),
            }
            from = sequence.saturating_add(1);
        }
        let seeds = self.seeds();
        for (ban, locked) in old.into_values() {
            if let Some(newest) = seeds.first()
                && current.insert(locked)
            {
                self.store(jetstream, &ban, newest).await?;
            }
        }
        Ok(())
    }

    /// A stored record that counts: the ban, what it locks, and under which of the seeds.
    fn read(&self, bytes: &[u8]) -> Option<(Ban, Locked, usize)> {
        let Record { ban, mac } = serde_json::from_slice(bytes).ok()?;
        let seed = self
            .seeds()
            .iter()
            .position(|seed| code(seed, &ban).is_some_and(|expected| bool::from(expected.ct_eq(&mac.0))))?;
        let locked = ban.locked(&self.0.owners)?;
        Some((ban, locked, seed))
    }

    async fn store(&self, jetstream: &Context, ban: &Ban, seed: &[u8; 32]) -> Result<(), Unavailable> {
        let unavailable = |reason: String| Unavailable { stream: BANS_STREAM, reason };
        let mac = code(seed, ban).ok_or_else(|| unavailable("no code".into()))?;
        let record = Record { ban: ban.clone(), mac: Fixed(mac) };
        let body = serde_json::to_vec(&record).map_err(|error| unavailable(error.to_string()))?;
        let message = PublishMessage::build().payload(body.into()).expected_stream(BANS_STREAM);
        let sent = jetstream.send_publish(subject::ban(&ban.key_id, ban.epoch), message).await;
        sent.map_err(|error| unavailable(error.to_string()))?.await.map_err(|error| unavailable(error.to_string()))?;
        Ok(())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashSet<Locked>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The code of a ban under one seed.
fn code(seed: &[u8; 32], ban: &Ban) -> Option<[u8; 32]> {
    let info = hash(Tag::BAN, &[&serde_json::to_vec(ban).ok()?]);
    let mut code = [0; 32];
    Hkdf::<Sha256>::new(None, seed).expand(&info, &mut code).ok()?;
    Some(code)
}
