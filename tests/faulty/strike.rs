//! How faults begin, go on and end.

use super::plan::{Fault, Kind, Target};
use super::proxy::Way;
use super::stage::{Happened, PATIENCE, Phase, Running, State};
use crate::interleaving::plan::At;
use crate::interleaving::world::is_stopped;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Faults that go on at a time, not counting armed ones.
const AT_ONCE: usize = 3;
/// After this long nobody is looked for any more who has reached an armed step.
const NOBODY: Duration = Duration::from_secs(10);

impl State {
    /// Whether this process, which has ended, did so at an armed step; then that fault has begun.
    pub fn armed_kill(&mut self, name: &str) -> bool {
        let starts = self.starts.get(name).copied().unwrap_or_default();
        let fired = self.running.iter_mut().find(|running| {
            let at = running.fault.step.is_some_and(|step| name.starts_with(step.at.name()));
            let kills = running.fault.kind == Kind::Kill && running.fault.target != Target::Nats;
            at && kills && matches!(&running.phase, Phase::Armed(file, _) if !file.exists())
        });
        let Some(fired) = fired else { return false };
        (fired.process, fired.began, fired.phase) = (name.to_owned(), Instant::now(), Phase::Back(starts));
        let (fault, until) = (fired.fault, Instant::now() + Duration::from_millis(fired.fault.lasting));
        self.down.insert(name.to_owned(), until);
        self.note(&format!("{fault} ({name}), for {} ms", fault.lasting));
        true
    }

    /// Begins the faults whose time has come and whose process is well, and arms those at steps: one for each kind of process, so that it
    /// is known which one has happened.
    pub fn arm_and_begin(&mut self) {
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
        let armed = self.running.iter().filter(|running| matches!(running.phase, Phase::Armed(..)));
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
        self.note(&format!("armed: {fault}"));
        self.number += 1;
        let what = if fault.kind == Kind::Kill && fault.target != Target::Nats { "kill" } else { "stop" };
        let new = self.folder.join("new").join(self.number.to_string());
        std::fs::write(&new, format!("{} {} * {} {what}", step.name, step.op, step.nth)).unwrap();
        let file = self.folder.join(step.at.name()).join(self.number.to_string());
        std::fs::rename(new, &file).unwrap();
        let (process, began) = (String::new(), Instant::now());
        self.running.push(Running { fault, process, began, phase: Phase::Armed(file, None) });
    }

    /// Does it to this process.
    fn strike(&mut self, fault: Fault, name: &str) -> Phase {
        self.note(&format!("{fault} ({name}), for {} ms", fault.lasting));
        let until = Instant::now() + Duration::from_millis(fault.lasting);
        let starts = self.starts.get(name).copied().unwrap_or_default();
        match fault.kind {
            Kind::Cut | Kind::Hole => return Phase::Apart(until),
            Kind::Stop => {
                self.signal(name, "STOP");
                return Phase::Still(until);
            }
            Kind::Kill if name == "nats-server" => self.service.nats.kill9(),
            Kind::Kill => {
                self.service.process(name).kill9();
                self.dead.insert(name.to_owned());
            }
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
    pub fn goes_on(&mut self, one: &mut Running) -> bool {
        let over = match &mut one.phase {
            Phase::Armed(file, gone) => {
                if file.exists() {
                    return false;
                }
                let gone = *gone.get_or_insert_with(Instant::now);
                // Killed by another fault at that very moment.
                !self.fired(one) && gone.elapsed() > NOBODY
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
                    self.violate(format!("{} does not come back", one.process));
                }
                one.began.elapsed() > 2 * PATIENCE || (again && self.is_ready(&one.process))
            }
        };
        if over {
            let (fault, process, began) = (one.fault, one.process.clone(), one.began);
            self.note(&format!("over: {fault} ({process})"));
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

    /// An armed step was reached: if the process stands there, does to it or to the server meanwhile, what is to be done.
    fn fired(&mut self, one: &mut Running) -> bool {
        let Some(step) = one.fault.step else { return false };
        let still: BTreeSet<&str> = self.still().collect();
        let names = self.service.running.keys().filter(|name| name.starts_with(step.at.name()));
        let mut there = names.filter(|name| !still.contains(name.as_str()));
        // Not yet, where it is about to stop; or dead, which the supervisor notices.
        let Some(name) = there.find(|name| is_stopped(self.service.running[*name].id())).cloned() else { return false };
        one.process = if one.fault.target == Target::Nats { "nats-server".to_owned() } else { name.clone() };
        if one.fault.target == Target::Nats && !self.is_well("nats-server") {
            one.process.clear();
            return true;
        }
        one.began = Instant::now();
        let process = one.process.clone();
        one.phase = self.strike(one.fault, &process);
        if !matches!(one.phase, Phase::Still(_)) || process == "nats-server" {
            self.signal(&name, "CONT");
        }
        true
    }

    /// Processes that a fault keeps standing.
    fn still(&self) -> impl Iterator<Item = &str> {
        let still = self.running.iter().filter(|running| matches!(running.phase, Phase::Still(_)));
        still.map(|running| running.process.as_str())
    }

    /// Each process's connections are as bad as the worst of its faults and the server's.
    pub fn set_ways(&self) {
        for (name, proxy) in &self.proxies {
            let ways = self.running.iter().filter(|one| {
                matches!(one.phase, Phase::Apart(_)) && (one.process == *name || one.process == "nats-server")
            });
            let way = ways.map(|one| if one.fault.kind == Kind::Cut { Way::Cut } else { Way::Hole }).max();
            proxy.set(way.unwrap_or(Way::Open));
        }
    }
}
