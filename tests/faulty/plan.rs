//! Which faults happen, where and when: everything that is drawn is drawn here, from the seed alone.

use crate::interleaving::plan::{At, Dice, STEPS};
use std::fmt;

/// What happens to a process, or to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// kill -9, and a new start a while later.
    Kill,
    /// SIGSTOP, for longer than a lease lives and the queue waits for an acknowledgement, then SIGCONT.
    Stop,
    /// SIGTERM, and a new start when it has ended.
    Restart,
    /// Its connections to NATS are dropped, and refused for a while.
    Cut,
    /// Its connections stay, and nothing passes on them for a while.
    Hole,
}

impl Kind {
    pub const ALL: &[Self] = &[Self::Kill, Self::Stop, Self::Restart, Self::Cut, Self::Hole];
}

/// Whom it happens to. `Nats` is the server: it is cut off by cutting everybody's connections to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Worker(u64),
    Node1,
    Node2,
    Nats,
    /// The backend that publishes the jobs; only its connection fails.
    Backend,
}

impl Target {
    /// The process's name.
    pub fn name(self) -> String {
        match self {
            Self::Worker(number) => format!("worker{number}"),
            other => other.group().to_owned(),
        }
    }

    /// Which kind of process it is.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Worker(_) => "worker",
            Self::Node1 => "node1",
            Self::Node2 => "node2",
            Self::Nats => "nats-server",
            Self::Backend => "backend",
        }
    }
}

/// A named step of `src/fault`, at which a process fails when it reaches it for the nth time in this operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub at: At,
    pub name: &'static str,
    pub op: &'static str,
    pub nth: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// Happens, or is armed, when so many jobs were begun.
    pub after: u64,
    pub kind: Kind,
    /// At a step: `Nats`, or else whichever process reaches it.
    pub target: Target,
    pub step: Option<Step>,
    /// Milliseconds that it stays killed, stopped or cut off.
    pub lasting: u64,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, target, step, .. } = self;
        match step {
            None => write!(f, "{kind:?} {}", target.name()),
            Some(Step { at, name, op, .. }) => {
                write!(f, "{kind:?} {} at {}/{name} of {op}", target.group(), at.name())
            }
        }
    }
}

/// Operations in which a process reaches a step.
fn operations(at: At, step: &str) -> &'static [&'static str] {
    match (at, step) {
        (At::Worker, "taken" | "session" | "result-stored" | "acknowledged") => {
            &["sign", "generate", "refresh", "recover"]
        }
        (_, "sub-batch" | "burned" | "charged") => &["sign"],
        _ => &["generate", "refresh", "recover"],
    }
}

/// Every step, those of batches too.
pub fn steps() -> Vec<(At, &'static str)> {
    STEPS.iter().copied().chain([(At::Worker, "sub-batch")]).collect()
}

/// Each kind with each target; only the backend's connection fails, and workers are numbered later.
fn pairs() -> Vec<(Kind, Target)> {
    let all = [Target::Worker(0), Target::Node1, Target::Nats, Target::Node2];
    let mut pairs: Vec<_> = Kind::ALL.iter().flat_map(|kind| all.map(|target| (*kind, target))).collect();
    pairs.extend([(Kind::Cut, Target::Backend), (Kind::Hole, Target::Backend)]);
    pairs
}

fn lasting(dice: &mut Dice, kind: Kind) -> u64 {
    match kind {
        Kind::Kill => dice.below(1_500),
        Kind::Restart => dice.below(500),
        Kind::Stop => 1_600 + dice.below(2_000),
        Kind::Cut => 300 + dice.below(2_500),
        // Sometimes for so long that both ends notice.
        Kind::Hole if dice.below(6) == 0 => 12_000,
        Kind::Hole => 1_600 + dice.below(2_500),
    }
}

/// Draws so many faults for so many jobs: half of them when a process reaches a step, each step in turn; half at any time, each kind with
/// each target in turn.
pub fn random(seed: u64, jobs: u64, faults: u64, workers: u64) -> Vec<Fault> {
    let mut dice = Dice::new(seed);
    let (steps, pairs) = (steps(), pairs());
    let (first, offset) = (jobs / 20, dice.below(steps.len() as u64));
    let mut plan: Vec<Fault> = (0..faults)
        .map(|number| {
            let after = first + dice.below((jobs * 9 / 10).saturating_sub(first).max(1));
            let round = number / 2;
            if number % 2 == 0 {
                let (at, name) = steps[((round + offset) % steps.len() as u64) as usize];
                let op = dice.of(operations(at, name));
                let step = Some(Step { at, name, op, nth: 1 + dice.below(8) / 7 });
                let kind = dice.of(Kind::ALL);
                let own = match at {
                    At::Worker => Target::Worker(0),
                    At::Node1 => Target::Node1,
                    At::Node2 => Target::Node2,
                };
                let target = if dice.below(5) == 0 { Target::Nats } else { own };
                return Fault { after, kind, target, step, lasting: lasting(&mut dice, kind) };
            }
            let (kind, target) = pairs[((round + offset) % pairs.len() as u64) as usize];
            let target = match target {
                Target::Worker(_) => Target::Worker(1 + dice.below(workers)),
                other => other,
            };
            Fault { after, kind, target, step: None, lasting: lasting(&mut dice, kind) }
        })
        .collect();
    plan.sort_by_key(|fault| fault.after);
    plan
}

/// The few of `make test`: every kind, every process, and some steps; the same each time.
pub fn few(jobs: u64) -> Vec<Fault> {
    let at = |at, name, op| Some(Step { at, name, op, nth: 1 });
    let faults = [
        (Kind::Kill, Target::Worker(1), None, 300),
        (Kind::Stop, Target::Worker(2), None, 1_600),
        (Kind::Kill, Target::Node1, at(At::Node1, "burned", "sign"), 0),
        (Kind::Hole, Target::Node2, None, 1_600),
        (Kind::Kill, Target::Nats, None, 300),
        (Kind::Stop, Target::Worker(0), at(At::Worker, "result-stored", "sign"), 1_600),
        (Kind::Restart, Target::Node1, None, 0),
        (Kind::Cut, Target::Nats, None, 500),
        (Kind::Kill, Target::Node2, at(At::Node2, "committed", "recover"), 0),
        (Kind::Cut, Target::Worker(1), None, 500),
        (Kind::Kill, Target::Worker(0), at(At::Worker, "decided", "refresh"), 0),
        (Kind::Restart, Target::Worker(2), None, 0),
        (Kind::Hole, Target::Backend, None, 1_600),
        (Kind::Stop, Target::Node1, None, 1_600),
    ];
    let (first, count) = (jobs / 8, faults.len() as u64);
    let at = |index: u64| first + index * (jobs - first) * 3 / (4 * count);
    faults
        .into_iter()
        .zip(0..)
        .map(|((kind, target, step, lasting), index)| Fault { after: at(index), kind, target, step, lasting })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_hundred_faults_are_of_every_kind_at_every_process_and_step() {
        for seed in 0..20 {
            let plan = random(seed, 2_000, 100, 3);
            assert_eq!(plan, random(seed, 2_000, 100, 3));
            assert_ne!(plan, random(seed + 1, 2_000, 100, 3));
            let at_steps: BTreeSet<_> =
                plan.iter().filter_map(|fault| fault.step).map(|step| (step.at.name(), step.name)).collect();
            assert_eq!(at_steps.len(), steps().len(), "seed {seed}");
            let at_any_time: BTreeSet<_> = plan
                .iter()
                .filter(|fault| fault.step.is_none())
                .map(|fault| (fault.kind, fault.target.group()))
                .collect();
            // All kinds at four processes, and a backend has nothing but its connection.
            assert_eq!(at_any_time.len(), 22, "seed {seed}: {at_any_time:?}");
        }
        assert_eq!(random(1, 2_000, 100, 1).len(), 100);
    }

    #[test]
    fn the_few_are_of_every_kind_and_hit_every_process() {
        let plan = few(150);
        let kinds: BTreeSet<_> = plan.iter().map(|fault| fault.kind).collect();
        let targets: BTreeSet<_> = plan.iter().map(|fault| fault.target.group()).collect();
        assert_eq!((kinds.len(), targets.len()), (5, 5));
        assert!(plan.is_sorted_by_key(|fault| fault.after) && plan.iter().all(|fault| fault.after < 150));
    }
}
