//! target/bench/service.json, and a line for each series as it ends.

use crate::series::Options;
use crate::support;
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub struct Report {
    started: Instant,
    head: Value,
    series: Vec<Value>,
}

pub fn rounded(value: f64) -> Value {
    json!((value * 1_000.0).round() / 1_000.0)
}

/// A histogram of microseconds, in milliseconds.
pub fn latency(histogram: &Histogram<u64>) -> Value {
    let at = |quantile: f64| rounded(histogram.value_at_quantile(quantile) as f64 / 1_000.0);
    json!({
        "count": histogram.len(), "mean": rounded(histogram.mean() / 1_000.0), "min": rounded(histogram.min() as f64 / 1_000.0),
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999), "max": rounded(histogram.max() as f64 / 1_000.0),
    })
}

fn output(command: &str, args: &[&str]) -> String {
    let done = Command::new(command).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    done.map(|done| String::from_utf8_lossy(&done.stdout).trim().to_owned()).unwrap_or_default()
}

fn first_line(path: &str, prefix: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(prefix)).unwrap_or_default();
    line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned()
}

/// How long a small write takes to be durable where the nodes' stores are, milliseconds: p50 and p99 of 300.
fn sync_time() -> Value {
    let mut took = Histogram::<u64>::new(3).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    for _ in 0..300 {
        std::io::Write::write_all(&mut file, &[7; 4_096]).unwrap();
        let started = Instant::now();
        file.sync_data().unwrap();
        took.record(started.elapsed().as_micros() as u64).unwrap();
    }
    json!({ "p50": latency(&took)["p50"], "p99": latency(&took)["p99"] })
}

impl Report {
    pub fn new(options: &Options) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
        let head = json!({
            "version": 1,
            "at": trefoil::clock::now_ms(),
            "commit": output("git", &["rev-parse", "HEAD"]),
            "uncommitted": !output("git", &["status", "--porcelain", "-uno"]).is_empty(),
            "optimised": !cfg!(debug_assertions),
            "machine": {
                "cpu": first_line("/proc/cpuinfo", "model name"),
                "cores": cores,
                "memory": first_line("/proc/meminfo", "MemTotal"),
                "kernel": output("uname", &["-sr"]),
                "loadAverageBefore": first_line("/proc/loadavg", ""),
                "syncMs": sync_time(),
            },
            "settings": {
                "quick": options.quick,
                "natsServer": output(support::nats_server().to_str().unwrap(), &["--version"]),
                "syncInterval": options.sync.as_deref().unwrap_or("default"),
                "replicas": 1,
                "kdf": "hkdf",
                "path": "m",
                "messageBytes": 32,
                "workerConcurrency": 64,
                "threads": std::env::var("TREFOIL_CRYPTO_THREADS").unwrap_or_else(|_| "cores".to_owned()),
            },
        });
        Self { started: Instant::now(), head, series: Vec::new() }
    }

    /// Keeps a series, and prints it.
    pub fn add(&mut self, series: Value) {
        let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |number| format!("{number:.2}"));
        let mut settings = Vec::new();
        for name in ["workers", "inFlight", "offered", "ofSaturated", "hotShare", "flood", "round", "batch", "itemRate"]
        {
            if let Some(value) = series.get(name).and_then(Value::as_f64) {
                settings.push(format!("{name} {}", (value * 100.0).round() / 100.0));
            }
        }
        let (latency, machine) = (&series["latencyMs"], &series["machine"]);
        println!(
            "  {:>4} s  {:<10} {:<16} {:<34} {:>9} /s  p50 {:>8} p99 {:>8} ms  others {} cores{}",
            self.started.elapsed().as_secs(),
            series["series"].as_str().unwrap_or_default(),
            series["what"].as_str().unwrap_or_default(),
            settings.join(", "),
            number(&series["rate"]),
            number(&latency["p50"]),
            number(&latency["p99"]),
            number(&machine["otherCores"]),
            match series["errors"].as_object() {
                Some(errors) if !errors.is_empty() => format!("  ERRORS {errors:?}"),
                _ => String::new(),
            },
        );
        self.series.push(series);
    }

    pub fn write(mut self, path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        self.head["seconds"] = rounded(Duration::as_secs_f64(&self.started.elapsed()));
        self.head["machine"]["loadAverageAfter"] = first_line("/proc/loadavg", "").into();
        self.head["series"] = self.series.into();
        std::fs::write(path, serde_json::to_string_pretty(&self.head).unwrap() + "\n").unwrap();
        println!("{}", path.display());
    }
}
