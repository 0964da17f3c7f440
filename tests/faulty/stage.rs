//! The processes, each behind a proxy of its own, and who makes them fail by the plan and starts them again, as an operator's supervisor does.

use super::plan::{Fault, Kind, Target};
use super::proxy::{Proxy, Way};
use crate::deployment::{Deployment, NODE_READY, WORKER_READY};
use crate::interleaving::plan::At;
use crate::interleaving::world::is_stopped;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at the processes.
const LOOK: Duration = Duration::from_millis(10);
/// Faults that go on at a time, not counting armed ones.
const AT_ONCE: usize = 3;
/// How long a process may take to end after SIGTERM, or to be ready again when nothing is in its way: far beyond its own limits.
const PATIENCE: Duration = Duration::from_secs(180);

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
enum Phase {
    /// The file that a process takes away when it reaches the step.
    Armed(PathBuf),
    /// Its process comes back as a start after this one.
    Back(u64),
    /// Its process stands still until then.
    Still(Instant),
    /// The connections of its process are cut, or of all, until then.
    Apart(Instant),
}

struct Running {
    fault: Fault,
    process: String,
    began: Instant,
    phase: Phase,
}

pub struct State {
    pub service: Deployment,
    proxies: HashMap<String, Proxy>,
    folder: PathBuf,
    waiting: Vec<Fault>,
    running: Vec<Running>,
    /// Processes that are to end, or have, because of a fault, and when they may start again.
    down: HashMap<String, Instant>,
    /// Those of them that were told to end in good order, and when.
    ending: HashMap<String, Instant>,
    starts: HashMap<String, u64>,
    pub happened: Vec<Happened>,
    /// Starts of processes that ended before they were ready, by name: NATS was away, say.
    pub gave_up: BTreeMap<String, u64>,
    pub violations: Vec<String>,
    /// Jobs that were begun.
    begun: Arc<AtomicU64>,
    number: u64,
}

pub struct Stage {
    state: Arc<Mutex<State>>,
    begun: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stage {
    /// Two nodes and these workers, ready, and the faults that are to come. Returns the backend's address of the server too.
    pub async fn start(workers: u64, plan: Vec<Fault>) -> (Self, String) {
        let mut service = Deployment::new();
        service.faults = true;
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
        let state = Arc::new(Mutex::new(State {
            service,
            proxies,
            folder,
            waiting: plan,
            running: Vec::new(),
            down: HashMap::new(),
            ending: HashMap::new(),
            starts: HashMap::new(),
            happened: Vec::new(),
            gave_up: BTreeMap::new(),
            violations: Vec::new(),
            begun: Arc::clone(&begun),
            number: 0,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let supervisor = Some(std::thread::spawn({
            let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Acquire) {
                    lock(&state).look();
                    std::thread::sleep(LOOK);
                }
            }
        }));
        (Self { state, begun, stop, supervisor }, url)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
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
        let Ok(state) = self.state.try_lock() else { return Vec::new() };
        let armed = state.running.iter().filter(|running| matches!(running.phase, Phase::Armed(_)));
        armed.filter_map(|running| running.fault.step).map(|step| step.op).collect()
    }

    /// Whether faults are still to come or go on. Panics when nobody looks after them any more.
    pub fn is_busy(&self) -> bool {
        assert!(self.supervisor.as_ref().is_some_and(|thread| !thread.is_finished()), "the supervisor gave up");
        let state = self.state();
        !state.waiting.is_empty() || !state.running.is_empty() || !state.down.is_empty()
    }

    /// Ends the supervision and hands out the service, which runs.
    pub fn end(mut self) -> State {
        self.stop.store(true, Ordering::Release);
        let ended = self.supervisor.take().unwrap().join();
        assert!(ended.is_ok(), "a process did not start again");
        let state = Arc::into_inner(self.state).expect("nobody else uses the service");
        state.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What goes on, for whoever watches.
    pub fn now(&self) -> String {
        let going = self.running.iter().filter(|running| !matches!(running.phase, Phase::Armed(_)));
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
            Phase::Armed(file) if std::fs::remove_file(file).is_ok() => {
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

    fn is_ready(&mut self, name: &str) -> bool {
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
                    self.violations.push(format!("{name} does not end after SIGTERM"));
                    self.service.process(&name).kill9();
                }
                continue;
            }
            let dropped = self.armed_kill(&name);
            if let Some(told) = self.ending.remove(&name) {
                let status = self.service.process(&name).wait();
                if !status.success() && !dropped {
                    let took = told.elapsed();
                    self.violations.push(format!("{name} ended with {status}, {took:?} after SIGTERM"));
                }
            } else if !dropped && !self.down.contains_key(&name) {
                if self.is_ready_in_log(&name) {
                    self.violations.push(format!("{name} ended by itself; its log says why"));
                } else {
                    *self.gave_up.entry(name.clone()).or_default() += 1;
                }
            }
            if self.down.get(&name).is_some_and(|until| Instant::now() < *until) {
                continue;
            }
            self.down.remove(&name);
            *self.starts.entry(name.clone()).or_default() += 1;
            if name.starts_with("node") {
                self.service.launch_node(&name);
            } else {
                self.service.launch_worker(&name);
            }
        }
    }

    fn is_ready_in_log(&mut self, name: &str) -> bool {
        let ready = if name.starts_with("node") { NODE_READY } else { WORKER_READY };
        self.service.process(name).has_printed(ready)
    }

    /// Whether this process, which has ended, did so at an armed step; then that fault has begun.
    fn armed_kill(&mut self, name: &str) -> bool {
        let starts = self.starts.get(name).copied().unwrap_or_default();
        let fired = self.running.iter_mut().find(|running| {
            let at = running.fault.step.is_some_and(|step| name.starts_with(step.at.name()));
            let kills = running.fault.kind == Kind::Kill && running.fault.target != Target::Nats;
            at && kills && matches!(&running.phase, Phase::Armed(file) if !file.exists())
        });
        let Some(fired) = fired else { return false };
        (fired.process, fired.began, fired.phase) = (name.to_owned(), Instant::now(), Phase::Back(starts));
        let until = Instant::now() + Duration::from_millis(fired.fault.lasting);
        self.down.insert(name.to_owned(), until);
        true
    }

    /// Begins the faults whose time has come and whose process is well, and arms those at steps: one for each kind of process, so that it
    /// is known which one has happened.
    fn arm_and_begin(&mut self) {
        let due: Vec<Fault> =
            self.waiting.iter().copied().filter(|fault| fault.after <= self.begun.load(Ordering::Acquire)).collect();
        for fault in due {
            let armed: Vec<At> = self.armed().collect();
            let going = self.running.len() - armed.len();
            let begun = match fault.step {
                Some(step) if !armed.contains(&step.at) => {
                    self.arm(fault);
                    true
                }
                Some(_) => false,
                None => {
                    going < AT_ONCE && self.is_well(&fault.target.name()) && {
                        let phase = self.strike(fault, &fault.target.name());
                        let process = fault.target.name();
                        self.running.push(Running { fault, process, began: Instant::now(), phase });
                        true
                    }
                }
            };
            if begun && let Some(index) = self.waiting.iter().position(|waiting| *waiting == fault) {
                self.waiting.remove(index);
            }
        }
    }

    fn armed(&self) -> impl Iterator<Item = At> {
        let armed = self.running.iter().filter(|running| matches!(running.phase, Phase::Armed(_)));
        armed.filter_map(|running| running.fault.step).map(|step| step.at)
    }

    fn is_well(&mut self, name: &str) -> bool {
        if self.running.iter().any(|one| one.process == name) {
            return false;
        }
        match name {
            "nats-server" => self.service.nats.is_running(),
            "backend" => true,
            name => {
                !self.down.contains_key(name) && self.is_ready(name) && !is_stopped(self.service.running[name].id())
            }
        }
    }

    fn arm(&mut self, fault: Fault) {
        let Some(step) = fault.step else { return };
        self.number += 1;
        let what = if fault.kind == Kind::Kill && fault.target != Target::Nats { "kill" } else { "stop" };
        let new = self.folder.join("new").join(self.number.to_string());
        std::fs::write(&new, format!("{} {} * {} {what}", step.name, step.op, step.nth)).unwrap();
        let file = self.folder.join(step.at.name()).join(self.number.to_string());
        std::fs::rename(new, &file).unwrap();
        let (process, began) = (String::new(), Instant::now());
        self.running.push(Running { fault, process, began, phase: Phase::Armed(file) });
    }

    /// Does it to this process.
    fn strike(&mut self, fault: Fault, name: &str) -> Phase {
        let until = Instant::now() + Duration::from_millis(fault.lasting);
        let starts = self.starts.get(name).copied().unwrap_or_default();
        match fault.kind {
            Kind::Cut | Kind::Hole => return Phase::Apart(until),
            Kind::Stop => {
                self.signal(name, "STOP");
                return Phase::Still(until);
            }
            Kind::Kill if name == "nats-server" => self.service.nats.kill9(),
            Kind::Kill => self.service.process(name).kill9(),
            Kind::Restart => {
                self.signal(name, "TERM");
                if name != "nats-server" {
                    self.ending.insert(name.to_owned(), Instant::now());
                }
            }
        }
        self.down.insert(name.to_owned(), until);
        Phase::Back(starts)
    }

    /// One that has ended hears nothing.
    fn signal(&mut self, name: &str, signal: &str) {
        if name == "nats-server" {
            if self.service.nats.is_running() {
                self.service.nats.signal(signal);
            }
        } else if self.service.process(name).is_running() {
            self.service.process(name).signal(signal);
        }
    }

    /// Brings a fault on; true when it is over.
    fn goes_on(&mut self, one: &mut Running) -> bool {
        let over = match &one.phase {
            Phase::Armed(file) => {
                if !file.exists() {
                    self.fired(one);
                }
                return false;
            }
            Phase::Still(until) | Phase::Apart(until) if Instant::now() < *until => false,
            Phase::Still(_) => {
                self.signal(&one.process, "CONT");
                true
            }
            Phase::Apart(_) => true,
            Phase::Back(_) if one.process == "nats-server" => self.bring_server_back(),
            Phase::Back(starts) => {
                let again = self.starts.get(&one.process).is_some_and(|now| now > starts);
                if one.began.elapsed() > 2 * PATIENCE {
                    self.violations.push(format!("{} does not come back", one.process));
                }
                one.began.elapsed() > 2 * PATIENCE || (again && self.is_ready(&one.process))
            }
        };
        if over {
            let (fault, process, began) = (one.fault, one.process.clone(), one.began);
            self.happened.push(Happened { fault, process, began, ended: Instant::now() });
        }
        over
    }

    fn bring_server_back(&mut self) -> bool {
        let waits = self.down.get("nats-server").is_some_and(|until| Instant::now() < *until);
        if waits || self.service.nats.is_running() {
            return false;
        }
        self.service.nats.restart();
        self.down.remove("nats-server");
        true
    }

    /// An armed step was reached: does to the process that stands there, or to the server meanwhile, what is to be done.
    fn fired(&mut self, one: &mut Running) {
        let Some(step) = one.fault.step else { return };
        let still: BTreeSet<&str> = self.still().collect();
        let names = self.service.running.keys().filter(|name| name.starts_with(step.at.name()));
        let mut there = names.filter(|name| !still.contains(name.as_str()));
        // Not yet, where it is about to stop; or dead, which the supervisor notices.
        let Some(name) = there.find(|name| is_stopped(self.service.running[*name].id())).cloned() else { return };
        one.process = if one.fault.target == Target::Nats { "nats-server".to_owned() } else { name.clone() };
        if one.fault.target == Target::Nats && !self.is_well("nats-server") {
            one.process.clear();
            return;
        }
        one.began = Instant::now();
        let process = one.process.clone();
        one.phase = self.strike(one.fault, &process);
        if !matches!(one.phase, Phase::Still(_)) || process == "nats-server" {
            self.signal(&name, "CONT");
        }
    }

    /// Processes that a fault keeps standing.
    fn still(&self) -> impl Iterator<Item = &str> {
        let still = self.running.iter().filter(|running| matches!(running.phase, Phase::Still(_)));
        still.map(|running| running.process.as_str())
    }

    /// Each process's connections are as bad as the worst of its faults and the server's.
    fn set_ways(&self) {
        for (name, proxy) in &self.proxies {
            let ways = self.running.iter().filter(|one| {
                matches!(one.phase, Phase::Apart(_)) && (one.process == *name || one.process == "nats-server")
            });
            let way = ways.map(|one| if one.fault.kind == Kind::Cut { Way::Cut } else { Way::Hole }).max();
            proxy.set(way.unwrap_or(Way::Open));
        }
    }
}
