//! A service whose processes are started again whenever they end, as an operator's supervisor does.

use super::plan::{Fault, What};
use crate::deployment::Deployment;
use crate::support::supervised::Supervised;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

/// How long a pause is: more than twice the redelivery time of the queue.
const PAUSE: Duration = Duration::from_millis(2_500);

pub struct World {
    state: Supervised<State>,
    folder: PathBuf,
}

pub struct State {
    pub service: Deployment,
    /// How often each process was started again.
    pub restarts: BTreeMap<String, u64>,
    /// The armed steps at which a process stops, and what happens then.
    stops: Vec<(PathBuf, What)>,
    /// When paused processes go on.
    paused: BTreeMap<String, Instant>,
}

impl World {
    /// Two nodes and two workers, which fail where they are told to.
    pub fn start() -> Self {
        let mut service = Deployment::new();
        service.faults = true;
        service.silent = 1;
        let folder = service.path("faults");
        for name in ["node1", "node2", "worker", "new"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        for name in ["node1", "node2"] {
            service.start_node(name);
        }
        for name in ["worker1", "worker2"] {
            service.start_worker(name);
        }
        let state = State { service, restarts: BTreeMap::new(), stops: Vec::new(), paused: BTreeMap::new() };
        Self { state: Supervised::start(state, State::look), folder }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.state()
    }

    /// Arms a fault for jobs about any of these keys.
    pub fn arm(&self, seed: u64, fault: Fault, keys: &[String]) {
        let Fault { step, op, nth, what, .. } = fault;
        if what != What::Kill {
            self.state().stops.push((self.armed(seed, fault), what));
        }
        let what = if what == What::Kill { "kill" } else { "stop" };
        let new = self.folder.join("new").join(seed.to_string());
        std::fs::write(&new, format!("{step} {op} {} {nth} {what}", keys.join("|"))).unwrap();
        std::fs::rename(new, self.armed(seed, fault)).unwrap();
    }

    /// Whether the fault has happened; it will not from now on.
    pub fn disarm(&self, seed: u64, fault: Fault) -> bool {
        std::fs::remove_file(self.armed(seed, fault)).is_err()
    }

    fn armed(&self, seed: u64, fault: Fault) -> PathBuf {
        self.folder.join(fault.at.name()).join(seed.to_string())
    }

    /// Ends the supervision and hands out the service, which runs.
    pub fn end(self) -> State {
        self.state.end()
    }

    pub fn is_supervised(&self) -> bool {
        self.state.is_supervised()
    }
}

impl State {
    /// Starts again what has ended, and does what a process that stands still at a step stands there for.
    fn look(&mut self) {
        let names: Vec<String> = self.service.running.keys().cloned().collect();
        for name in &names {
            let id = self.service.running[name].id();
            if is_stopped(id) && !self.paused.contains_key(name) {
                let reached = self.stops.iter().position(|(file, _)| !file.exists());
                let until = match reached.map(|index| self.stops.remove(index).1) {
                    Some(What::Pause) => Instant::now() + PAUSE,
                    _ => Instant::now(),
                };
                if until <= Instant::now() {
                    self.count("nats-server");
                    self.service.nats.kill9();
                    self.service.running[name].signal("CONT");
                    self.service.nats.restart();
                } else {
                    self.paused.insert(name.clone(), until);
                }
            }
        }
        let over: Vec<_> = self.paused.iter().filter(|(_, until)| **until <= Instant::now()).collect();
        let over: Vec<String> = over.into_iter().map(|(name, _)| name.clone()).collect();
        for name in over {
            self.paused.remove(&name);
            self.count(&format!("{name} paused"));
            self.service.running[&name].signal("CONT");
        }
        for name in names {
            if self.service.process(&name).is_running() {
                continue;
            }
            self.count(&name);
            if name.starts_with("node") {
                self.service.start_node(&name);
            } else {
                self.service.start_worker(&name);
            }
        }
    }

    fn count(&mut self, name: &str) {
        *self.restarts.entry(name.to_owned()).or_default() += 1;
    }
}

/// The state letter behind the name, which is in brackets, in /proc/<id>/stat.
pub fn is_stopped(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}
