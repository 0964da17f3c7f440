//! The processes, each behind a proxy of its own, and who makes them fail by the plan and starts them again, as an operator's supervisor does.

use super::plan::{Fault, Target};
use super::proxy::Proxy;
use crate::deployment::{Deployment, NODE_READY, WORKER_READY};
use crate::support::supervised::Supervised;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a process may take to end after SIGTERM, or to be ready again when nothing is in its way: far beyond its own limits.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A fault that has begun.
#[derive(Clone)]
pub struct Happened {
    pub fault: Fault,
    /// The process that it hit.
    pub process: String,
    pub began: Instant,
    pub ended: Instant,
}

/// Where a fault is.
pub enum Phase {
    /// The file that a process takes away when it reaches the step, and since when it is gone.
    Armed(PathBuf, Option<Instant>),
    /// Its process comes back as a start after this one.
    Back(u64),
    /// Its process stands still until then.
    Still(Instant),
    /// The connections of its process are cut, or of all, until then.
    Apart(Instant),
}

pub struct Running {
    pub fault: Fault,
    pub process: String,
    pub began: Instant,
    pub phase: Phase,
}

pub struct State {
    pub service: Deployment,
    pub proxies: HashMap<String, Proxy>,
    pub folder: PathBuf,
    pub waiting: Vec<Fault>,
    pub running: Vec<Running>,
    /// Processes that are to end, or have, because of a fault, and when they may start again.
    pub down: HashMap<String, Instant>,
    /// Processes whose end has been looked into.
    pub dead: BTreeSet<String>,
    /// Those of them that were told to end in good order, and when.
    pub ending: HashMap<String, Instant>,
    pub starts: HashMap<String, u64>,
    pub happened: Vec<Happened>,
    /// Starts of processes that ended before they were ready, by name: NATS was away, say.
    pub gave_up: BTreeMap<String, u64>,
    pub violations: Vec<String>,
    /// When what happened to which process, in the times of the processes' logs.
    pub timeline: Vec<String>,
    /// Jobs that were begun.
    pub begun: Arc<AtomicU64>,
    pub number: u64,
}

pub struct Stage {
    state: Supervised<State>,
    begun: Arc<AtomicU64>,
}

impl Stage {
    /// Two nodes and these workers, ready, and the faults that are to come. Returns the backend's address of the server too.
    pub async fn start(workers: u64, plan: Vec<Fault>) -> (Self, String) {
        let mut service = Deployment::new();
        service.faults = true;
        service.silent = 1;
        let witness = service.path("{role}.witness").to_str().unwrap().to_owned();
        // Short, because a node that stops waits for sessions that a dead worker has left.
        let ttl = ("TREFOIL_SESSION_TTL_SECONDS", "8".to_owned());
        service.node_settings = vec![("TREFOIL_WITNESS", witness), ttl];
        let settings =
            [("TREFOIL_LEASE_SECONDS", "1"), ("TREFOIL_JOBS_PER_KEY", "8"), ("TREFOIL_RECONCILE_SECONDS", "5")];
        service.worker_settings = settings.map(|(key, value)| (key, value.to_owned())).into();
        let folder = service.path("faults");
        for name in ["node1", "node2", "worker", "new"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        let mut proxies = HashMap::new();
        let names: Vec<_> = (1..=workers).map(|number| Target::Worker(number).name()).collect();
        for name in ["node1", "node2", "backend"].into_iter().chain(names.iter().map(String::as_str)) {
            let proxy = Proxy::start(service.nats.port()).await;
            service.routes.insert(name.to_owned(), proxy.url());
            proxies.insert(name.to_owned(), proxy);
        }
        let url = proxies["backend"].url();
        service.start_node("node1");
        service.start_node("node2");
        names.iter().for_each(|name| service.start_worker(name));
        let begun = Arc::new(AtomicU64::new(0));
        let state = State {
            service,
            proxies,
            folder,
            waiting: plan,
            running: Vec::new(),
            down: HashMap::new(),
            dead: BTreeSet::new(),
            ending: HashMap::new(),
            starts: HashMap::new(),
            happened: Vec::new(),
            gave_up: BTreeMap::new(),
            violations: Vec::new(),
            timeline: Vec::new(),
            begun: Arc::clone(&begun),
            number: 0,
        };
        (Self { state: Supervised::start(state, State::look), begun }, url)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.state()
    }

    /// Counts a job that begins, which is the clock of the plan. Returns how many there were before.
    pub fn begin_job(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel)
    }

    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Operations that armed faults wait for, unless the supervisor is at work.
    pub fn wanted(&self) -> Vec<&'static str> {
        let Some(state) = self.state.try_state() else { return Vec::new() };
        let armed = state.running.iter().filter(|running| matches!(running.phase, Phase::Armed(..)));
        armed.filter_map(|running| running.fault.step).map(|step| step.op).collect()
    }

    /// Whether faults are still to come or go on. Panics when nobody looks after them any more.
    pub fn is_busy(&self) -> bool {
        assert!(self.state.is_supervised(), "the supervisor gave up");
        let state = self.state();
        !state.waiting.is_empty() || !state.running.is_empty() || !state.down.is_empty()
    }

    /// Ends the supervision and hands out the service, which runs.
    pub fn end(self) -> State {
        self.state.end()
    }
}

impl State {
    /// What goes on, for whoever watches.
    pub fn now(&self) -> String {
        let going = self.running.iter().filter(|running| !matches!(running.phase, Phase::Armed(..)));
        let going: Vec<_> = going.map(|running| format!("{:?} {}", running.fault.kind, running.process)).collect();
        format!(
            "{} faults, now {}",
            self.happened.len() + going.len(),
            if going.is_empty() { "none".to_owned() } else { going.join(", ") }
        )
    }

    /// Takes back what has not begun. Returns how many faults that are.
    pub fn call_off(&mut self) -> usize {
        let mut left = self.waiting.len();
        self.waiting.clear();
        self.running.retain(|running| match &running.phase {
            Phase::Armed(file, _) if std::fs::remove_file(file).is_ok() => {
                left += 1;
                false
            }
            _ => true,
        });
        left
    }

    fn look(&mut self) {
        self.supervise();
        self.arm_and_begin();
        for _ in 0..self.running.len() {
            let mut one = self.running.remove(0);
            if !self.goes_on(&mut one) {
                self.running.push(one);
            }
        }
        self.set_ways();
    }

    pub fn note(&mut self, what: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, millis) = (now.as_secs() % 86_400, now.subsec_millis());
        let (hours, minutes, seconds) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
        self.timeline.push(format!("{hours:02}:{minutes:02}:{seconds:02}.{millis:03} {what}"));
    }

    pub fn violate(&mut self, what: String) {
        self.note(&what);
        self.violations.push(what);
    }

    pub fn is_ready(&mut self, name: &str) -> bool {
        let ready = if name.starts_with("node") { NODE_READY } else { WORKER_READY };
        let process = self.service.process(name);
        process.is_running() && process.has_printed(ready)
    }

    /// Starts again what has ended.
    fn supervise(&mut self) {
        let names: Vec<String> = self.service.running.keys().cloned().collect();
        for name in names {
            if self.service.process(&name).is_running() {
                if self.ending.get(&name).is_some_and(|told| told.elapsed() > PATIENCE) {
                    self.violate(format!("{name} does not end after SIGTERM"));
                    self.service.process(&name).kill9();
                }
                continue;
            }
            if self.dead.insert(name.clone()) {
                self.ended(&name);
            }
            if self.down.get(&name).is_some_and(|until| Instant::now() < *until) {
                continue;
            }
            self.down.remove(&name);
            self.dead.remove(&name);
            *self.starts.entry(name.clone()).or_default() += 1;
            if name.starts_with("node") {
                self.service.launch_node(&name);
            } else {
                self.service.launch_worker(&name);
            }
        }
    }

    /// Whether a process that has just ended was meant to.
    fn ended(&mut self, name: &str) {
        let status = self.service.process(name).wait();
        // SIGKILL, and not by the supervisor.
        let at_a_step = status.signal() == Some(9) && self.armed_kill(name);
        let told = self.ending.remove(name);
        match told {
            _ if at_a_step || status.success() && told.is_some() => {}
            Some(told) => {
                let took = told.elapsed();
                self.violate(format!("{name} ended with {status}, {took:?} after SIGTERM"));
            }
            None if self.is_ready_in_log(name) => {
                self.violate(format!("{name} ended by itself with {status}; its log says why"));
            }
            None => *self.gave_up.entry(name.to_owned()).or_default() += 1,
        }
    }

    fn is_ready_in_log(&mut self, name: &str) -> bool {
        let ready = if name.starts_with("node") { NODE_READY } else { WORKER_READY };
        self.service.process(name).has_printed(ready)
    }
}
