//! The service under test: a real nats-server, both nodes and the workers as processes, keys, and what the processes use.

use crate::deployment::Deployment;
use crate::floor;
use crate::load::{Check, Planned};
use crate::support::NatsServer;
use crate::support::process::Process;
use rand_core::{OsRng, RngCore};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use trefoil::client::{Backend, SignedRequest, SigningMaterial};
use trefoil::seal::Secrets;
use trefoil::vault::Password;
use trefoil::wire::{Batch, Curve, KdfParams, Method, SignInput};
use zeroize::Zeroizing;

/// What `hkdf` takes: 32 bytes that a machine made.
const SECRET: [u8; 32] = [0x5a; 32];
/// Long enough for the longest series.
const LIFETIME: Duration = Duration::from_secs(3_500);
/// Clock ticks a second in /proc.
const TICKS: f64 = 100.0;

/// What is signed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    Real(Curve),
    Floor(Curve),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Real(curve) => write!(f, "{curve}"),
            Self::Floor(curve) => write!(f, "floor-{curve}"),
        }
    }
}

/// Ends our processes when this one has ended in whatever way, kill -9 included: a shell that waits for the end of a pipe.
struct Watchdog(Child);

impl Watchdog {
    fn start() -> Self {
        let script =
            r#"trap "" INT TERM HUP; all=; while read pid; do all="$all $pid"; done; kill -9 $all 2>/dev/null"#;
        // A group of its own, so that Ctrl-C does not reach it.
        let mut command = Command::new("sh");
        command.args(["-c", script]).process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn watch(&mut self, pid: u32) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{pid}").unwrap();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Everybody it knows was waited for when this is dropped, and none of the numbers has been given away since.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Site {
    pub service: Deployment,
    pub backend: Backend,
    pub ecdsa: Vec<SigningMaterial>,
    pub eddsa: Vec<SigningMaterial>,
    /// Bytes of a sign job, by curve: for the floor.
    floor_jobs: [usize; 2],
    echo: Option<Process>,
    floor_workers: Vec<Process>,
    watchdog: Watchdog,
}

impl Site {
    /// The server with this `sync_interval` (`None`: the server's default) and both nodes.
    pub async fn start(sync: Option<&str>) -> Self {
        let mut watchdog = Watchdog::start();
        let mut service = Deployment::new();
        if let Some(sync) = sync {
            service.nats = NatsServer::with_config(&format!("jetstream {{ sync_interval: {sync} }}\n"));
        }
        watchdog.watch(service.nats.id());
        service.start_node("node1");
        service.start_node("node2");
        service.start_worker("worker1");
        for process in service.running.values() {
            watchdog.watch(process.id());
        }
        let backend = service.backend().await;
        floor::provision(service.nats.connect().await).await;
        Self {
            service,
            backend,
            ecdsa: Vec::new(),
            eddsa: Vec::new(),
            floor_jobs: [0; 2],
            echo: None,
            floor_workers: Vec::new(),
            watchdog,
        }
    }

    /// Generates a key and returns how long its result took.
    pub async fn generate(&mut self, curve: Curve) -> Duration {
        let password = Password::new(Zeroizing::new(SECRET.to_vec())).unwrap();
        let started = Instant::now();
        let new = self.backend.generate(curve, KdfParams::Hkdf, password).await.unwrap();
        let took = started.elapsed();
        self.backend.committed(&new.key, Duration::from_secs(30)).await.unwrap();
        let key = crate::deployment::material(&new);
        match curve {
            Curve::Secp256k1 => self.ecdsa.push(key),
            Curve::Ed25519 => self.eddsa.push(key),
        }
        took
    }

    /// As soon as there are keys: what the floor's jobs weigh.
    pub fn weigh(&mut self) {
        for (index, curve) in [Curve::Secp256k1, Curve::Ed25519].into_iter().enumerate() {
            self.floor_jobs[index] = self.sign(curve, 0, 0).body.len();
        }
    }

    /// A job of this kind for the key with this number, modulo the number of keys.
    pub fn job(&self, what: What, key: usize, group: usize) -> Planned {
        match what {
            What::Real(curve) => self.sign(curve, key, group),
            What::Floor(curve) => {
                let mut name = [0; 16];
                OsRng.fill_bytes(&mut name);
                let name = data_encoding::HEXLOWER.encode(&name);
                let keys = self.keys(curve).len();
                let bytes = self.floor_jobs[usize::from(curve == Curve::Ed25519)];
                Planned {
                    subject: format!("floor.job.{curve}.{}.{name}", key % keys),
                    headers: async_nats::HeaderMap::new(),
                    body: vec![0; bytes].into(),
                    name,
                    check: Check::Stored,
                    group,
                }
            }
        }
    }

    pub fn keys(&self, curve: Curve) -> &[SigningMaterial] {
        match curve {
            Curve::Secp256k1 => &self.ecdsa,
            Curve::Ed25519 => &self.eddsa,
        }
    }

    fn sign(&self, curve: Curve, key: usize, group: usize) -> Planned {
        let keys = self.keys(curve);
        let key = &keys[key % keys.len()];
        let (input, reply) = (input(curve), self.backend.reply_key().unwrap());
        let job = self.backend.jobs();
        let job = job.sign(key.key_id, Method::Default, &input, &secrets(key), &reply, LIFETIME).unwrap();
        planned(job, Check::Signature { public_key: key.public_key.clone(), input }, group)
    }

    /// A job of so many items for the first key.
    pub fn batch(&self, curve: Curve, items: usize) -> Planned {
        let key = &self.keys(curve)[0];
        let batch = Batch::new((0..items).map(|_| input(curve)).collect()).unwrap();
        let reply = self.backend.reply_key().unwrap();
        let job = self.backend.jobs();
        let job = job.sign_batch(key.key_id, Method::Default, &batch, &secrets(key), &reply, LIFETIME).unwrap();
        planned(job, Check::Batch { public_key: key.public_key.clone(), chain_code: key.chain_code, batch }, 0)
    }

    /// Brings the number of workers of this kind to `count`, and that of the other kind's to none.
    pub fn workers(&mut self, what: What, count: usize) {
        let (real, floor) = match what {
            What::Real(_) => (count, 0),
            What::Floor(_) => (0, count),
        };
        for number in 1..=8 {
            let name = format!("worker{number}");
            match (self.service.running.contains_key(&name), number <= real) {
                (true, false) => {
                    assert!(self.service.running.remove(&name).unwrap().terminate().success());
                }
                (false, true) => {
                    self.service.start_worker(&name);
                    self.watchdog.watch(self.service.process(&name).id());
                }
                _ => {}
            }
        }
        self.floor_workers.truncate(floor);
        if floor == 0 {
            self.echo = None;
        } else if self.echo.is_none() {
            self.echo = Some(self.floor("echo", "echo"));
        }
        while self.floor_workers.len() < floor {
            let process = self.floor("worker", &format!("floor-worker{}", self.floor_workers.len() + 1));
            self.floor_workers.push(process);
        }
    }

    fn floor(&mut self, role: &str, name: &str) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("FLOOR_ROLE", role).env("FLOOR_URL", self.service.nats.url());
        let process = Process::spawn(name, command, &self.service.path(&format!("{name}.log")));
        process.wait_for("ready");
        self.watchdog.watch(process.id());
        process
    }

    fn processes(&self) -> Vec<(&'static str, u32)> {
        let named = |name: &str| {
            if name.starts_with("worker") {
                "workers"
            } else if name == "node1" {
                "node1"
            } else {
                "node2"
            }
        };
        let mut all: Vec<_> = self.service.running.iter().map(|(name, process)| (named(name), process.id())).collect();
        all.push(("nats-server", self.service.nats.id()));
        all.push(("load", std::process::id()));
        all.extend(self.floor_workers.iter().map(|process| ("workers", process.id())));
        all.extend(self.echo.iter().map(|process| ("node1", process.id())));
        all
    }

    /// Seconds of CPU that each kind of process has used, and under `all` the whole machine.
    pub fn cpu(&self) -> BTreeMap<&'static str, f64> {
        let mut used = BTreeMap::new();
        for (name, pid) in self.processes() {
            *used.entry(name).or_default() += ticks(&format!("/proc/{pid}/stat"), 11..13) / TICKS;
        }
        let line = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<f64> =
            line.lines().next().unwrap_or_default().split(' ').filter_map(|f| f.parse().ok()).collect();
        let busy = fields.iter().sum::<f64>() - fields.get(3).unwrap_or(&0.0) - fields.get(4).unwrap_or(&0.0);
        used.insert("all", busy / TICKS);
        used
    }

    /// Resident memory of each worker, KiB.
    pub fn worker_memory(&self) -> Vec<u64> {
        let workers = self.processes().into_iter().filter(|(name, _)| *name == "workers");
        workers
            .filter_map(|(_, pid)| {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
                let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
                line.split_whitespace().next()?.parse().ok()
            })
            .collect()
    }
}

/// 32 random bytes to sign.
fn input(curve: Curve) -> SignInput {
    let mut digest = [0; 32];
    OsRng.fill_bytes(&mut digest);
    match curve {
        Curve::Secp256k1 => SignInput::Secp256k1 { digest, path: None },
        Curve::Ed25519 => SignInput::Ed25519 { message: digest.to_vec() },
    }
}

fn secrets(key: &SigningMaterial) -> Secrets {
    Secrets {
        password: Some(Password::new(Zeroizing::new(SECRET.to_vec())).unwrap()),
        encrypted_share: Some(key.encrypted_share.clone()),
        secret_store: Some(key.secret_store.clone()),
        ..Secrets::default()
    }
}

fn planned(job: SignedRequest, check: Check, group: usize) -> Planned {
    let SignedRequest { subject, headers, body, job_id, .. } = job;
    Planned { subject, headers, body: body.into(), name: job_id.to_string(), check, group }
}

/// The sum of some fields of a stat file, counted behind the program's name, which may hold spaces.
fn ticks(path: &str, fields: std::ops::Range<usize>) -> f64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let rest = text.rsplit(')').next().unwrap_or_default();
    let numbers: Vec<f64> = rest.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
    numbers.get(fields).unwrap_or_default().iter().sum()
}
