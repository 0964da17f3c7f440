//! `trefoil setup`: the identities and settings of a whole deployment on one machine, for trying it out and for tests.
//!
//! Whoever can read the directory can sign with every key of the deployment. In production no machine has all of it: each
//! operator makes their own identities, with `trefoil identity new`.

use super::identity::Kind;
use super::keyfile::{Existing, write};
use super::nats_accounts::{Accounts, Backend};
use super::output::{Failure, Output, merged};
use crate::wire::{Curve, Op};
use clap::Args;
use rand_core::{OsRng, RngCore};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::fs::{DirBuilder, File};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

pub const HELP: &str = "\
Each process has a directory of its own in it: TREFOIL_CONFIG=<DIR>/node1/settings.toml trefoil-node, the same with node2, with worker (trefoil-worker) and with \
client (trefoil); nats-server -c <DIR>/nats/nats-server.conf. Files are readable by their owner only; the command is run as the user whose processes read them.
For one machine. In production each operator makes their own identities with `trefoil identity new`, and keeps them.";

/// What is there once all of it is: the public keys. Nothing in it is secret.
const SUMMARY: &str = "setup.json";

#[derive(Args)]
pub struct Arguments {
    /// Directory to make; never overwritten
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Where the directory is complete already, this user's, and not writable by others, do nothing, and succeed
    #[arg(long)]
    if_missing: bool,
    /// Where all processes reach the nats-server
    #[arg(long, value_name = "URL", default_value = "nats://127.0.0.1:4222", value_parser = url)]
    nats_url: String,
    /// Where the nats-server listens
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4222")]
    nats_listen: SocketAddr,
    /// Where the nats-server's monitoring listens, which has no password [default: nowhere]
    #[arg(long, value_name = "ADDRESS:PORT")]
    nats_monitor: Option<SocketAddr>,
    /// Where the nodes and the nats-server keep their data, each in a directory of its own [default: <DIR>/data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

fn url(text: &str) -> Result<String, String> {
    match text.parse::<async_nats::ServerAddr>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("not an address like nats://host:4222".to_owned()),
    }
}

pub fn run(arguments: &Arguments, output: &Output) -> Result<(), Failure> {
    let directory = absolute(&arguments.directory)?;
    let (made, summary) = match complete(&directory)? {
        Some(summary) if arguments.if_missing => (false, summary),
        Some(_) => return Err(failed(&directory, "is set up already; nothing is overwritten")),
        None => match make(arguments, &directory) {
            Ok(summary) => (true, summary),
            // Another one that ran at the same time was first.
            Err(failure) if arguments.if_missing => (false, complete(&directory)?.ok_or(failure)?),
            Err(failure) => return Err(failure),
        },
    };
    let mut lines = vec![("directory", directory.display().to_string())];
    lines.push(("made", if made { "now".to_owned() } else { "before; nothing was changed".to_owned() }));
    let start = |name: &str| format!("TREFOIL_CONFIG={}", directory.join(name).join("settings.toml").display());
    lines.extend([("node 1", start("node1")), ("node 2", start("node2")), ("workers", start("worker"))]);
    lines.push(("trefoil", start("client")));
    lines.push(("nats-server", format!("-c {}", directory.join("nats/nats-server.conf").display())));
    output.answer(&lines, &merged(json!({ "directory": directory, "made": made }), summary));
    Ok(())
}

fn failed(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::usage(format!("{}: {what}", path.display()))
}

/// The directory as every process finds it, wherever it is started.
fn absolute(directory: &Path) -> Result<PathBuf, Failure> {
    let name = directory.file_name().ok_or_else(|| failed(directory, "not the name of a directory"))?;
    let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let parent = parent.canonicalize().map_err(|error| failed(parent, error))?;
    Ok(parent.join(name))
}

/// The summary of a directory that was set up before, by this user.
fn complete(directory: &Path) -> Result<Option<Value>, Failure> {
    let path = directory.join(SUMMARY);
    if std::fs::symlink_metadata(&path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        return Ok(None);
    }
    // Before anything is read: another user's file may be one that never ends.
    [directory, &path].into_iter().try_for_each(ours)?;
    let text = std::fs::read(&path).map_err(|error| failed(&path, error))?;
    serde_json::from_slice(&text).map(Some).map_err(|error| failed(&path, error))
}

/// Refuses what another user has made, or may change: the processes would run with that user's keys.
fn ours(path: &Path) -> Result<(), Failure> {
    let user = rustix::process::geteuid().as_raw();
    // Of a link, its owner and what it leads to.
    let found = std::fs::symlink_metadata(path).and_then(|link| Ok([link, std::fs::metadata(path)?]));
    let [link, found] = found.map_err(|error| failed(path, error))?;
    if link.uid() != user || found.uid() != user {
        return Err(failed(path, "belongs to another user; it is not used"));
    }
    if found.mode() & 0o022 != 0 {
        return Err(failed(path, "may be changed by other users; it is not used"));
    }
    Ok(())
}

/// Makes everything beside the directory, and gives it its name when it is whole: cut short, there is nothing there.
fn make(arguments: &Arguments, directory: &Path) -> Result<Value, Failure> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    // Not by the process id, which is the same in every container: what another one left behind must not be in the way.
    let draft = directory.with_file_name(format!(".{name}.{:016x}", OsRng.next_u64()));
    let made = (|| {
        let data = arguments.data.clone().unwrap_or_else(|| directory.join("data"));
        let data = std::path::absolute(&data).map_err(|error| failed(&data, error))?;
        let mut deployment = Deployment { draft: draft.clone(), directory, public: Map::new() };
        deployment.folder("")?;
        deployment.write_all(arguments, &data)?;
        let summary = json!({ "version": 1, "publicKeys": deployment.public });
        write(&draft.join(SUMMARY), format!("{summary:#}\n").as_bytes(), Existing::Refuse)?;
        // Fails where anything but an empty directory has the name.
        std::fs::rename(&draft, directory).map_err(|error| match error.kind() {
            std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotADirectory => {
                failed(directory, "exists; it is not overwritten")
            }
            _ => failed(directory, error),
        })?;
        let parent = directory.parent().unwrap_or(directory);
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(|error| failed(parent, error))?;
        Ok(summary)
    })();
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&draft);
    }
    made
}

/// One setting of a process.
enum Setting {
    Text(String),
    List(Vec<String>),
    /// A file of the process's own directory.
    Own(&'static str),
}

/// The directory while it is made.
struct Deployment<'a> {
    draft: PathBuf,
    /// Where it will be.
    directory: &'a Path,
    /// By what each key is for.
    public: Map<String, Value>,
}

impl Deployment<'_> {
    fn folder(&self, name: &str) -> Result<(), Failure> {
        let path = self.draft.join(name);
        DirBuilder::new().mode(0o700).create(&path).map_err(|error| failed(&path, error))
    }

    fn file(&self, name: &str, content: &[u8]) -> Result<(), Failure> {
        write(&self.draft.join(name), content, Existing::Refuse)
    }

    /// Makes a key, keeps its seed in the process's directory, and returns its public half, if it has one.
    fn key(&mut self, kind: Kind, process: &str, file: &str, meaning: &str) -> Result<String, Failure> {
        let (mut seed, public) = kind.make().map_err(|error| Failure::usage(error.to_string()))?;
        seed.push('\n');
        self.file(&format!("{process}/{file}"), seed.as_bytes())?;
        let public = public.unwrap_or_default();
        if !public.is_empty() {
            self.public.insert(meaning.to_owned(), Value::String(public.clone()));
        }
        Ok(public)
    }

    fn settings(&self, process: &str, settings: &[(&str, Setting)]) -> Result<(), Failure> {
        let mut text = "# Made by `trefoil setup` for TREFOIL_CONFIG; variables TREFOIL_* win over it.\n".to_owned();
        for (key, setting) in settings {
            // Strings and lists of them look the same in TOML and JSON.
            let value = match setting {
                Setting::Text(text) => json!(text),
                Setting::List(texts) => json!(texts),
                Setting::Own(file) => json!(self.directory.join(process).join(file)),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{key} = {value}");
        }
        self.file(&format!("{process}/settings.toml"), text.as_bytes())
    }

    fn write_all(&mut self, arguments: &Arguments, data: &Path) -> Result<(), Failure> {
        use Setting::{List, Own, Text};
        const NODES: [(&str, &str, [&str; 3]); 2] = [
            ("node1", "node2", ["node1Identity", "node1Channel", "node1Connection"]),
            ("node2", "node1", ["node2Identity", "node2Channel", "node2Connection"]),
        ];
        for folder in ["nats", "node1", "node2", "worker", "client", "authoriser", "monitor", "operator", "system"] {
            self.folder(folder)?;
        }
        for (node, _, [identity, channel, connection]) in NODES {
            self.key(Kind::Secret, node, "master.key", "")?;
            self.key(Kind::Node, node, "identity.seed", identity)?;
            self.key(Kind::Noise, node, "noise.seed", channel)?;
            self.key(Kind::Connection, node, "nats.seed", connection)?;
        }
        let worker = self.key(Kind::Noise, "worker", "noise.seed", "workerChannel")?;
        let sealing = self.key(Kind::Sealing, "worker", "sealing.keys", "sealing")?;
        let initiator = self.key(Kind::Initiator, "client", "initiator.seed", "initiator")?;
        self.key(Kind::Reply, "client", "reply.seed", "reply")?;
        let authoriser = self.key(Kind::Authoriser, "authoriser", "authoriser.seed", "authoriser")?;
        let accounts = Accounts {
            worker: vec![self.key(Kind::Connection, "worker", "nats.seed", "workerConnection")?],
            node1: vec![self.public("node1Connection")],
            node2: vec![self.public("node2Connection")],
            monitor: vec![self.key(Kind::Connection, "monitor", "nats.seed", "monitorConnection")?],
            operator: vec![self.key(Kind::Connection, "operator", "nats.seed", "operatorConnection")?],
            system: vec![self.key(Kind::Connection, "system", "nats.seed", "systemConnection")?],
            backend: vec![Backend {
                name: "LOCAL".to_owned(),
                connection: self.key(Kind::Connection, "client", "nats.seed", "clientConnection")?,
                initiator: initiator.clone(),
            }],
        };
        let server = format!("{}\n{}", server(arguments, &data.join("nats"))?, accounts.text()?);
        self.file("nats/nats-server.conf", server.as_bytes())?;

        let connection = |inbox: Option<&str>| {
            let mut settings =
                vec![("nats_url", Text(arguments.nats_url.clone())), ("nats_nkey_seed_file", Own("nats.seed"))];
            settings.extend(inbox.map(|name| ("nats_inbox_prefix", Text(format!("_INBOX_{name}")))));
            settings
        };
        for (node, peer, _) in NODES {
            self.file(&format!("{node}/policy.toml"), policy(&initiator).as_bytes())?;
            let mut settings = connection(Some(node));
            settings.extend([
                ("role", Text(node.to_owned())),
                ("data_dir", Text(text(&data.join(node))?)),
                ("master_key_file", Own("master.key")),
                ("identity_seed_file", Own("identity.seed")),
                ("noise_key_file", Own("noise.seed")),
                ("peer_identity", Text(self.public(&format!("{peer}Identity")))),
                ("workers", List(vec![worker.clone()])),
                ("authorisers", List(vec![authoriser.clone()])),
                ("policy_file", Own("policy.toml")),
            ]);
            self.settings(node, &settings)?;
        }
        let identities = || {
            [
                ("node1_identity", Text(self.public("node1Identity"))),
                ("node2_identity", Text(self.public("node2Identity"))),
            ]
        };
        let mut settings = connection(Some("worker"));
        settings.extend([
            ("noise_key_file", Own("noise.seed")),
            ("sealing_keys_file", Own("sealing.keys")),
            ("initiators", List(vec![initiator])),
            ("node1_noise", Text(self.public("node1Channel"))),
            ("node2_noise", Text(self.public("node2Channel"))),
        ]);
        settings.extend(identities());
        self.settings("worker", &settings)?;
        let mut settings = connection(None);
        settings.extend([
            ("nats_jetstream_prefix", Text("TREFOIL.JS.API".to_owned())),
            ("initiator_seed_file", Own("initiator.seed")),
            ("reply_seed_file", Own("reply.seed")),
            ("worker_key", Text(sealing)),
        ]);
        settings.extend(identities());
        self.settings("client", &settings)?;
        self.settings("monitor", &connection(Some("monitor")))
    }

    fn public(&self, meaning: &str) -> String {
        self.public.get(meaning).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| failed(path, "must be UTF-8"))
}

/// Everything that a backend may ask for, on both curves.
fn policy(initiator: &str) -> String {
    format!(
        "# Who may do what at this node; docs/policy.md. SIGHUP loads it again.\nversion = 1\n\n[[initiators]]\nname = \"local\"\n\
         key = \"{initiator}\"\noperations = {}\ncurves = {}\nraw_digests = true\nmax_lifetime_seconds = 600\nmax_keys = 100000\n",
        json!(Op::ALL.iter().map(|op| op.as_str()).collect::<Vec<_>>()),
        json!([Curve::Secp256k1.as_str(), Curve::Ed25519.as_str()]),
    )
}

/// The server's own part of its configuration, like deploy/nats/nats-server.conf but for one server in a network of its own,
/// without TLS. What leaves a process is sealed, signed or encrypted for another one all the same.
fn server(arguments: &Arguments, store: &Path) -> Result<String, Failure> {
    let monitor = match arguments.nats_monitor {
        Some(address) => format!("# Has no password.\nhttp: \"{address}\"\n"),
        None => String::new(),
    };
    Ok(format!(
        "# Made by `trefoil setup`: one server on one machine, without TLS. deploy/nats is for production.\n\
         server_name: trefoil-local\nlisten: \"{}\"\n{monitor}max_payload: 1MB\nmax_pending: 16MB\n\
         write_deadline: \"5s\"\nping_interval: \"5s\"\nping_max: 2\n\
         jetstream {{\n  store_dir: {}\n  sync_interval: always\n  max_file_store: 4GB\n  max_memory_store: 64MB\n}}\n",
        arguments.nats_listen,
        json!(text(store)?),
    ))
}
