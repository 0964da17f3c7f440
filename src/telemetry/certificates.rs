//! When the TLS certificates of a process end.

use super::metrics::CommonMetrics;
use anyhow::{Context as _, anyhow};
use std::path::{Path, PathBuf};
use std::time::Duration;
use x509_parser::pem::Pem;

/// How often the files are read: whoever renews a certificate sees it here before the alert would come again.
const EVERY: Duration = Duration::from_secs(3_600);

/// Keeps `metrics` true to these PEM files, for ever. A file that cannot be read changes nothing, and is said.
pub async fn watch(files: Vec<PathBuf>, metrics: CommonMetrics) {
    if files.is_empty() {
        return;
    }
    let mut clock = tokio::time::interval(EVERY);
    loop {
        clock.tick().await;
        match first_end(&files) {
            Ok(end) => metrics.certificate_expiry.with_label_values::<&str>(&[]).set(end as f64),
            Err(error) => tracing::warn!("certificates: {error:#}"),
        }
    }
}

/// When the first certificate of these files ends, unix seconds.
fn first_end(files: &[PathBuf]) -> anyhow::Result<i64> {
    let mut first = None;
    for file in files {
        let end = end_of(file).with_context(|| file.display().to_string())?;
        first = Some(first.map_or(end, |first: i64| first.min(end)));
    }
    first.ok_or_else(|| anyhow!("no files"))
}

/// When the first certificate of one file ends, unix seconds.
fn end_of(file: &Path) -> anyhow::Result<i64> {
    let text = std::fs::read(file)?;
    let mut first = None;
    for block in Pem::iter_from_buffer(&text) {
        let block = block?;
        if block.label == "CERTIFICATE" {
            let end = block.parse_x509()?.validity().not_after.timestamp();
            first = Some(first.map_or(end, |first: i64| first.min(end)));
        }
    }
    first.ok_or_else(|| anyhow!("holds no certificate"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;

    fn certificate(year: i32) -> String {
        let mut wanted = rcgen::CertificateParams::new(vec!["node1".to_owned()]).unwrap();
        wanted.not_after = rcgen::date_time_ymd(year, 1, 1);
        wanted.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem()
    }

    #[test]
    fn the_first_end_counts_wherever_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (ca, own, none) = (folder.path().join("ca"), folder.path().join("own"), folder.path().join("none"));
        std::fs::write(&ca, [certificate(2041), certificate(2039)].concat()).unwrap();
        std::fs::write(&own, certificate(2040)).unwrap();
        std::fs::write(&none, "nothing").unwrap();
        let start_of = |year| rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
        assert_eq!(first_end(std::slice::from_ref(&own)).unwrap(), start_of(2040));
        assert_eq!(first_end(&[own.clone(), ca]).unwrap(), start_of(2039));
        assert!(first_end(&[own.clone(), none]).unwrap_err().to_string().contains("none"));
        assert!(first_end(&[own, folder.path().join("gone")]).is_err());
    }
}
