//! What a process shows at `metrics_listen`.

use super::PATIENCE;
use super::process::Process;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A process's metrics and health.
pub struct Shown(String);

/// Metrics as of one moment: `name{labels}` and value.
pub struct Scrape(BTreeMap<String, f64>);

impl Shown {
    /// Of a process that was started with `metrics_listen` at port 0.
    pub fn of(process: &Process) -> Self {
        let line = process.wait_for("metrics address=");
        Self(line.rsplit("address=").next().unwrap().trim().to_owned())
    }

    /// `127.0.0.1:` and the port.
    pub fn address(&self) -> &str {
        &self.0
    }

    /// Status and text of what is at this path; `None` if nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let config = ureq::Agent::config_builder().proxy(None).http_status_as_error(false);
        let agent: ureq::Agent = config.timeout_global(Some(PATIENCE)).build().into();
        let mut answer = agent.get(format!("http://{}{path}", self.0)).call().ok()?;
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
            assert!(started.elapsed() < PATIENCE, "never {what}: {:#?}", scrape.0);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until `/readyz` says this.
    pub fn wait_until_ready_says(&self, wanted: (u16, &str)) {
        let started = Instant::now();
        loop {
            let said = self.get("/readyz");
            if said.as_ref().is_some_and(|(status, text)| (*status, text.trim()) == wanted) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{said:?} instead of {wanted:?}");
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

    /// The sum of all series of a metric whose labels contain this text.
    pub fn sum(&self, name: &str, labels: &str) -> f64 {
        let of_name =
            |series: &str| series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        self.0.iter().filter(|(series, _)| of_name(series) && series.contains(labels)).map(|(_, value)| value).sum()
    }
}
