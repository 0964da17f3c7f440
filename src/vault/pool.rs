//! Key derivations off the async threads, within a budget of memory and cores.

use crate::turns::{Place, Turn, Turns};
use crate::vault::{Password, Stretched, VaultError, stretch};
use crate::wire::{KdfParams, Lane};
use std::sync::Arc;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// A derivation over more memory than this is a large one, KiB.
const SMALL_KIB: u32 = 65_536;
/// So is one that passes over more memory than this altogether, KiB.
const SMALL_WORK_KIB: u32 = 262_144;
/// Large derivations that may wait for each one that may run; beyond it [`KdfPool::is_full`] says so.
const WAITING: usize = 2;

/// Derivations of one kind: first come, first served, while their memory together stays within a budget.
#[derive(Debug, Clone)]
struct Kind {
    memory_kib: Arc<Semaphore>,
    cores: Turns,
}

impl Kind {
    fn new(budget_kib: u32, cores: usize) -> Self {
        let permits = usize::try_from(budget_kib).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { memory_kib: Arc::new(Semaphore::new(permits)), cores: Turns::new(cores) }
    }

    /// Memory first: whoever waits for memory must not keep a core from those that have theirs. Of bulk jobs only as many wait for it
    /// as may compute.
    async fn admit(&self, memory_kib: u32, lane: Lane) -> Result<(OwnedSemaphorePermit, Turn), AcquireError> {
        let place: Place = self.cores.place(lane).await?;
        let memory = Arc::clone(&self.memory_kib).acquire_many_owned(memory_kib).await?;
        Ok((memory, self.cores.wait_at(place).await?))
    }
}

/// Admits key derivations. Small ones, which take milliseconds, and large ones, which may take seconds, each have cores and
/// memory of their own, so that no number of large ones stops the small ones.
#[derive(Debug, Clone)]
pub struct KdfPool {
    small: Kind,
    large: Kind,
    /// Places for large derivations of interactive jobs, running or waiting, and for those of bulk jobs, of which fewer wait.
    places: [Arc<Semaphore>; 2],
    /// Whose derivations these are.
    lane: Lane,
}

impl KdfPool {
    /// A pool of `budget_kib` KiB of memory, of which small derivations have a quarter, and at least one of its kind (64 MiB and
    /// 256 MiB) fits in each part. At most `cores` small derivations and half as many large ones run at a time, at least one of
    /// each.
    #[must_use]
    pub fn new(budget_kib: u32, cores: usize) -> Self {
        let small = (budget_kib / 4).max(SMALL_KIB);
        let large = budget_kib.saturating_sub(small).max(*KdfParams::MEMORY_KIB.end());
        let at_once = (cores / 2).max(1);
        Self {
            small: Kind::new(small, cores.max(1)),
            large: Kind::new(large, at_once),
            places: [1 + WAITING, 1].map(|each| Arc::new(Semaphore::new(at_once * each))),
            lane: Lane::default(),
        }
    }

    /// The same for jobs of this lane.
    #[must_use]
    pub fn of(&self, lane: Lane) -> Self {
        Self { lane, ..self.clone() }
    }

    const fn places(&self) -> &Arc<Semaphore> {
        let [interactive, bulk] = &self.places;
        match self.lane {
            Lane::Interactive => interactive,
            Lane::Bulk => bulk,
        }
    }

    /// Whether so many large derivations wait that one more should not be started now. Never for a small one.
    #[must_use]
    pub fn is_full(&self, params: KdfParams) -> bool {
        is_large(params) && self.places().available_permits() == 0
    }

    /// [`stretch`] on a blocking thread. Dropping the future does not free the budget before the thread is done.
    ///
    /// # Errors
    /// As [`stretch`].
    #[tracing::instrument(level = "debug", name = "kdf", skip_all)]
    pub async fn stretch(
        &self,
        password: Password,
        params: KdfParams,
        salt: [u8; 16],
    ) -> Result<Stretched, VaultError> {
        let memory_kib = match params {
            _ if !params.is_allowed() => return Err(VaultError::InvalidKdf("KDF parameters are out of range")),
            // Microseconds and no memory: not worth a thread.
            KdfParams::Hkdf => return stretch(&password, params, &salt),
            KdfParams::Argon2id { memory_kib, .. } => memory_kib,
        };
        let closed = |_| VaultError::Bug("the KDF pool is closed");
        let (kind, place) = if is_large(params) {
            (&self.large, Some(Arc::clone(self.places()).acquire_owned().await.map_err(closed)?))
        } else {
            (&self.small, None)
        };
        let permits = kind.admit(memory_kib, self.lane).await.map_err(closed)?;
        let work = tokio::task::spawn_blocking(move || {
            let stretched = stretch(&password, params, &salt);
            drop((permits, place));
            stretched
        });
        work.await.map_err(|_| VaultError::Bug("the KDF thread ended"))?
    }
}

fn is_large(params: KdfParams) -> bool {
    match params {
        KdfParams::Argon2id { memory_kib, passes } => {
            memory_kib > SMALL_KIB || memory_kib.saturating_mul(passes) > SMALL_WORK_KIB
        }
        KdfParams::Hkdf => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;
    use zeroize::Zeroizing;

    fn start(pool: &KdfPool, memory_kib: u32, passes: u32) -> tokio::task::JoinHandle<Result<(), VaultError>> {
        let pool = pool.clone();
        let password = Password::new(Zeroizing::new(b"pw".to_vec())).unwrap();
        let params = KdfParams::Argon2id { memory_kib, passes };
        tokio::spawn(async move { pool.stretch(password, params, [0; 16]).await.map(|_| ()) })
    }

    #[tokio::test]
    async fn large_derivations_do_not_stop_small_ones() {
        let pool = KdfPool::new(0, 1);
        let large: Vec<_> = (0..3).map(|_| start(&pool, 262_144, 10)).collect();
        let another = KdfParams::Argon2id { memory_kib: 262_144, passes: 10 };
        while !pool.is_full(another) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let small = KdfParams::Argon2id { memory_kib: 19_456, passes: 2 };
        assert!(!pool.is_full(small) && !pool.is_full(KdfParams::Hkdf));
        start(&pool, 19_456, 2).await.unwrap().unwrap();
        assert!(large.iter().all(|large| !large.is_finished()), "the small one waited for a large one");
        large.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn bulk_derivations_take_no_place_from_interactive_ones() {
        let pool = KdfPool::new(0, 1);
        let (bulk, large) = (pool.of(Lane::Bulk), KdfParams::Argon2id { memory_kib: 262_144, passes: 2 });
        let running: Vec<_> = (0..5).map(|_| start(&bulk, 262_144, 2)).collect();
        while !bulk.is_full(large) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!pool.is_full(large));
        running.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn who_waits_for_memory_holds_no_core() {
        // Two cores for large ones, memory for one of them.
        let pool = KdfPool::new(0, 4);
        let (running, waiting) = (start(&pool, 262_144, 10), start(&pool, 262_144, 1));
        while pool.places().available_permits() > 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!running.is_finished());
        assert_eq!(pool.large.cores.free(), 1);
        running.abort();
        waiting.abort();
    }

    #[tokio::test]
    async fn memory_in_use_stays_within_the_budget() {
        let budget = *KdfParams::MEMORY_KIB.end() as usize;
        let pool = KdfPool::new(0, 4);
        let large = start(&pool, 200_000, 10);
        while pool.large.memory_kib.available_permits() == budget {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(pool.large.memory_kib.available_permits(), budget - 200_000);
        let waiting = start(&pool, 100_000, 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!large.is_finished() && !waiting.is_finished());
        // Nobody listens any more, but the thread still uses its memory.
        large.abort();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(pool.large.memory_kib.available_permits() < budget - 100_000);
        waiting.await.unwrap().unwrap();
        assert_eq!(pool.large.memory_kib.available_permits(), budget);
    }
}
