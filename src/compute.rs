//! Protocol steps off the threads that answer NATS: threads of their own, so many steps at once, and the rest wait in line.
//!
//! A thread that is done takes the next step itself. Nobody has to be woken to hand it over, which under load costs as much as a small step.

use futures::{StreamExt, TryStreamExt};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;
use tracing::Instrument as _;

/// Items of a batch that one step computes, at most: a few milliseconds, for which others wait.
const ITEMS_A_STEP: usize = 4;

/// Why a step has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Undone {
    /// It was not begun.
    #[error("too many protocol steps are waiting")]
    Full,
    /// A mistake of ours; the log says where.
    #[error("a protocol step ended unexpectedly")]
    Panicked,
}

type Step = Box<dyn FnOnce() + Send>;

struct Line {
    waiting: VecDeque<Step>,
    running: usize,
    threads: usize,
    /// Threads that wait for a step, or were just told of one.
    idle: usize,
    /// The pool is gone: threads end when nothing waits.
    over: bool,
}

struct Shared {
    line: Mutex<Line>,
    more: Condvar,
    at_once: usize,
    room: usize,
}

/// A bounded number of threads that compute. They end with the pool.
pub struct Compute(Arc<Shared>);

impl Compute {
    /// At most `threads` steps run, at least one, and `room` wait.
    #[must_use]
    pub fn new(threads: usize, room: usize) -> Self {
        let line = Line { waiting: VecDeque::new(), running: 0, threads: 0, idle: 0, over: false };
        Self(Arc::new(Shared { line: Mutex::new(line), more: Condvar::new(), at_once: threads.max(1), room }))
    }

    /// Runs one step, first come, first served. Where the caller stops waiting, a step that has begun still finishes, and counts until
    /// then; another one is not begun.
    ///
    /// # Errors
    /// [`Undone`].
    pub async fn run<T: Send + 'static>(&self, step: impl FnOnce() -> T + Send + 'static) -> Result<T, Undone> {
        let (done, result) = oneshot::channel();
        self.put(Box::new(move || {
            if !done.is_closed() {
                // What panics is not looked at again, and the log has it by the panic's own hook.
                let _ = done.send(catch_unwind(AssertUnwindSafe(step)));
            }
        }))?;
        match result.instrument(tracing::debug_span!("compute")).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) | Err(_) => Err(Undone::Panicked),
        }
    }

    /// Runs a step for each item, on as many threads as there are, and answers in the items' order. In between, whatever else waits for
    /// a thread gets one.
    ///
    /// # Errors
    /// As [`Compute::run`].
    pub async fn run_each<I: Send + 'static, T: Send + 'static>(
        &self,
        items: Vec<I>,
        step: impl Fn(I) -> T + Send + Sync + 'static,
    ) -> Result<Vec<T>, Undone> {
        let at_once = self.0.at_once;
        let size = items.len().div_ceil(at_once).clamp(1, ITEMS_A_STEP);
        let (step, mut items) = (Arc::new(step), items.into_iter());
        let steps = std::iter::from_fn(|| {
            let part: Vec<I> = items.by_ref().take(size).collect();
            let step = Arc::clone(&step);
            (!part.is_empty()).then(|| self.run(move || part.into_iter().map(|item| step(item)).collect::<Vec<T>>()))
        });
        let done: Vec<Vec<T>> = futures::stream::iter(steps).buffered(at_once).try_collect().await?;
        Ok(done.into_iter().flatten().collect())
    }

    /// Steps that wait for a thread.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.line().waiting.len()
    }

    fn put(&self, step: Step) -> Result<(), Undone> {
        let mut line = self.0.line();
        if line.waiting.len() + line.running >= self.0.room.saturating_add(self.0.at_once) {
            return Err(Undone::Full);
        }
        line.waiting.push_back(step);
        if line.waiting.len() <= line.idle {
            drop(line);
            self.0.more.notify_one();
        } else if line.threads < self.0.at_once {
            let shared = Arc::clone(&self.0);
            match std::thread::Builder::new().name("compute".into()).spawn(move || shared.work()) {
                Ok(_) => line.threads += 1,
                // Those that there are will come to it.
                Err(error) if line.threads > 0 => tracing::warn!(%error, "no further thread to compute"),
                Err(error) => {
                    tracing::error!(%error, "no thread to compute");
                    line.waiting.pop_back();
                    return Err(Undone::Full);
                }
            }
        }
        Ok(())
    }
}

impl Drop for Compute {
    fn drop(&mut self) {
        self.0.line().over = true;
        self.0.more.notify_all();
    }
}

impl Shared {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A thread's life.
    fn work(&self) {
        let mut line = self.line();
        loop {
            if let Some(step) = line.waiting.pop_front() {
                line.running += 1;
                drop(line);
                step();
                line = self.line();
                line.running -= 1;
            } else if line.over {
                return;
            } else {
                line.idle += 1;
                line = self.more.wait(line).unwrap_or_else(PoisonError::into_inner);
                line.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, missing_docs)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[tokio::test]
    async fn no_more_at_once_than_threads_and_no_more_waiting_than_room() {
        let pool = Compute::new(2, 3);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (began, begins) = mpsc::channel();
        let mut gates = Vec::new();
        let mut steps = Vec::new();
        for _ in 0..5 {
            let (gate, open) = mpsc::channel::<()>();
            gates.push(gate);
            let (running, most, began) = (running.clone(), most.clone(), began.clone());
            let mut step = Box::pin(pool.run(move || {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                began.send(()).unwrap();
                let _ = open.recv();
                running.fetch_sub(1, Ordering::SeqCst);
            }));
            assert!(step.as_mut().now_or_never().is_none());
            // The first two are running before the others come, so that those wait.
            if steps.len() < 2 {
                begins.recv().unwrap();
            }
            steps.push(step);
        }
        assert_eq!(pool.run(|| ()).await, Err(Undone::Full));
        drop(gates);
        for step in steps {
            step.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
        assert_eq!(pool.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn who_no_longer_waits_is_passed_over_and_who_panics_stops_nobody() {
        let pool = Compute::new(1, 8);
        let (gate, open) = mpsc::channel::<()>();
        let (began, begins) = mpsc::channel();
        let mut first = Box::pin(pool.run(move || {
            began.send(()).unwrap();
            let _ = open.recv();
        }));
        assert!(first.as_mut().now_or_never().is_none());
        begins.recv().unwrap();
        let ran = Arc::new(AtomicUsize::new(0));
        let (one, other) = (ran.clone(), ran.clone());
        let mut left = Box::pin(pool.run(move || one.fetch_add(1, Ordering::SeqCst)));
        let mut stays = Box::pin(pool.run(move || other.fetch_add(10, Ordering::SeqCst)));
        assert!(left.as_mut().now_or_never().is_none() && stays.as_mut().now_or_never().is_none());
        drop((left, gate));
        first.await.unwrap();
        assert_eq!(stays.await, Ok(0));
        assert_eq!(ran.load(Ordering::SeqCst), 10);
        assert_eq!(pool.run(|| panic!("on purpose")).await, Err::<(), _>(Undone::Panicked));
        let doubled = pool.run_each((0..20).collect(), |item: u32| 2 * item).await.unwrap();
        assert_eq!(doubled, (0..20).map(|item| 2 * item).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn threads_end_with_the_pool() {
        let pool = Compute::new(2, 8);
        pool.run_each(vec![(), ()], |()| ()).await.unwrap();
        let shared = Arc::downgrade(&pool.0);
        drop(pool);
        while shared.strong_count() > 0 {
            std::thread::yield_now();
        }
    }
}
