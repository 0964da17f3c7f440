//! What happens in one interleaving: everything that is drawn is drawn here, from the seed alone.

use std::fmt;
use trefoil::wire::Curve;

/// SplitMix64: small, and the same for ever.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7265_666f_696c)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Recover,
    Refresh,
    Sign,
}

impl Act {
    pub const fn op(self) -> &'static str {
        match self {
            Self::Recover => "recover",
            Self::Refresh => "refresh",
            Self::Sign => "sign",
        }
    }
}

/// One job of a phase.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub act: Act,
    /// Milliseconds after the beginning of its phase.
    pub after: u64,
    /// Which of the shares that are known then it uses: counted from the newest, cut off at the oldest.
    pub share: usize,
}

/// The process that reaches the step of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    Worker,
    Node1,
    Node2,
}

impl At {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Node1 => "node1",
            Self::Node2 => "node2",
        }
    }
}

/// Every step at which a process can fail.
pub const STEPS: &[(At, &str)] = &[
    (At::Worker, "taken"),
    (At::Worker, "session"),
    (At::Worker, "prepared-node2"),
    (At::Worker, "prepared-node1"),
    (At::Worker, "result-stored"),
    (At::Worker, "decided"),
    (At::Worker, "followed"),
    (At::Worker, "acknowledged"),
    (At::Node1, "session"),
    (At::Node1, "preparing"),
    (At::Node1, "prepared"),
    (At::Node1, "committing"),
    (At::Node1, "committed"),
    (At::Node1, "charged"),
    (At::Node1, "burned"),
    (At::Node2, "session"),
    (At::Node2, "preparing"),
    (At::Node2, "prepared"),
    (At::Node2, "committing"),
    (At::Node2, "committed"),
];

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The process is killed.
    Kill,
    /// It stands still for so long that its jobs are given to others, and goes on then.
    Pause,
    /// It stands still while the nats-server is killed and started again.
    Nats,
}

/// What fails when a process reaches a step for the nth time in one operation.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub at: At,
    pub step: &'static str,
    pub op: &'static str,
    pub nth: u64,
    pub what: What,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, step, op, what, .. } = self;
        write!(f, "{what:?} at {}/{step} of {op}", at.name())
    }
}

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub curve: Curve,
    /// Jobs that run beside each other; the next phase begins when all of one have their results.
    pub phases: Vec<Vec<Step>>,
    pub fault: Fault,
    /// The phase before which the fault is armed; 0 is before the key's generation.
    pub armed: usize,
    /// The jobs vanish from the queue as soon as their results are there: what is left to do is left to the keys' first uses.
    pub lost: bool,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let curve = dice.of(Curve::ALL);
        let phases: Vec<_> = (0..1 + dice.below(5) / 3).map(|_| phase(&mut dice)).collect();
        // Each step in turn, and so what happens there.
        let (at, step) = STEPS[(seed % STEPS.len() as u64) as usize];
        let whats = [What::Kill, What::Pause, What::Nats, What::Kill];
        let what = whats[(seed / STEPS.len() as u64 % whats.len() as u64) as usize];
        let armed = dice.below(10).min(phases.len() as u64) as usize;
        let op = |act: &Step| act.act.op();
        let ops: Vec<&'static str> = match (armed, step) {
            (_, "burned") => vec!["sign"],
            (_, "charged") => phases[armed.max(1) - 1].iter().map(op).filter(|op| *op != "recover").collect(),
            (0, _) => vec!["generate"],
            (armed, "taken" | "result-stored" | "acknowledged") => phases[armed - 1].iter().map(op).collect(),
            (armed, "session") if at == At::Worker => phases[armed - 1].iter().map(op).collect(),
            (armed, _) => phases[armed - 1].iter().map(op).filter(|op| *op != "sign").collect(),
        };
        let op = dice.of(&ops);
        let armed = if op == "generate" { 0 } else { armed.max(1) };
        let nth = 1 + dice.below(8) / 7;
        // Only an ECDSA session is burned.
        let curve = if step == "burned" { Curve::Secp256k1 } else { curve };
        let lost = dice.below(8) == 0;
        Self { seed, curve, phases, fault: Fault { at, step, op, nth, what }, armed, lost }
    }
}

/// One or two jobs that replace shares, two or three that sign, in any order.
fn phase(dice: &mut Dice) -> Vec<Step> {
    let mut steps = Vec::new();
    for _ in 0..1 + dice.below(5) / 3 {
        steps.push(Step { act: dice.of(&[Act::Recover, Act::Refresh]), after: dice.below(40), share: 0 });
    }
    for _ in 0..2 + dice.below(2) {
        let share = (dice.below(4) / 3) as usize;
        steps.push(Step { act: Act::Sign, after: dice.below(150), share });
    }
    steps
}
