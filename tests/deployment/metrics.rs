//! What a process serves on its metrics address.

use crate::support::process::Process;
use std::time::{Duration, Instant};

/// What one scrape found: each series as it is written, and its value.
pub struct Scrape(Vec<(String, f64)>);

impl Scrape {
    /// Reads what the process serves at `/metrics`.
    pub fn of(process: &Process) -> Self {
        let (status, text) = get(process, "/metrics");
        assert_eq!(status, 200, "{text}");
        let series = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            series
                .map(|line| {
                    let (name, value) = line.rsplit_once(' ').unwrap();
                    (name.to_owned(), value.parse().unwrap())
                })
                .collect(),
        )
    }

    /// Scrapes until this holds.
    pub fn until(process: &Process, enough: impl Fn(&Self) -> bool) -> Self {
        let started = Instant::now();
        loop {
            let scrape = Self::of(process);
            if enough(&scrape) {
                return scrape;
            }
            assert!(started.elapsed() < super::PATIENCE, "still {:#?}", scrape.0);
            std::thread::sleep(Duration::from_millis(20));
        }
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

/// Status and body of this path.
pub fn get(process: &Process, path: &str) -> (u16, String) {
    let line = process.wait_for("metrics address=");
    let address = line.split("metrics address=").nth(1).unwrap().trim();
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut answer = agent.get(format!("http://{address}{path}")).call().unwrap();
    (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
}
