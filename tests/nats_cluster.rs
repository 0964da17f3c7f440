//! deploy/nats as it is: three servers, mutual TLS, accounts. The service runs on them, and goes on when one is gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod deployment;
mod support;

use async_nats::jetstream;
use deployment::{Deployment, PASSWORD, digest, material};
use nkeys::KeyPair;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa};
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;
use support::process::Process;
use support::scrape::Shown;
use support::{NatsServer, PATIENCE, command, nats_server};
use tempfile::TempDir;
use trefoil::vault::Password;
use trefoil::wire::{Curve, KdfParams, Method};

const SERVERS: [&str; 3] = ["nats-1", "nats-2", "nats-3"];
/// When the certificates end.
const LAST_YEAR: i32 = 2051;
const WHO: [&str; 6] = ["worker", "node1", "node2", "monitor", "operator", "system"];

/// A certificate authority and a certificate of each server and of the clients, in the files that the configuration names.
fn certificates(folder: &Path) {
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::<String>::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, key()).unwrap();
    let write = |place: &Path, name: &str| {
        let key = key();
        let mut certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        // Before the authority does.
        certificate.not_after = rcgen::date_time_ymd(LAST_YEAR, 1, 1);
        certificate.distinguished_name = DistinguishedName::new();
        certificate.distinguished_name.push(DnType::CommonName, name);
        let certificate = certificate.signed_by(&key, &authority).unwrap();
        std::fs::create_dir_all(place).unwrap();
        std::fs::write(place.join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(place.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(place.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    for server in SERVERS {
        write(&folder.join(server).join("certs"), "server");
    }
    write(&folder.join("clients"), "client");
}

/// A server with the shipped configuration, on ports of its own choice; its ports for clients and for other servers.
fn start(folder: &Path, name: &str, accounts: &str, routes: [&str; 2]) -> (Process, u16, u16) {
    let folder = folder.join(name);
    let shipped = include_str!("../deploy/nats/nats-server.conf");
    let here = shipped
        .replace("0.0.0.0:4222", "127.0.0.1:-1")
        .replace("0.0.0.0:6222", "127.0.0.1:-1")
        .replace("127.0.0.1:8222", "127.0.0.1:-1");
    assert_eq!(here.matches(":-1").count(), 3, "the configuration's ports");
    std::fs::write(folder.join("nats-server.conf"), here).unwrap();
    std::fs::write(folder.join("accounts.conf"), accounts).unwrap();
    let mut server = Command::new(nats_server());
    server.current_dir(&folder).args(["-c", "nats-server.conf"]);
    server.env("TREFOIL_SERVER_NAME", name).env("TREFOIL_ROUTE_1", routes[0]).env("TREFOIL_ROUTE_2", routes[1]);
    let process = Process::spawn(name, server, &folder.join("log"));
    let port = |line: String| line.rsplit(':').next().unwrap().trim().parse().unwrap();
    let clients = port(process.wait_for("Listening for client connections on"));
    let servers = port(process.wait_for("Listening for route connections on"));
    (process, clients, servers)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers_with_tls_carry_the_service_and_outlive_one() {
    let folder = TempDir::new().unwrap();
    certificates(folder.path());
    let keys: HashMap<&str, KeyPair> = WHO.iter().map(|who| (*who, KeyPair::new_user())).collect();
    let (wallet, initiator) = (KeyPair::new_user(), KeyPair::new_user());
    let mut trefoil = command("trefoil");
    trefoil.arg("nats-accounts").args(WHO.iter().flat_map(|who| [format!("--{who}"), keys[who].public_key()]));
    trefoil.args(["--backend", &format!("WALLET={},{}", wallet.public_key(), initiator.public_key())]);
    let done = trefoil.output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let accounts = String::from_utf8(done.stdout).unwrap();

    // Nobody is behind the first routes; the others bring theirs.
    let nobody = "nats-route://127.0.0.1:1";
    let (first, port1, route) = start(folder.path(), SERVERS[0], &accounts, [nobody, nobody]);
    let route = format!("nats-route://127.0.0.1:{route}");
    let (second, port2, _) = start(folder.path(), SERVERS[1], &accounts, [&route, nobody]);
    let (third, port3, _) = start(folder.path(), SERVERS[2], &accounts, [&route, nobody]);
    let url = [port1, port2, port3].map(|port| format!("tls://127.0.0.1:{port}")).join(",");

    let mut service = Deployment::on(NatsServer::start());
    service.initiator = initiator;
    for (who, key) in &keys {
        std::fs::write(folder.path().join(format!("{who}.seed")), key.seed().unwrap()).unwrap();
    }
    let file = |name: &str| folder.path().join(name).display().to_string();
    let tls = [
        ("TREFOIL_NATS_URL", url),
        ("TREFOIL_NATS_TLS_CA", file("clients/ca.pem")),
        ("TREFOIL_NATS_TLS_CERT", file("clients/client.pem")),
        ("TREFOIL_NATS_TLS_KEY", file("clients/client.key")),
    ];
    let connection = |who: &str| {
        let own = [
            ("TREFOIL_NATS_NKEY_SEED_FILE", file(&format!("{who}.seed"))),
            ("TREFOIL_NATS_INBOX_PREFIX", format!("_INBOX_{who}")),
        ];
        tls.clone().into_iter().chain(own).collect::<Vec<_>>()
    };
    service.node_settings = connection("{role}");
    service.worker_settings = connection("worker");
    for settings in [&mut service.node_settings, &mut service.worker_settings] {
        settings.push(("TREFOIL_METRICS_LISTEN", "127.0.0.1:0".to_owned()));
    }
    service.worker_settings.push(("TREFOIL_REPLICAS", "3".to_owned()));
    service.start_node("node1");
    service.start_node("node2");
    service.start_worker("worker1");
    for name in ["node1", "worker1"] {
        let shown = Shown::of(service.process(name));
        let end = rcgen::date_time_ymd(LAST_YEAR, 1, 1).unix_timestamp() as f64;
        shown.wait_until("shown", |now| now.get("trefoil_certificate_expiry_timestamp_seconds") == Some(end));
        assert_eq!(shown.scrape().value("trefoil_nats_connected"), 1.0);
    }
    let own = [
        ("TREFOIL_NATS_NKEY_SEED", wallet.seed().unwrap()),
        ("TREFOIL_NATS_JETSTREAM_PREFIX", "TREFOIL.JS.API".to_owned()),
    ];
    let backend = service.backend_with(&[&tls[..], &own].concat()).await;

    let password = || Password::new(zeroize::Zeroizing::new([PASSWORD, b"...."].concat())).unwrap();
    let new = backend.generate(Curve::Secp256k1, KdfParams::Hkdf, password()).await.unwrap();
    backend.committed(&new.key, PATIENCE).await.unwrap();
    let key = material(&new);
    backend.sign(&key, Method::Default, &digest(1), password()).await.unwrap();

    // Which of them leads what, and who is connected to it, is not known: each answer is the same to the service.
    let mut servers = [first, second, third];
    servers[0].kill9();
    let started = Instant::now();
    while let Err(error) = backend.sign(&key, Method::Default, &digest(2), password()).await {
        assert!(started.elapsed() < PATIENCE, "two of three servers do not carry the service: {error}");
    }
    let without = async_nats::ConnectOptions::with_nkey(keys["operator"].seed().unwrap())
        .add_root_certificates(folder.path().join("clients/ca.pem"));
    assert!(without.connect(format!("tls://127.0.0.1:{port2}")).await.is_err(), "let in without a certificate");
    // And JetStream keeps three copies.
    let monitor = async_nats::ConnectOptions::with_nkey(keys["operator"].seed().unwrap())
        .custom_inbox_prefix("_INBOX_operator")
        .add_root_certificates(folder.path().join("clients/ca.pem"))
        .add_client_certificate(folder.path().join("clients/client.pem"), folder.path().join("clients/client.key"));
    let client = monitor.connect(format!("tls://127.0.0.1:{port2}")).await.unwrap();
    let mut jobs = jetstream::new(client).get_stream("MPC_JOBS").await.unwrap();
    assert_eq!(jobs.info().await.unwrap().config.num_replicas, 3);
}
