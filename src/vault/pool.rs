//! Key derivations off the async threads, within a budget of memory and cores.

use crate::vault::{Password, Stretched, VaultError, stretch};
use crate::wire::KdfParams;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Admits key derivations first come, first served, while their memory together stays within a budget.
#[derive(Debug, Clone)]
pub struct KdfPool {
    memory_kib: Arc<Semaphore>,
    cores: Arc<Semaphore>,
}

impl KdfPool {
    /// A pool of `budget_kib` KiB of memory and this many derivations at a time. A budget below the largest allowed
    /// derivation (256 MiB) is raised to it, as some stored share may need that much; so is a count of zero to one.
    #[must_use]
    pub fn new(budget_kib: u32, cores: usize) -> Self {
        let budget = budget_kib.max(*KdfParams::MEMORY_KIB.end());
        let permits = usize::try_from(budget).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { memory_kib: Arc::new(Semaphore::new(permits)), cores: Arc::new(Semaphore::new(cores.max(1))) }
    }

    /// [`stretch`] on a blocking thread. Dropping the future does not free the budget before the thread is done.
    ///
    /// # Errors
    /// As [`stretch`].
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
        let core = Arc::clone(&self.cores).acquire_owned().await.map_err(closed)?;
        let memory = Arc::clone(&self.memory_kib).acquire_many_owned(memory_kib).await.map_err(closed)?;
        let work = tokio::task::spawn_blocking(move || {
            let stretched = stretch(&password, params, &salt);
            drop((core, memory));
            stretched
        });
        work.await.map_err(|_| VaultError::Bug("the KDF thread ended"))?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;
    use zeroize::Zeroizing;

    #[tokio::test]
    async fn memory_in_use_stays_within_the_budget() {
        let budget = *KdfParams::MEMORY_KIB.end() as usize;
        let pool = KdfPool::new(0, 4);
        let start = |memory_kib, passes| {
            let pool = pool.clone();
            let password = Password::new(Zeroizing::new(b"pw".to_vec())).unwrap();
            let params = KdfParams::Argon2id { memory_kib, passes };
            tokio::spawn(async move { pool.stretch(password, params, [0; 16]).await.map(|_| ()) })
        };
        let large = start(200_000, 10);
        while pool.memory_kib.available_permits() == budget {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(pool.memory_kib.available_permits(), budget - 200_000);
        let waiting = start(100_000, 1);
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!large.is_finished() && !waiting.is_finished());
        // Nobody listens any more, but the thread still uses its memory.
        large.abort();
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(pool.memory_kib.available_permits() < budget - 100_000);
        waiting.await.unwrap().unwrap();
        assert_eq!(pool.memory_kib.available_permits(), budget);
    }
}
