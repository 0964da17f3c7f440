//! What a process shows at `metrics_listen`.

use super::PATIENCE;
use super::process::Process;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A process's metrics and health.
pub struct Shown {
    address: String,
    /// How long it is waited for.
    patience: Duration,
}

/// Metrics as of one moment: `name{labels}` and value.
pub struct Scrape(BTreeMap<String, f64>);

impl Shown {
    /// Of a process that was started with `metrics_listen` at port 0.
    pub fn of(process: &Process) -> Self {
        Self::with(process, PATIENCE)
    }

    /// The same, with another patience.
    pub fn with(process: &Process, patience: Duration) -> Self {
        let line = process.wait_for("metrics address=");
        Self { address: line.rsplit("address=").next().unwrap().trim().to_owned(), patience }
    }

    /// `127.0.0.1:` and the port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Status and text of what is at this path; `None` if nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false);
        let agent: ureq::Agent = config.timeout_global(Some(self.patience)).build().into();
        let mut answer = agent.get(format!("http://{}{path}", self.address)).call().ok()?;
        Some((answer.status().as_u16(), answer.body_mut().read_to_string().unwrap()))
    }

    /// The metrics now.
    pub fn scrape(&self) -> Scrape {
        let (status, text) = self.get("/metrics").expect("metrics are served");
        assert_eq!(status, 200, "{text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Scrape(
            lines
                .map(|line| line.rsplit_once(' ').unwrap())
                .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
                .collect(),
        )
    }

    /// Waits until the metrics are so.
    pub fn wait_until(&self, what: &str, wanted: impl Fn(&Scrape) -> bool) -> Scrape {
        let started = Instant::now();
        loop {
            let scrape = self.scrape();
            if wanted(&scrape) {
                return scrape;
            }
            assert!(started.elapsed() < self.patience, "never {what}: {:#?}", scrape.0);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `/readyz` says this.
    pub fn wait_until_ready_says(&self, wanted: (u16, &str)) {
        let started = Instant::now();
        loop {
            let said = self.get("/readyz");
            if said.as_ref().is_some_and(|(status, text)| (*status, text.as_str()) == wanted) {
                return;
            }
            assert!(started.elapsed() < self.patience, "{said:?} instead of {wanted:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Scrape {
    /// Of one series, as it is written: `name` or `name{label="value",…}`, the labels in the order of the alphabet. `None` if it is not there.
    pub fn get(&self, series: &str) -> Option<f64> {
        self.0.get(series).copied()
    }

    /// The same, 0 if it is not there.
    pub fn value(&self, series: &str) -> f64 {
        self.get(series).unwrap_or(0.0)
    }

    /// The series of this name with these labels among theirs, and their values.
    pub fn series<'a>(&'a self, name: &'a str, labels: &'a [(&str, &str)]) -> impl Iterator<Item = (&'a str, f64)> {
        let of_name = self.0.iter().filter(move |(series, _)| series.split('{').next() == Some(name));
        let wanted = move |series: &str| {
            labels.iter().all(|(label, value)| {
                series.split(['{', ',', '}']).any(|part| part.split_once('=') == Some((label, &format!("\"{value}\""))))
            })
        };
        of_name.filter(move |(series, _)| wanted(series)).map(|(series, value)| (series.as_str(), *value))
    }

    /// Their sum.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.series(name, labels).map(|(_, value)| value).sum()
    }
}
