//! How a process connects to NATS.

use super::Settings;
use crate::telemetry::metrics::CommonMetrics;
use async_nats::{ConnectOptions, Event, jetstream};
use std::path::PathBuf;
use std::time::Duration;
use zeroize::Zeroizing;

/// Connection settings. At most one of the credentials is set; a user and password may stand in the URL.
pub struct NatsConfig {
    /// Server addresses: `nats://host:4222` or `tls://…`.
    pub servers: Vec<String>,
    /// A credentials file as `nsc` writes it.
    pub credentials: Option<PathBuf>,
    /// Seed of the connection's NKEY (`SU…`). Never the key that signs jobs: a server chooses what this one signs.
    pub seed: Option<Zeroizing<String>>,
    /// Certificate authority for TLS, PEM.
    pub tls_ca: Option<PathBuf>,
    /// Client certificate, PEM, together with `tls_key`.
    pub tls_cert: Option<PathBuf>,
    /// Client key, PEM.
    pub tls_key: Option<PathBuf>,
    /// Where answers come in: `_INBOX` unless the server's permissions give this connection another place.
    pub inbox_prefix: Option<String>,
    /// Where JetStream is asked: `$JS.API` unless the server imports it into this connection's account under another name.
    pub jetstream_prefix: Option<String>,
}

impl NatsConfig {
    /// Reads `nats_url` (required), `nats_credentials`, `nats_nkey_seed[_file]`, `nats_tls_ca`, `nats_tls_cert`, `nats_tls_key`,
    /// `nats_inbox_prefix`, `nats_jetstream_prefix`.
    pub fn read(settings: &mut Settings) -> Option<Self> {
        let path = |text: &str| Ok::<_, String>(PathBuf::from(text));
        let servers = settings.required("nats_url", |text| {
            let servers: Vec<String> = text.split(',').map(|part| part.trim().to_owned()).collect();
            match servers.iter().find(|server| server.parse::<async_nats::ServerAddr>().is_err()) {
                Some(_) => Err("must be addresses like nats://host:4222, separated by commas"),
                None => Ok(servers),
            }
        });
        let credentials = settings.optional("nats_credentials", path);
        let seed = settings.secret(
            "nats_nkey_seed",
            "an NKEY seed (SU…)",
            |text| nkeys::KeyPair::from_seed(text).is_ok().then(|| Zeroizing::new(text.to_owned())),
            false,
        );
        if credentials.is_some() && seed.is_some() {
            settings.problem("nats_nkey_seed", "set together with nats_credentials; only one can be used");
        }
        let tls_ca = settings.optional("nats_tls_ca", path);
        let tls_cert = settings.optional("nats_tls_cert", path);
        let tls_key = settings.optional("nats_tls_key", path);
        if tls_cert.is_some() != tls_key.is_some() {
            settings.problem("nats_tls_cert", "must be set together with nats_tls_key");
        }
        let inbox_prefix = settings.optional("nats_inbox_prefix", subject);
        let jetstream_prefix = settings.optional("nats_jetstream_prefix", subject);
        Some(Self { servers: servers?, credentials, seed, tls_ca, tls_cert, tls_key, inbox_prefix, jetstream_prefix })
    }

    /// Connects, retrying until the first server answers, and keeps the connection alive from then on.
    ///
    /// `name` is what the server shows for this connection. A frozen server is noticed within 10 s (two pings), and
    /// requests give up after 5 s unless they bring a deadline of their own.
    ///
    /// # Errors
    /// Unreadable credentials, a malformed address or a refused TLS set-up.
    pub async fn connect(&self, name: &str) -> anyhow::Result<async_nats::Client> {
        self.connect_and_tell(name, |_| ()).await
    }

    /// The same for a process that shows how its connection does.
    ///
    /// # Errors
    /// As [`NatsConfig::connect`].
    pub async fn connect_for(&self, name: &str, metrics: &CommonMetrics) -> anyhow::Result<async_nats::Client> {
        let (connected, lost) = (metrics.nats_connected.clone(), metrics.nats_disconnects.clone());
        let tell = move |event: &Event| match event {
            Event::Connected => connected.set(1),
            Event::Disconnected => {
                connected.set(0);
                lost.inc();
            }
            Event::Closed => connected.set(0),
            _ => {}
        };
        self.connect_and_tell(name, tell).await
    }

    async fn connect_and_tell(
        &self,
        name: &str,
        tell: impl Fn(&Event) + Send + Sync + 'static,
    ) -> anyhow::Result<async_nats::Client> {
        let mut options = ConnectOptions::new();
        if let Some(path) = &self.credentials {
            options = options.credentials_file(path).await?;
        }
        if let Some(seed) = &self.seed {
            options = options.nkey(seed.to_string());
        }
        if let Some(ca) = &self.tls_ca {
            options = options.add_root_certificates(ca.clone()).require_tls(true);
        }
        if let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) {
            options = options.add_client_certificate(cert.clone(), key.clone()).require_tls(true);
        }
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        let client = options
            .name(name)
            .ping_interval(Duration::from_secs(5))
            .request_timeout(Some(Duration::from_secs(5)))
            .retry_on_initial_connect()
            .event_callback(move |event| {
                tell(&event);
                async move { tracing::info!(%event, "nats") }
            })
            .connect(self.servers.clone())
            .await?;
        Ok(client)
    }

    /// The files with certificates, whose end somebody should see coming.
    #[must_use]
    pub fn certificates(&self) -> Vec<PathBuf> {
        [&self.tls_ca, &self.tls_cert].into_iter().flatten().cloned().collect()
    }

    /// JetStream over this connection.
    #[must_use]
    pub fn jetstream(&self, client: async_nats::Client) -> jetstream::Context {
        match &self.jetstream_prefix {
            Some(prefix) => jetstream::with_prefix(client, prefix),
            None => jetstream::new(client),
        }
    }
}

/// A subject without wildcards.
fn subject(text: &str) -> Result<String, &'static str> {
    let token =
        |token: &str| !token.is_empty() && token.chars().all(|c| c.is_ascii_graphic() && !matches!(c, '.' | '*' | '>'));
    if text.split('.').all(token) { Ok(text.to_owned()) } else { Err("must be a NATS subject without wildcards") }
}
