//! `trefoil setup`: a deployment that works as it is made, complete or not there, and never overwritten.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::process::Process;
use support::{command, nats_server};
use tempfile::TempDir;

fn setup(folder: &TempDir, arguments: &[&str]) -> Output {
    command("trefoil").current_dir(folder.path()).args(["--json", "setup"]).args(arguments).output().unwrap()
}

fn answer(done: &Output) -> Value {
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    serde_json::from_slice(&done.stdout).unwrap()
}

fn refusal(done: &Output) -> String {
    assert_eq!(done.status.code(), Some(2), "{done:?}");
    let answer: Value = serde_json::from_slice(&done.stdout).unwrap();
    answer["error"]["message"].as_str().unwrap().to_owned()
}

/// Every file and directory below this one, with its mode, and its content if it is a file.
fn everything(folder: &Path) -> BTreeMap<PathBuf, (u32, Option<String>)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let about = std::fs::metadata(&path).unwrap();
        let content = about.is_file().then(|| std::fs::read_to_string(&path).unwrap());
        if about.is_dir() {
            found.extend(everything(&path));
        }
        found.insert(path, (about.permissions().mode() & 0o777, content));
    }
    found
}

#[test]
fn what_it_makes_generates_and_signs_at_once() {
    let folder = TempDir::new().unwrap();
    let made = answer(&setup(&folder, &["local", "--data", "kept"]));
    assert_eq!(made["made"], true);
    let mut nats = Command::new(nats_server());
    // A free port: the setting's own may be taken here.
    nats.arg("--config").arg(folder.path().join("local/nats/nats-server.conf")).args(["--port", "-1"]);
    let nats = Process::spawn("nats-server", nats, &folder.path().join("nats-server.log"));
    let listening = nats.wait_for("Listening for client connections on");
    nats.wait_for("Server is ready");
    let url = format!("nats://127.0.0.1:{}", listening.rsplit(':').next().unwrap().trim());
    let process = |name: &str, program: &str| -> Command {
        let mut command = command(program);
        // Elsewhere, as a service is: nothing in the settings depends on where a process is started.
        command.current_dir("/").env("TREFOIL_NATS_URL", &url);
        command.env("TREFOIL_CONFIG", folder.path().join("local").join(name).join("settings.toml"));
        command
    };
    let mut running = Vec::new();
    for (name, program, ready) in [
        ("node1", "trefoil-node", "serving"),
        ("node2", "trefoil-node", "serving"),
        ("worker", "trefoil-worker", " ready"),
    ] {
        let process = Process::spawn(name, process(name, program), &folder.path().join(format!("{name}.log")));
        process.wait_for(ready);
        running.push(process);
    }
    assert!(folder.path().join("kept/node1/store.redb").exists());
    assert!(folder.path().join("kept/nats/jetstream").exists());
    let client = |arguments: &[&str]| {
        let mut client = process("client", "trefoil");
        client.env("TREFOIL_PASSWORD", "a password").current_dir(folder.path()).arg("--json").args(arguments);
        answer(&client.output().unwrap())
    };
    let quick = ["--memory-kib", "64", "--passes", "1"];
    client(&[&["generate", "--curve", "secp256k1", "--out", "a.key"][..], &quick].concat());
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let signed = client(&["sign", "--key", "a.key", "--digest", digest]);
    client(&["verify", "--key", "a.key", "--digest", digest, "--signature", signed["signature"].as_str().unwrap()]);
    // The authoriser is one whom both nodes believe.
    let consent = ["--authoriser-seed-file", "local/authoriser/authoriser.seed"];
    client(&[&["recover", "--key", "a.key", "--out", "b.key"][..], &consent, &quick].concat());
}

#[test]
fn only_the_owner_may_read_it_and_no_secret_is_printed() {
    let folder = TempDir::new().unwrap();
    let done = setup(&folder, &["local"]);
    answer(&done);
    let printed = [done.stdout, done.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let mut secrets = 0;
    for (path, (mode, content)) in everything(folder.path()) {
        assert_eq!(mode, if content.is_some() { 0o600 } else { 0o700 }, "{}", path.display());
        let Some(content) = content else { continue };
        let secret = path.extension().is_some_and(|kind| ["seed", "key", "keys"].map(AsRef::as_ref).contains(&kind));
        let seeds = ["SU", "SX", "SN"].iter().any(|prefix| content.starts_with(prefix));
        assert_eq!(secret, seeds || path.ends_with("master.key"), "{}", path.display());
        assert!(!(secret && printed.contains(content.trim())), "{} is printed", path.display());
        secrets += usize::from(secret);
    }
    assert_eq!(secrets, 2 * 4 + 3 + 3 + 1 + 3);
}

#[test]
fn nothing_is_overwritten_and_what_is_complete_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let first = answer(&setup(&folder, &["local"]));
    let before = everything(folder.path());
    assert!(refusal(&setup(&folder, &["local"])).contains("nothing is overwritten"));
    let again = answer(&setup(&folder, &["local", "--if-missing", "--nats-url", "nats://elsewhere:1"]));
    assert_eq!((&again["made"], &again["publicKeys"]), (&Value::from(false), &first["publicKeys"]));
    assert_eq!(everything(folder.path()), before);
    // What others may change, or somebody else has made, is not taken for one's own.
    for path in [folder.path().join("local"), folder.path().join("local/setup.json")] {
        let mode = std::fs::metadata(&path).unwrap().permissions();
        std::fs::set_permissions(&path, Permissions::from_mode(0o770)).unwrap();
        assert!(refusal(&setup(&folder, &["local", "--if-missing"])).contains("may be changed by other users"));
        std::fs::set_permissions(&path, mode).unwrap();
        // Only root can give it away.
        let root = std::fs::metadata(&path).unwrap().uid() == 0;
        if root && std::os::unix::fs::lchown(&path, Some(65_534), None).is_ok() {
            assert!(refusal(&setup(&folder, &["local", "--if-missing"])).contains("belongs to another user"));
            std::os::unix::fs::lchown(&path, Some(0), None).unwrap();
        }
    }
    // Somebody else's directory or file: also not with --if-missing.
    std::fs::create_dir(folder.path().join("theirs")).unwrap();
    std::fs::write(folder.path().join("theirs/file"), "theirs").unwrap();
    let before = everything(folder.path());
    for other in ["theirs", "theirs/file"] {
        for arguments in [&[other][..], &[other, "--if-missing"]] {
            refusal(&setup(&folder, arguments));
        }
    }
    assert_eq!(everything(folder.path()), before);
    // An empty directory is a place to put it, as a volume's mount point is.
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    answer(&setup(&folder, &["empty"]));
}

#[test]
fn one_that_fails_leaves_nothing_behind() {
    use std::os::unix::ffi::OsStrExt;
    let folder = TempDir::new().unwrap();
    let mut command = command("trefoil");
    command.current_dir(folder.path()).args(["--json", "setup", "local", "--data"]);
    // Found out when the seeds are written already.
    command.arg(std::ffi::OsStr::from_bytes(b"not-utf8-\xff"));
    assert!(refusal(&command.output().unwrap()).contains("UTF-8"));
    assert!(everything(folder.path()).is_empty());
}

#[test]
fn of_many_at_once_one_makes_it_and_all_tell_its_keys() {
    let folder = TempDir::new().unwrap();
    let started: Vec<_> = (0..8)
        .map(|_| {
            let mut command = command("trefoil");
            command.current_dir(folder.path()).args(["--json", "setup", "local", "--if-missing"]);
            command.stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let answers: Vec<Value> = started.into_iter().map(|one| answer(&one.wait_with_output().unwrap())).collect();
    assert_eq!(answers.iter().filter(|answer| answer["made"] == true).count(), 1);
    assert!(answers.iter().all(|answer| answer["publicKeys"] == answers[0]["publicKeys"]));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
