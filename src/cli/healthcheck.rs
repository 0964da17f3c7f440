//! `trefoil healthcheck`: asks a process on this machine whether it is ready, for container engines and service managers, whose images
//! have no HTTP client.

use super::output::{Failure, Output};
use crate::config::Settings;
use clap::Args;
use serde_json::json;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// For name, connection, question and answer together.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer that is read, bytes.
const LONGEST: u64 = 1_024;
/// Where processes listen in containers and units.
const USUAL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

/// Exit codes: 0 ready, 1 not ready or no answer within 2 s.
#[derive(Args)]
pub struct Arguments {
    /// What to ask; http only [default: /readyz at the process's own `metrics_listen`, or http://127.0.0.1:9464/readyz]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
}

pub fn run(config: Option<&Path>, Arguments { url }: &Arguments, output: &Output) -> Result<(), Failure> {
    let mut env: HashMap<String, String> = std::env::vars().collect();
    if let Some(path) = config {
        env.insert("TREFOIL_CONFIG".to_owned(), path.to_string_lossy().into_owned());
    }
    let url = url.clone().map_or_else(|| default_url(Settings::from_env(env)), Ok).map_err(Failure::Unhealthy)?;
    let answer = ask(&url).map_err(|why| Failure::Unhealthy(format!("{url}: {why}")))?;
    output.answer(&[("ready", url.clone())], &json!({ "url": url, "answer": answer }));
    Ok(())
}

/// The address of the process whose settings these are.
fn default_url(mut settings: Settings) -> Result<String, String> {
    let address = match settings.text("metrics_listen") {
        None => USUAL,
        Some(text) => text.parse().map_err(|_| "metrics_listen is no address and port".to_owned())?,
    };
    if address.port() == 0 {
        return Err("metrics_listen takes a free port: say --url".to_owned());
    }
    // Who listens everywhere is also here.
    let host = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    Ok(format!("http://{}/readyz", SocketAddr::new(host, address.port())))
}

/// What is answered, if it is 200; else why not.
fn ask(url: &str) -> Result<String, String> {
    // No proxy, whatever the environment says, and no other place than the one asked.
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .proxy(None)
        .max_redirects(0)
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let mut answer = agent.get(url).call().map_err(|error| error.to_string())?;
    let status = answer.status();
    let text = answer.body_mut().with_config().limit(LONGEST).lossy_utf8(true).read_to_string();
    match text.as_deref().map(str::trim) {
        Ok(text) if status == 200 => Ok(text.to_owned()),
        Ok("") | Err(_) => Err(status.to_string()),
        Ok(text) => Err(text.to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, missing_docs)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_the_process_of_the_same_settings() {
        let url = |listen: Option<&str>| {
            let env = listen.map(|listen| ("TREFOIL_METRICS_LISTEN".to_owned(), listen.to_owned()));
            default_url(Settings::from_env(env.into_iter().collect()))
        };
        assert_eq!(url(None).unwrap(), "http://127.0.0.1:9464/readyz");
        assert_eq!(url(Some("0.0.0.0:9999")).unwrap(), "http://127.0.0.1:9999/readyz");
        assert_eq!(url(Some("[::]:9999")).unwrap(), "http://[::1]:9999/readyz");
        assert_eq!(url(Some("10.0.0.7:1")).unwrap(), "http://10.0.0.7:1/readyz");
        assert!(url(Some("127.0.0.1:0")).unwrap_err().contains("--url"));
        assert!(url(Some("9464")).is_err());
    }
}
