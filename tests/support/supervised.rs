//! A service that a thread looks after, as an operator's supervisor does, while a test uses it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// What is looked after.
pub struct Supervised<S> {
    state: Arc<Mutex<S>>,
    stop: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
}

impl<S: Send + 'static> Supervised<S> {
    /// Has a thread look after it from now on.
    pub fn start(state: S, look: fn(&mut S)) -> Self {
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let supervisor = Some(std::thread::spawn({
            let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    look(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
                    std::thread::sleep(LOOK);
                }
            }
        }));
        Self { state, stop, supervisor }
    }

    pub fn state(&self) -> MutexGuard<'_, S> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while the supervisor, or anybody else, is at work.
    pub fn try_state(&self) -> Option<MutexGuard<'_, S>> {
        self.state.try_lock().ok()
    }

    /// Whether somebody still looks after it.
    pub fn is_supervised(&self) -> bool {
        self.supervisor.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Ends the supervision and hands out the service, which runs.
    pub fn end(mut self) -> S {
        self.stop.store(true, Ordering::Release);
        let supervised = self.supervisor.take().unwrap().join();
        assert!(supervised.is_ok(), "a process did not start again");
        let state = Arc::into_inner(self.state).expect("nobody else uses the service");
        state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
