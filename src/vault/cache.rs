//! Data keys that were unwrapped, kept for a while: so that a password that is used often is not stretched each time.
//!
//! What is kept of a data key is found by its secretStore and opened by node 1's evaluation of its password: HKDF of the OPRF's output,
//! under a random key of this process, masks it and recognises the right password. So whoever reads it has neither the data key nor
//! anything to try passwords on, unless node 1 evaluates each; only the stretching is missing. It lies in memory that is not swapped
//! out, and is overwritten when its time is over. What it costs is in SECURITY.md.

use super::{DataKey, VaultError};
use crate::wire::KeyId;
use hkdf::Hkdf;
use rand_core::{OsRng, RngCore};
use sha2::Sha256;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use trefoil_protocol::transcript::{Tag, hash};
use zeroize::{Zeroize, Zeroizing};

/// Entries; the one that would end first makes room. With the page that they begin in they take 64 KiB, which is as much as some systems
/// let a process lock.
const CAPACITY: usize = 960;

/// What an entry is recognised by, and the masked data key, 32 bytes each.
type Record = [u8; 64];

/// Memory for records: locked, overwritten when it is given back.
struct Slab {
    // Unlocked when dropped, which is after the slab's own drop has overwritten the records.
    _locked: region::LockGuard,
    records: Box<[Record]>,
    free: Vec<usize>,
}

impl Slab {
    fn new(capacity: usize) -> Result<Self, region::Error> {
        let records = vec![[0; 64]; capacity].into_boxed_slice();
        let locked = region::lock(records.as_ptr(), std::mem::size_of_val(&*records))?;
        Ok(Self { _locked: locked, records, free: (0..capacity).collect() })
    }

    fn put(&mut self, record: &Record) -> Option<usize> {
        let place = self.free.pop()?;
        self.records.get_mut(place)?.copy_from_slice(record);
        Some(place)
    }

    fn wipe(&mut self, place: usize) {
        if let Some(record) = self.records.get_mut(place) {
            record.zeroize();
            self.free.push(place);
        }
    }
}

impl Drop for Slab {
    fn drop(&mut self) {
        self.records.iter_mut().for_each(Zeroize::zeroize);
    }
}

struct Entry {
    place: usize,
    key_id: KeyId,
    until: Instant,
}

struct Entries {
    slab: Slab,
    /// By the hash of key id and secretStore.
    found: HashMap<[u8; 32], Entry>,
}

impl Entries {
    fn remove_if(&mut self, mut over: impl FnMut(&Entry) -> bool) {
        let slab = &mut self.slab;
        self.found.retain(|_, entry| {
            let over = over(entry);
            if over {
                slab.wipe(entry.place);
            }
            !over
        });
    }
}

/// The cache of one process. Cheap to clone.
#[derive(Clone)]
pub struct UnlockCache(Arc<Inner>);

struct Inner {
    keep: Duration,
    secret: Zeroizing<[u8; 32]>,
    entries: Mutex<Entries>,
}

impl UnlockCache {
    /// Keeps each data key for this long after it was unwrapped, however often it is used meanwhile; 960 at most.
    ///
    /// # Errors
    /// The system refuses to lock 64 KiB of memory.
    pub fn new(keep: Duration) -> Result<Self, region::Error> {
        Self::with_capacity(keep, CAPACITY)
    }

    fn with_capacity(keep: Duration, capacity: usize) -> Result<Self, region::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        OsRng.fill_bytes(secret.as_mut());
        let entries = Mutex::new(Entries { slab: Slab::new(capacity)?, found: HashMap::new() });
        Ok(Self(Arc::new(Inner { keep, secret, entries })))
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the data key of this secretStore is kept, if it is.
    #[must_use]
    pub fn spot(&self, key_id: KeyId, secret_store: &[u8]) -> Spot {
        let store = hash(Tag::VAULT_UNLOCKED, &[&key_id.0, secret_store]);
        Spot { cache: self.clone(), key_id, store }
    }

    /// Forgets what is kept of a key, under any of its secretStores.
    pub fn forget(&self, key_id: KeyId) {
        self.entries().remove_if(|entry| entry.key_id == key_id);
    }

    /// Forgets everything.
    pub fn clear(&self) {
        self.entries().remove_if(|_| true);
    }

    /// Overwrites what is too old. To be called about every second.
    pub fn sweep(&self) {
        self.sweep_at(Instant::now());
    }

    fn sweep_at(&self, now: Instant) {
        self.entries().remove_if(|entry| entry.until <= now);
    }
}

/// The place of one secretStore's data key in the cache.
#[derive(Clone)]
pub struct Spot {
    cache: UnlockCache,
    key_id: KeyId,
    store: [u8; 32],
}

impl Spot {
    /// What is there, if it was put there not too long ago.
    #[must_use]
    pub fn look(&self) -> Option<Kept> {
        self.look_at(Instant::now())
    }

    fn look_at(&self, now: Instant) -> Option<Kept> {
        let entries = self.cache.entries();
        let entry = entries.found.get(&self.store).filter(|entry| now < entry.until)?;
        let record = Zeroizing::new(*entries.slab.records.get(entry.place)?);
        Some(Kept { spot: self.clone(), record })
    }

    /// Keeps the data key that this secretStore was just opened to, with this OPRF output of its password.
    ///
    /// # Errors
    /// `INTERNAL`: none that an input can cause.
    pub fn keep(&self, key: &DataKey, output: &[u8; 64]) -> Result<(), VaultError> {
        self.keep_at(key, output, Instant::now())
    }

    fn keep_at(&self, key: &DataKey, output: &[u8; 64], now: Instant) -> Result<(), VaultError> {
        let mut record = self.derive(output)?;
        let (_, mask) = record.split_at_mut(32);
        mask.iter_mut().zip(key.0.iter()).for_each(|(mask, key)| *mask ^= key);
        let mut entries = self.cache.entries();
        if let Some(old) = entries.found.remove(&self.store) {
            entries.slab.wipe(old.place);
        }
        if entries.slab.free.is_empty()
            && let Some(first) = entries.found.values().map(|entry| entry.until).min()
        {
            entries.remove_if(|entry| entry.until <= first);
        }
        if let Some(place) = entries.slab.put(&record) {
            let until = now + self.cache.0.keep;
            entries.found.insert(self.store, Entry { place, key_id: self.key_id, until });
        }
        Ok(())
    }

    /// What this password is recognised by, and the mask.
    fn derive(&self, output: &[u8; 64]) -> Result<Zeroizing<Record>, VaultError> {
        let mut record = Zeroizing::new([0; 64]);
        let info = [Tag::VAULT_KEPT.as_str().as_bytes(), &self.store].concat();
        Hkdf::<Sha256>::new(Some(self.cache.0.secret.as_ref()), output)
            .expand(&info, record.as_mut())
            .map_err(|_| VaultError::Bug("HKDF output length"))?;
        Ok(record)
    }
}

/// A data key that was kept, masked.
pub struct Kept {
    spot: Spot,
    record: Zeroizing<Record>,
}

impl Kept {
    /// The data key, for the OPRF's output of the password that it was kept with.
    ///
    /// # Errors
    /// `WRONG_PASSWORD` for that of any other.
    pub fn open(&self, output: &[u8; 64]) -> Result<DataKey, VaultError> {
        let derived = self.spot.derive(output)?;
        let ((expected, masked), (found, mask)) = (self.record.split_at(32), derived.split_at(32));
        if !bool::from(expected.ct_eq(found)) {
            return Err(VaultError::WrongPassword);
        }
        let mut key = Zeroizing::new([0; 32]);
        key.iter_mut().zip(masked.iter().zip(mask)).for_each(|(key, (masked, mask))| *key = masked ^ mask);
        Ok(DataKey(key))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]
mod tests {
    use super::*;

    const KEEP: Duration = Duration::from_secs(60);
    const STORE: &[u8] = b"store";

    fn cache() -> UnlockCache {
        UnlockCache::with_capacity(KEEP, 3).unwrap()
    }

    fn spot(cache: &UnlockCache, key: u8, store: &[u8]) -> Spot {
        cache.spot(KeyId([key; 16]), store)
    }

    fn data_key(byte: u8) -> DataKey {
        DataKey(Zeroizing::new([byte; 32]))
    }

    /// How many records are not all zero.
    fn written(cache: &UnlockCache) -> usize {
        cache.entries().slab.records.iter().filter(|record| **record != [0; 64]).count()
    }

    #[test]
    fn only_the_same_password_key_and_store_open_it() {
        let cache = cache();
        let right = spot(&cache, 1, STORE);
        right.keep(&data_key(7), &[1; 64]).unwrap();
        assert_eq!(*right.look().unwrap().open(&[1; 64]).unwrap().0, [7; 32]);
        for at in [0, 31, 32, 63] {
            let mut wrong = [1; 64];
            wrong[at] ^= 1;
            assert_eq!(right.look().unwrap().open(&wrong).err(), Some(VaultError::WrongPassword));
        }
        for (key, store) in [(2, STORE), (1, b"stor"), (1, b"another")] {
            let other = spot(&cache, key, store);
            assert!(other.look().is_none());
            // What is kept at one spot is none of another's, even for the same password.
            let moved = Kept { spot: other, record: right.look().unwrap().record };
            assert_eq!(moved.open(&[1; 64]).err(), Some(VaultError::WrongPassword));
        }
        // Nor of another process's.
        let moved = Kept { spot: spot(&self::cache(), 1, STORE), record: right.look().unwrap().record };
        assert_eq!(moved.open(&[1; 64]).err(), Some(VaultError::WrongPassword));
    }

    #[test]
    fn what_is_kept_does_not_show_the_data_key() {
        let cache = cache();
        for (key, byte) in [(1, 7), (2, 7)] {
            spot(&cache, key, STORE).keep(&data_key(byte), &[1; 64]).unwrap();
        }
        let records: Vec<Record> = cache.entries().slab.records.iter().filter(|r| **r != [0; 64]).copied().collect();
        assert_eq!(records.len(), 2);
        assert!(records.iter().all(|record| !record.windows(8).any(|window| window == [7; 8])));
        assert!((0..64).step_by(8).all(|at| records[0][at..at + 8] != records[1][at..at + 8]));
    }

    #[test]
    fn an_entry_ends_at_its_time_and_is_overwritten() {
        let cache = cache();
        let (one, two) = (spot(&cache, 1, STORE), spot(&cache, 2, STORE));
        let start = Instant::now();
        one.keep_at(&data_key(7), &[1; 64], start).unwrap();
        two.keep_at(&data_key(8), &[1; 64], start + KEEP / 2).unwrap();
        // Its use does not prolong it.
        assert!(one.look_at(start + KEEP - Duration::from_millis(1)).is_some());
        assert!(one.look_at(start + KEEP).is_none());
        assert_eq!(written(&cache), 2, "not before somebody sweeps");
        cache.sweep_at(start + KEEP);
        assert_eq!(written(&cache), 1);
        assert!(two.look_at(start + KEEP).is_some());
        cache.sweep_at(start + KEEP * 2);
        assert_eq!(written(&cache), 0);
    }

    #[test]
    fn a_key_is_forgotten_with_all_its_stores() {
        let cache = cache();
        for (key, store) in [(1, STORE), (1, b"another"), (2, STORE)] {
            spot(&cache, key, store).keep(&data_key(key), &[1; 64]).unwrap();
        }
        assert_eq!(written(&cache), 3);
        cache.forget(KeyId([1; 16]));
        assert_eq!(written(&cache), 1);
        assert!(spot(&cache, 1, STORE).look().is_none() && spot(&cache, 2, STORE).look().is_some());
        cache.clear();
        assert_eq!(written(&cache), 0);
    }

    #[test]
    fn a_full_cache_gives_up_what_would_end_first() {
        let cache = cache();
        let start = Instant::now();
        for key in 1..=5 {
            let (spot, at) = (spot(&cache, key, STORE), start + Duration::from_secs(key.into()));
            // Twice, as when two jobs unwrapped it at once.
            for _ in 0..2 {
                spot.keep_at(&data_key(key), &[key; 64], at).unwrap();
            }
        }
        let kept = |key: u8| spot(&cache, key, STORE).look_at(start).map(|kept| kept.open(&[key; 64]).unwrap().0[0]);
        assert_eq!([1, 2, 3, 4, 5].map(kept), [None, None, Some(3), Some(4), Some(5)]);
        let entries = cache.entries();
        assert_eq!((entries.found.len(), entries.slab.free.len()), (3, 0));
    }

    #[test]
    fn all_of_it_fits_into_what_may_be_locked() {
        let cache = UnlockCache::new(KEEP).unwrap();
        let bytes = std::mem::size_of_val(&*cache.entries().slab.records);
        assert_eq!(bytes + region::page::size().min(4_096), 64 * 1_024);
    }
}
